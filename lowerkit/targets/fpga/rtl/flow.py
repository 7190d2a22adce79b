"""`--flow rtl`: a design as Verilog in an artifact, simulated, placed and routed.

OUT/
  rtl/        the design: its Verilog, its simulation, golden vectors
  rtl.json    what was measured: cycles, cells by layer, clock by seed, and the search's points
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lowerkit.errors import PlanError, ToolError, UnsupportedError
from lowerkit.targets.base import Progress
from lowerkit.targets.fpga import design as oracle
from lowerkit.targets.fpga.dataflow import network
from lowerkit.targets.fpga.design import Design
from lowerkit.targets.fpga.project import constant_bits
from lowerkit.targets.fpga.rtl import area, implement, options, search, simulate, tools
from lowerkit.targets.fpga.rtl.design import Rtl
from lowerkit.targets.fpga.rtl.implement import Implementation
from lowerkit.targets.fpga.rtl.network import print_network
from lowerkit.targets.fpga.rtl.project import write_rtl_project
from lowerkit.targets.fpga.rtl.tables import MEASURED

PROJECT = "rtl"
#: Samples that are simulated with gaps and stalls, and without.
SAMPLES = 4
#: Of a look-up table of four inputs.
LUT_BITS = 16
#: By how much the search divides the multipliers of a layer.
DIVISORS = (1, 2, 4)

#: A design for some of the target's options, and by node the reuse factors that it has.
Build = Callable[[Mapping[str, Any]], tuple[Design, Mapping[str, int]]]


def emit(
    build: Build, chosen: Mapping[str, Any], directory: Path, progress: Progress
) -> tuple[Design, dict[str, Any]]:
    """Write `rtl/` and `rtl.json`, and build the simulation; the design, and the options with what a search chose.

    Raises:
        PlanError: for a layer's period where there is no such layer.
        UnsupportedError: for a layer without RTL, a design that does not fit, or a clock that is missed.
        ToolError: where a tool is missing or fails, or the simulation differs from the oracle.
    """
    # Minutes of work are not lost because the last tool is missing.
    tools.module("xls")
    tools.program("verilator")
    if chosen["place"]:
        implement.versions()
    settled, points = dict(chosen), []
    design, _ = build(settled)
    _check_layers(design, settled["periods"])
    if settled["place"]:
        _check_weights(design, settled["device"])
    if options.searches(chosen):
        points = _search(build, settled, progress)
        settled |= _choices(points, settled)
        design, _ = build(settled)
    net = network(design)
    layers = sum(p.kind in ("layer", "fork") for p in net.processes)
    rtl = print_network(
        design,
        net=net,
        periods=settled["periods"],
        blocks=implement.DEVICES[settled["device"]].multipliers,
        progress=_counted(progress, layers),
    )
    write_rtl_project(design, rtl, directory / PROJECT)
    measured: dict[str, Any] = {}
    if settled["place"]:
        measured |= _place(design, rtl, settled, directory, progress)
    progress("building the simulation", 0, 1)
    simulate.build(directory / PROJECT)
    measured["simulation"] = _simulate(design, directory / PROJECT, progress)
    measured["search"] = [asdict(p) for p in points]
    (directory / MEASURED).write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    return design, settled


def _search(build: Build, chosen: Mapping[str, Any], progress: Progress) -> list[search.Point]:
    """Points of all layers whose period is not given."""
    variants: dict[str, list[search.Variant]] = {}
    for divisor in DIVISORS:
        design, factors = build({**chosen, "multipliers": max(chosen["multipliers"] // divisor, 1)})
        nodes = Counter(layer.node for layer in design.layers)
        for layer in design.layers:
            # A factor is of a node; where that has several layers, it would change all of them.
            reuse = factors.get(layer.node) if nodes[layer.node] == 1 else None
            found = variants.setdefault(layer.name, [])
            fewer = found and layer.schedule.multipliers < found[-1].layer.schedule.multipliers
            if not found or (fewer and reuse is not None):
                found.append(search.Variant(layer, reuse))
    open_layers = {name: found for name, found in variants.items() if name not in chosen["periods"]}
    if not open_layers:
        return []
    return search.search(open_layers, device=chosen["device"], clock=chosen["clock"], progress=progress)


def _choices(points: Sequence[search.Point], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that say what was chosen, with which there is nothing left to search."""
    periods, reuse = dict(given["periods"]), dict(given["reuse"])
    for point in points:
        if point.chosen:
            periods[point.layer] = point.period_ps
            if point.reuse is not None:
                reuse[point.node] = point.reuse
    return {"periods": periods, "reuse": reuse, "search": False}


def _check_layers(design: Design, periods: Mapping[str, int]) -> None:
    names = [layer.name for layer in design.layers]
    if unknown := sorted(set(periods) - set(names)):
        raise PlanError(
            f"option periods: there is no layer '{unknown[0]}'", hint=f"layers: {', '.join(names)}"
        )


def _check_weights(design: Design, device: str) -> None:
    """Refuses what no placement can help: more constants than block memories and look-up tables hold."""
    chip = implement.DEVICES[device]
    room = chip.memory_bits + chip.luts * LUT_BITS
    sizes = {layer.name: (constant_bits(layer), layer.node) for layer in design.kernels()}
    needed = sum(bits for bits, _ in sizes.values())
    if needed <= room:
        return
    largest = sorted(sizes, key=lambda name: (-sizes[name][0], name))[:3]
    named = ", ".join(
        f"layer {name} (node '{sizes[name][1]}') {sizes[name][0] / 2**20:.3g} Mbit" for name in largest
    )
    raise UnsupportedError(
        f"weights and tables take {needed / 2**20:.3g} Mbit, and {device} ({chip.chip}) holds {room / 2**20:.3g} Mbit "
        f"in block memories and look-up tables; the most is in {named}",
        hint="take a larger --device, fewer bits (--option weight_width=8), or a smaller model",
    )


def _counted(progress: Progress, total: int) -> Callable[[str], None]:
    """Counts what it is told."""
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        progress(what, min(done, total), total)
        done += 1

    return tell


def _simulate(design: Design, project: Path, progress: Progress) -> dict[str, Any]:
    """Cycles of random samples, whose codes have to be the oracle's, with gaps and stalls and without."""
    runner = simulate.RtlRunner(project, design.described())
    codes = design.random_codes(SAMPLES, seed=1)
    wanted = oracle.simulate(design, codes)
    for i, stalls in enumerate((True, False)):
        progress(f"simulating {SAMPLES} samples with{'' if stalls else 'out'} stalls", i, 2)
        found, cycles = runner.timed(codes, seed=1, stalls=stalls)
        for name, numbers in wanted.items():
            if not np.array_equal(found[name], numbers):
                raise ToolError(
                    f"output '{name}' of the simulated RTL differs from the integer model",
                    hint="this is a fault of lowerkit",
                )
    return {
        "samples": SAMPLES,
        "simulator": tools.version("verilator"),
        "latency_cycles": cycles.latency,
        "interval_cycles": cycles.interval,
    }


def _place(
    design: Design, rtl: Rtl, chosen: Mapping[str, Any], directory: Path, progress: Progress
) -> dict[str, Any]:
    """Cells and clock; refuses a clock that is missed."""
    clock, device = chosen["clock"], chosen["device"]
    seeds = range(1, chosen["seeds"] + 1)
    label = {layer.name: f"layer {layer.name} (node '{layer.node}')" for layer in design.layers}
    aim = clock or implement.TARGET_MHZ
    made = implement.implement(
        rtl,
        device,
        seeds=seeds,
        progress=_counted(progress, len(seeds) + 1),
        label=lambda part: label.get(part, part),
        target_mhz=aim,
        router=chosen["router"],
    )
    path = critical_path(design, made)
    if made.fmax < clock:
        raise UnsupportedError(
            f"the clock of {clock:g} MHz is missed by {clock - made.fmax:.1f} MHz: {device} reaches {made.fmax:.1f} "
            f"MHz with seed {made.slowest}; the critical path is {path}",
            hint="ask for a slower --clock, search (--option search=true), or take fewer bits (--option width=8)",
        )
    progress("counting for AMD", 0, 1)
    counted = implement.count_xilinx(rtl)
    if chosen["bitstream"]:
        progress("bitstream", 0, 1)
        best = max(made.by_seed, key=lambda seed: (made.by_seed[seed], seed))
        implement.bitstream(
            rtl, device, seed=int(best), target_mhz=aim, router=chosen["router"], place=directory / PROJECT
        )
    return {
        "implementation": {**asdict(made), "slowest_seed": made.slowest, "critical_path": path},
        "layers": _layers(design, made),
        "capacity": implement.capacity(device),
        "xilinx": counted,
    }


def critical_path(design: Design, made: Implementation) -> str:
    """The slowest path by layers and stages."""
    nodes = {layer.name: layer.node for layer in design.layers}
    ends = []
    for cell in made.path:
        part, within = area.instances(cell)
        if part in nodes:
            ends.append(f"layer {part} (node '{nodes[part]}')" + (f", {within}" if within else ""))
        else:
            ends.append(f"{part or 'the top'}, between layers")
    first, last = ends
    return f"within {first}" if first == last else f"from {first}, to {last}"


def _layers(design: Design, made: Implementation) -> list[dict[str, Any]]:
    """Cells by layer; of queues, forks and gears between layers; and of ends of carry chains, which nextpnr adds."""
    rows = [{"name": layer.name, "node": layer.node, **_cells(made, [layer.name])} for layer in design.layers]
    names = {layer.name for layer in design.layers}
    between = [part for part in made.parts if part not in (*names, area.ADDED)]
    rows.append({"name": "between layers", "node": "", **_cells(made, between)})
    rows.append({"name": "added by nextpnr", "node": "", **_cells(made, [area.ADDED])})
    return rows


def _cells(made: Implementation, parts: Sequence[str]) -> dict[str, int]:
    found = {part: made.parts[part] for part in parts if part in made.parts}
    return area.total(found)
