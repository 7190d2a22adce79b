"""Chooses each layer's pipeline cuts and reuse factor by placing it alone.

XLS cuts logic by delay models of ASIC processes, and a finer cut need not be faster on an FPGA; so a layer is printed
for several periods, and nextpnr says how fast and how large each of them is. Where a clock is asked for, layers that
keep it are also tried with larger reuse factors, up to the cycles of the slowest layer, which are nothing to the whole
design's speed. A layer alone has all of the device's free space, and streams end in pins: it is faster than in the
design, hence a margin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowerkit.errors import LowerkitError
from lowerkit.targets.base import Progress
from lowerkit.targets.fpga.design import Layer
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.rtl import area
from lowerkit.targets.fpga.rtl.cache import kept
from lowerkit.targets.fpga.rtl.design import PERIOD_PS, Rtl, print_rtl
from lowerkit.targets.fpga.rtl.harness import framed
from lowerkit.targets.fpga.rtl.implement import TARGET_MHZ, capacity, implement
from lowerkit.targets.fpga.rtl.simulate import simulate_rtl

#: ps of XLS's delay model.
PERIODS = (1000, PERIOD_PS, 2200)
#: By how much a layer alone has to be faster than the design's clock.
MARGIN = 1.1
#: Layers are placed with one seed; the design is with all.
SEED = 1
#: Samples whose cycles are counted.
SAMPLES = 3


@dataclass(frozen=True)
class Point:
    """A layer as one of several designs, measured.

    Attributes:
        reuse: how often each multiplier is used for a position; None for a layer that has no such factor.
        period_ps: of XLS's delay model.
        fmax: MHz, placed alone, with one seed.
        ii: cycles from one sample to the next, simulated.
        share: of the device's cells, summed over their kinds.
        efficient: whether no other point of the layer is as good in fmax, share and ii, and better in one.
        chosen: whether the design has this one.
    """

    layer: str
    node: str
    reuse: int | None
    period_ps: int
    fmax: float
    ii: float
    luts: int
    registers: int
    multipliers: int
    memories: int
    share: float
    efficient: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class Variant:
    """A layer with one of its reuse factors."""

    layer: Layer
    reuse: int | None


def search(
    variants: Mapping[str, Sequence[Variant]],
    *,
    device: str,
    clock: float,
    progress: Progress,
) -> list[Point]:
    """Every point that was measured, layer after layer, one of each layer chosen.

    The smallest that keeps the clock (with `MARGIN`), of those that do not slow the design down; the fastest where
    none keeps it, or no clock is asked for.

    Args:
        variants: by layer, with rising reuse factors; the first one is what the design has.
        clock: MHz, 0 for none.
        progress: told what is measured.

    Raises:
        LowerkitError: as printing, simulating and placing do, with the layer's node.
    """
    measured: dict[str, list[Point]] = {}
    for i, (name, (first, *_)) in enumerate(variants.items()):
        measured[name] = []
        for period in PERIODS:
            progress(f"search: {name}, {period} ps", i, len(variants))
            measured[name].append(_point(first, period, device, clock))
    # What the slowest layer takes, no layer needs to be faster than.
    slowest = max(min(p.ii for p in points) for points in measured.values())
    found = []
    for i, (name, (_, *others)) in enumerate(variants.items()):
        points = measured[name]
        best = _best(points, clock, slowest)
        for variant in others if clock and best.fmax >= clock * MARGIN else []:
            if variant.layer.schedule.cycles > slowest:
                break
            progress(f"search: {name}, reuse {variant.reuse}", i, len(variants))
            points.append(_point(variant, best.period_ps, device, clock))
        chosen = _best(points, clock, slowest)
        found += [replace(p, efficient=_efficient(p, points), chosen=p is chosen) for p in points]
    return found


def _best(points: Sequence[Point], clock: float, slowest: float) -> Point:
    """One that is not slower than the slowest layer, if there is any."""
    keep = [p for p in points if p.ii <= slowest] or list(points)
    fit = [p for p in keep if clock and p.fmax >= clock * MARGIN]
    if fit:
        return min(fit, key=lambda p: (p.share, -p.fmax, p.period_ps))
    return max(keep, key=lambda p: (p.fmax, -p.share, -p.period_ps))


def _efficient(point: Point, points: Sequence[Point]) -> bool:
    """Whether a point is in the Pareto set."""
    own = (-point.fmax, point.share, point.ii)
    others = [(-p.fmax, p.share, p.ii) for p in points]
    return not any(o != own and all(a <= b for a, b in zip(o, own, strict=True)) for o in others)


def _point(variant: Variant, period: int, device: str, clock: float) -> Point:
    # By another name, equal kernels are one question to the cache.
    layer, kernel = variant.layer, replace(variant.layer.kernel, name="kernel", comment="")
    try:
        rtl = print_rtl(kernel, period)
        frame, top = framed(rtl)
        aim = clock * MARGIN if clock else TARGET_MHZ
        made = implement(frame, device, top=top, seeds=(SEED,), target_mhz=aim)
        ii = kept(["interval", rtl.verilog], lambda: {"ii": _interval(kernel, rtl)})["ii"]
    except LowerkitError as error:
        where = f"node '{layer.node}' (layer {layer.name}, alone)"
        raise type(error)(error.reason, node=where, hint=error.hint) from error
    own, has = area.total({part: cells for part, cells in made.parts.items() if part}), capacity(device)
    return Point(
        layer=layer.name,
        node=layer.node,
        reuse=variant.reuse,
        period_ps=period,
        fmax=made.fmax,
        ii=ii,
        luts=own["luts"],
        registers=own["registers"],
        multipliers=own["multipliers"],
        memories=own["memories"],
        share=round(sum(own[kind] / has[kind] for kind in has), 5),
    )


def _interval(kernel: Kernel, rtl: Rtl) -> float:
    rng = np.random.default_rng(0)
    codes: dict[str, Any] = {
        a.name: rng.integers(a.range.low, a.range.high, (SAMPLES, *a.shape), endpoint=True)
        for a in kernel.inputs
    }
    _, cycles = simulate_rtl(kernel, codes, stalls=False, rtl=rtl)
    return float(cycles.interval)
