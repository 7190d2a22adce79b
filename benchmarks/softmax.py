"""Softmax by its number of passes over memory, beside a copy of the same size, in one run on one thread.

    python -m benchmarks.softmax [--rounds 15] [--largest 24] [--json FILE] [--markdown FILE]

Rows of 2^6 to 2^24 elements. Rows of up to 2^10 are of arrays of 2^16 elements, as attention has them, which stay in
cache; longer ones of 2^22, or one row. Rounds go through the contenders in turn, and the table gives medians of GB/s,
counting what any softmax must move: the input read once, the output written once. Every method is first checked
against float64. `read` only reads, which alone counts for it; `copy` is numpy's copy of the input, and `streamed` one
whose stores go past the caches. `exact` is the cpu target's own softmax, `poly-exp` its default, and `unified-max` the
method of that name, its center at 0, which all rows are near. onnxruntime writes into memory that it is given, as the
others do.

The last columns are ratios of times in the same round: onnxruntime's to those of `exact` and of `poly-exp`, and two
of memory's to that of `exact`. A row that fits no cache is read twice and written once: `streamed` times 3/2 is that at
the rate of a copy; `two passes` is `read` and `streamed`, one after the other, and longer, because one thread reads no
more bytes per second than it copies. The first pass takes 14 vector instructions for 8 elements with AVX2, 8 of which
compete for two units (products and maxima), so that computing takes about as long as reading does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from benchmarks.tables import Column, publish
from lowerkit.graph.load import load_model, upgrade
from lowerkit.passes import registry
from lowerkit.targets.base import get_target
from lowerkit.targets.cpu.features import default_cpu, level, tvm_target
from lowerkit.targets.cpu.kernels.streaming import fence, imported, store_past_caches
from lowerkit.targets.cpu.kernels.vectors import f32, load, store
from lowerkit.targets.cpu.runner import CpuRunner

TITLE = "Softmax by passes over memory"
#: Contenders that are the cpu target's; `exact` is the kept operator, the others are methods.
METHODS = ("exact", "poly-exp", "unified-max")
#: Row from which on arrays are large, and elements of small and of large ones.
LONG, SMALL, LARGE = 11, 1 << 16, 1 << 22
#: Ratios: heading -> (numerator, denominator, factor) of times.
RATIOS = {
    "onnxruntime / exact": ("onnxruntime", "exact", 1.0),
    "onnxruntime / poly-exp": ("onnxruntime", "poly-exp", 1.0),
    "streamed / exact": ("streamed", "exact", 1.5),
    "two passes / exact": ("two passes", "exact", 1.0),
}
#: Of the output's scale, against float64: a contender that is wrong has no speed.
LIMIT = 1e-4
CONTENDERS = ("read", "copy", "streamed", "numpy", "onnxruntime", *METHODS)
COLUMNS = (
    Column("row", "2^{log2}"),
    *(Column(name, "{" + name + ":.2f}") for name in CONTENDERS),
    *(Column(name, "{" + name + ":.2f}") for name in RATIOS),
)


def write_model(path: Path, shape: tuple[int, int]) -> Path:
    """One Softmax over the last axis."""
    node = onnx.helper.make_node("Softmax", ["x"], ["y"], axis=-1)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
    graph = onnx.helper.make_graph([node], "softmax", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def in_numpy(x: np.ndarray) -> np.ndarray:
    """What a numpy user writes, without more temporaries than it takes."""
    y = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def one_pass(x: np.ndarray, copied: bool) -> Callable[[], object]:
    """A copy of `x` with the stores of the cpu target that go past the caches, or the largest elements of its lanes."""
    lanes = level(default_cpu()).lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        source, result = (T.arg(name, T.buffer((x.size,), "float32")) for name in ("source", "result"))
        largest = T.alloc_buffer((lanes,), "float32")
        store(largest, f32(0), 0, lanes)
        with imported(lanes):
            with T.serial(0, x.size // lanes) as i:
                elements = T.bind(load(source, i * lanes, lanes))
                if copied:
                    store_past_caches(result, elements, i * lanes, lanes)
                else:
                    store(largest, tirx.max(load(largest, 0, lanes), elements), 0, lanes)
            fence()
        if not copied:
            store(result, load(largest, 0, lanes), 0, lanes)
    target = tvm.target.Target(tvm_target(default_cpu()))
    function = tvm.compile(tvm.IRModule({"main": builder.get()}), target)["main"]
    arguments = [tvm.runtime.tensor(array) for array in (x.ravel(), np.zeros(x.size, np.float32))]
    return lambda: function(*arguments)


def contenders(x: np.ndarray, scratch: Path) -> dict[str, Callable[[], object]]:
    """Name -> one run over `x`."""
    model = write_model(scratch / "softmax.onnx", (x.shape[0], x.shape[1]))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, ["CPUExecutionProvider"])
    bound, given = session.io_binding(), ort.OrtValue.ortvalue_from_numpy(np.zeros_like(x))
    bound.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    bound.bind_ortvalue_output("y", given)
    copied = np.zeros_like(x)
    runs: dict[str, Callable[[], object]] = {
        "read": one_pass(x, copied=False),
        "copy": lambda: np.copyto(copied, x),
        "streamed": one_pass(x, copied=True),
        "numpy": lambda: in_numpy(x),
        "onnxruntime": lambda: session.run_with_iobinding(bound),
    }
    target, exact = get_target("cpu"), in_numpy(x.astype(np.float64))
    for name in METHODS:
        lowered = load_model(model)
        upgrade(lowered)
        if name != "exact":
            registry.make("softmax", name, {}).rewrite(lowered, lowered.graph[0])
        directory = scratch / name
        directory.mkdir()
        target.emit(lowered, {"threads": 1}, directory)
        runner = CpuRunner(directory, 1)
        runs[name] = runner.bind({"x": x})
        error = float(np.abs(runner({"x": x})["y"] - exact).max() / exact.max())
        if error > LIMIT:
            raise SystemExit(f"{name} is wrong by {error:.1e} of its scale")
    return runs


def measure(log2: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """GB/s of every contender for rows of 2^log2 elements."""
    width = 1 << log2
    rng = np.random.default_rng(0)
    x = rng.normal(0, 4, (max(1, (SMALL if log2 < LONG else LARGE) // width), width)).astype(np.float32)
    runs = contenders(x, scratch)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    seconds = {name: values[1:] for name, values in times.items()}  # the first warms up
    rates = {
        name: (1 if name == "read" else 2) * x.nbytes / statistics.median(values) / 1e9
        for name, values in seconds.items()
    }
    seconds["two passes"] = [sum(pair) for pair in zip(seconds["read"], seconds["streamed"], strict=True)]
    ratios = {
        name: statistics.median(factor * a / b for a, b in zip(seconds[over], seconds[under], strict=True))
        for name, (over, under, factor) in RATIOS.items()
    }
    return {"log2": log2, **{name: round(value, 3) for name, value in (rates | ratios).items()}}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--largest", type=int, default=24, help="log2 of the longest row")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows = []
    for log2 in [n for n in (6, 7, 8, 9, 10, 13, 16, 18, 20, 22, 24) if n <= arguments.largest]:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(measure(log2, arguments.rounds, Path(scratch)))
    publish(TITLE, __doc__, COLUMNS, rows, arguments.json, arguments.markdown)


if __name__ == "__main__":
    main()
