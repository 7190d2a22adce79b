"""Simulates Verilog: codes in, codes out, and the cycles at which they pass."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowerkit.errors import ArtifactError, PlanError, ToolError
from lowerkit.targets.fpga import csim
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.rtl import icarus, project, tools
from lowerkit.targets.fpga.rtl.design import Rtl, print_rtl

#: How likely it is that an input has a gap, and that an output is not taken, in a cycle.
STALLS = 0.5
SIMULATORS = ("verilator", "icarus")


@dataclass(frozen=True)
class Cycles:
    """When beats passed; cycles are counted from the first beat that is offered.

    Attributes:
        latency: to the first beat out.
        interval: from one sample's last beat out to the next one's, on average; of one sample, all cycles.
        total: to the last beat out.
    """

    latency: int
    interval: float
    total: int


class RtlRunner(csim.CsimRunner):
    """Runs the simulation that `build` made in a project's folder, any number of times."""

    def timed(
        self, codes: Mapping[str, np.ndarray], *, seed: int = 0, stalls: bool | float = STALLS
    ) -> tuple[dict[str, np.ndarray], Cycles]:
        """Codes of the outputs, int64 [samples, *shape], for those of the inputs, and the cycles.

        Raises ArtifactError where the design halts, among other things.
        """
        with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
            file = Path(scratch) / "cycles.csv"
            options = ["--seed", str(seed), "--stalls", str(_chance(stalls)), "--cycles", str(file)]
            found = self.codes(codes, options)
            with file.open(encoding="utf-8") as rows:
                return found, _read(list(csv.DictReader(rows)))


def build(directory: Path) -> None:
    """Make the simulation in a folder of `write_rtl_project`. Raises ToolError where verilator, make or g++ miss."""
    tools.program("verilator")
    csim.build(directory, "RTL simulation")


def simulate_rtl(
    kernel: Kernel,
    inputs: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    stalls: bool | float = STALLS,
    rtl: Rtl | None = None,
    simulator: str | None = None,
) -> tuple[dict[str, np.ndarray], Cycles]:
    """The kernel's outputs, int64 [batch, ...], for codes of that form, as `interpret.run` has them, and the cycles.

    Args:
        stalls: how likely inputs have gaps, and outputs are not taken, in a cycle; True is `STALLS`.
        rtl: the printed kernel, where there is one already.
        simulator: `verilator` is fast once it is built, which takes seconds; `icarus` starts at once, and knows
            undefined bits. Verilator where there is one if None.

    Raises:
        PlanError: for another simulator, or stalls that never end.
        ToolError: where a tool is missing, the design halts, or an output is undefined.
    """
    found, cycles = simulate(rtl or print_rtl(kernel), inputs, seed=seed, stalls=stalls, simulator=simulator)
    return {a.name: found[a.name].reshape(-1, *a.shape) for a in kernel.outputs}, cycles


def simulate(
    design: Rtl,
    inputs: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    stalls: bool | float = STALLS,
    simulator: str | None = None,
) -> tuple[dict[str, np.ndarray], Cycles]:
    """Each output's codes, int64 [batch, codes], for the inputs' [batch, ...]; as `simulate_rtl`."""
    chosen = simulator or _installed()
    if chosen not in SIMULATORS:
        raise PlanError(f"there is no simulator '{chosen}'", hint=f"choose of {', '.join(SIMULATORS)}")
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        place = Path(scratch)
        if chosen == "icarus":
            found, beats = icarus.run(design, inputs, place, seed=seed, stalls=_chance(stalls))
            return found, _of_beats(design, beats)
        project.write_sources(design, place)
        build(place)
        try:
            return RtlRunner(place, _description(design)).timed(inputs, seed=seed, stalls=stalls)
        except ArtifactError as error:
            raise ToolError(error.reason, hint="this is a fault of lowerkit") from None


def _installed() -> str:
    """Verilator, or Icarus where that alone is there."""
    return SIMULATORS[1] if shutil.which("verilator") is None and shutil.which("iverilog") else SIMULATORS[0]


def _chance(stalls: bool | float) -> float:
    chance = STALLS if stalls is True else float(stalls)
    if not 0 <= chance < 1:
        raise PlanError(f"stalls must be likely from 0 (none) to below 1, not {stalls}")
    return chance


def _description(design: Rtl) -> dict[str, Any]:
    """What a runner has to know of ports, each a row of codes."""
    kinds = {"inputs": design.inputs, "outputs": design.outputs}
    return {
        kind: [{"name": s.name, "shape": [s.beats * s.lanes]} for s in streams]
        for kind, streams in kinds.items()
    }


def _read(rows: list[dict[str, str]]) -> Cycles:
    """Of the test bench's file."""
    start = min(int(row["first"]) for row in rows if row["direction"] == "in")
    out = [row for row in rows if row["direction"] == "out"]
    ends: dict[int, int] = {}
    for row in out:
        sample = int(row["sample"])
        ends[sample] = max(int(row["last"]), ends.get(sample, 0))
    return _cycles(start, min(int(row["first"]) for row in out), [ends[n] for n in sorted(ends)])


def _of_beats(design: Rtl, beats: Mapping[str, list[int]]) -> Cycles:
    """Of the cycles of all beats."""
    samples = len(beats[design.outputs[0].name]) // design.outputs[0].beats
    ends = [max(beats[s.name][s.beats * (i + 1) - 1] for s in design.outputs) for i in range(samples)]
    start = min(beats[s.name][0] for s in design.inputs)
    return _cycles(start, min(beats[s.name][0] for s in design.outputs), ends)


def _cycles(start: int, first: int, ends: list[int]) -> Cycles:
    interval = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0] - start + 1
    return Cycles(first - start, interval, ends[-1] - start + 1)
