"""Softmax of hls4ml and of lowerkit on the same rows, both C-simulated by hls4ml.

    python -m benchmarks.hls4ml_softmax [--rows 2000] [--json FILE] [--markdown FILE]

Rows of 64 logits in ap_fixed<16,6>, from four distributions; errors are the largest absolute ones against float64
softmax of the logits that the format holds. hls4ml's types are those that its `config_from_onnx_model` proposes for
fixed<16,6>; `stable` is its default implementation. `fixed` and `shift` are lowerkit's methods of these names; the
small table has 7 fractional bits for logits, an eighth of the words. Results are in ap_fixed<16,6>, whose steps are
2^-10, or in ap_ufixed<16,0>, whose steps are 2^-16.

A flip is a row in which an element that is not a largest logit comes out above all that are. A tie is a row in which
it comes out equal to them: the largest element is not told any more, though nothing is out of order. Equal logits
are as good as each other.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.tables import Column, publish
from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.targets.fpga.design import Design, Layer, Port
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.hls4ml import open_design
from lowerkit.targets.fpga.kernels.schedule import built
from lowerkit.targets.fpga.kernels.softmax import fixed, shift
from lowerkit.targets.fpga.lang.program import Kernel

WIDTH = 64
LOGITS = Fixed(16, 6)
COARSE, FINE = Fixed(16, 6), Fixed(16, 0, signed=False)
SMALL_INPUT_BITS = 7
COLUMNS = (
    Column("softmax", "{softmax}"),
    Column("result", "{result}"),
    Column("N(0, 1)", "{normal:.5f}"),
    Column("N(0, 4)", "{wide:.5f}"),
    Column("uniform", "{uniform:.5f}"),
    Column("one large", "{peaked:.5f}"),
    Column("flips", "{flips}"),
    Column("ties", "{ties}"),
)


def distributions(rows: int) -> dict[str, np.ndarray]:
    """Logits [rows, WIDTH] that the format holds: normal of variance 1 and 4, uniform on [-8, 8], N(0, 1) + a peak."""
    rng = np.random.default_rng(0)
    peaked = rng.normal(0, 1, (rows, WIDTH))
    peaked[np.arange(rows), rng.integers(0, WIDTH, rows)] += 10
    drawn = {
        "normal": rng.normal(0, 1, (rows, WIDTH)),
        "wide": rng.normal(0, 2, (rows, WIDTH)),
        "uniform": rng.uniform(-8, 8, (rows, WIDTH)),
        "peaked": peaked,
    }
    return {name: LOGITS.dequantise(LOGITS.quantise(x)) for name, x in drawn.items()}


def exact(x: np.ndarray) -> np.ndarray:
    """Softmax in float64."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def disorder(x: np.ndarray, y: np.ndarray) -> tuple[int, int]:
    """The rows whose largest element flips, and those where it ties."""
    best = x == x.max(axis=-1, keepdims=True)
    top, rest = np.where(best, y, -np.inf).max(axis=-1), np.where(best, -np.inf, y).max(axis=-1)
    return int((rest > top).sum()), int((rest == top).sum())


def of_hls4ml(implementation: str, folder: Path) -> Any:
    """hls4ml's model of an ONNX softmax at the default precision, with one of its implementations."""
    import hls4ml

    shape = (1, WIDTH)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
    node = onnx.helper.make_node("Softmax", ["x"], ["y"], name="softmax", axis=-1)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "softmax", values[:1], values[1:]))
    # hls4ml's own proposal for every type: a precision for the whole model would narrow the sum, which then wraps.
    config = hls4ml.utils.config_from_onnx_model(
        model,
        granularity="name",
        backend="Vitis",
        default_precision=f"fixed<{LOGITS.width},{LOGITS.integer}>",
    )
    config["LayerName"]["softmax"]["Implementation"] = implementation
    return hls4ml.converters.convert_from_onnx_model(
        model, output_dir=str(folder), backend="Vitis", hls_config=config
    )


def of_kernel(kernel: Kernel, result: Fixed, folder: Path) -> Any:
    """The kernel as a model of hls4ml."""
    x, y = Port("x", (1, WIDTH), LOGITS), Port("y", (1, WIDTH), result)
    layer = Layer(kernel.name, "", "Softmax", kernel, ("x",), ("y",), built(kernel, 1)[1])
    return open_design(Design("softmax", (x,), (y,), {"x": x, "y": y}, {}, (layer,)), folder)


def contenders() -> dict[tuple[str, str], Callable[[Path], Any]]:
    """(softmax, result format) -> its hls4ml model, written to a folder."""
    found: dict[tuple[str, str], Callable[[Path], Any]] = {}
    for name in ("stable", "latency"):
        label = f"hls4ml, {name}{' (default)' if name == 'stable' else ''}"
        found[label, str(COARSE)] = lambda folder, name=name: of_hls4ml(name, folder)
    for result in (COARSE, FINE):
        small = FixedMethod(input_bits=SMALL_INPUT_BITS, output_bits=result.fraction, longest=WIDTH)
        kernels = {
            "fixed": fixed(1, WIDTH, LOGITS, result),
            "fixed, small table": fixed(1, WIDTH, LOGITS, result, small),
            "shift": shift(1, WIDTH, LOGITS, result),
        }
        for name, kernel in kernels.items():
            found[f"lowerkit, {name}", str(result)] = lambda folder, kernel=kernel, result=result: of_kernel(
                kernel, result, folder
            )
    return found


def measure(make: Callable[[Path], Any], rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The largest error on each distribution, and flips and ties on all."""
    found: dict[str, Any] = {"flips": 0, "ties": 0}
    with tempfile.TemporaryDirectory() as scratch:
        with contextlib.redirect_stdout(io.StringIO()):
            model = make(Path(scratch))
            model.compile()
        for name, x in rows.items():
            y = model.predict(np.ascontiguousarray(x)).reshape(x.shape)
            found[name] = float(np.abs(y - exact(x)).max())
            flips, ties = disorder(x, y)
            found["flips"] += flips
            found["ties"] += ties
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000, help="of each distribution")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows = distributions(arguments.rows)
    results = [
        {"softmax": name, "result": result, **measure(make, rows)}
        for (name, result), make in contenders().items()
    ]
    publish("Softmax in hls4ml", __doc__, COLUMNS, results, arguments.json, arguments.markdown)


if __name__ == "__main__":
    main()
