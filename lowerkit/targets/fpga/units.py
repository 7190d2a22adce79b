"""Linear layers that share a unit: as many multipliers as one layer has do the work of all, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lowerkit.errors import UnsupportedError
from lowerkit.targets.fpga.design import Design
from lowerkit.targets.fpga.kernels.unit import Job, linear_unit, schedule_of
from lowerkit.targets.fpga.lang.expr import Range


def with_units(design: Design, jobs: Mapping[str, Job], lanes: int) -> Design:
    """The design with linear layers on units; results are the same bit for bit.

    There is a unit for each pair of integer types that layers read and write, one where all have the same width and
    sign. Layers that are alone with their types stay as they are.

    Args:
        jobs: by layer.
        lanes: multipliers of a unit.

    Raises:
        UnsupportedError: where a layer's output is finer than its sums; names the node.
    """
    groups: dict[tuple[Range, Range], list[str]] = {}
    nodes = {layer.name: layer.node for layer in design.layers}
    for name, job in jobs.items():
        if job.x.fraction + job.finest < job.y.fraction:
            raise UnsupportedError(
                "its output has more fraction bits than its sums, and no unit for that",
                node=f"node '{nodes[name]}'",
                hint="give its output a coarser format, or set shared_linear to false",
            )
        groups.setdefault((job.x.range, job.y.range), []).append(name)
    layers = {layer.name: layer for layer in design.layers}
    for number, names in enumerate(names for names in groups.values() if len(names) > 1):
        used = min(lanes, max(len(jobs[name].weights) for name in names))
        kernel, schedule = linear_unit(f"linear_unit{number}", [jobs[name] for name in names], used)
        for place, name in enumerate(names):
            own = schedule_of(jobs[name], used, schedule.multipliers if place == 0 else 0)
            layers[name] = replace(layers[name], kernel=kernel, schedule=own, job=place)
    return replace(design, layers=tuple(layers.values()))
