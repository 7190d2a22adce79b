"""Reductions along the last axes, and what is computed from them: softmax, normalisation, means.

All blocks share the outer axes, so one row at a time goes through all of them and stays in cache. Within a
row the reduction keeps one partial result per lane and combines them at the end.
"""

from __future__ import annotations

import math

from tvm import s_tir
from tvm.s_tir.schedule import SBlockRV

from lowerkit.targets.cpu.schedules.blocks import (
    NotApplicable,
    extents,
    fuse_parallel,
    inline_producers,
    is_reduction,
    leaf_blocks,
    spatial_rank,
    split_vector,
)

#: A sum over so many elements keeps more partial sums than lanes, or its rounding errors would show.
_LONG, _PARTIALS = 1 << 16, 1 << 10
#: Elements below which rows are not worth the start of threads.
PARALLEL_FROM = 1 << 14


def schedule_rows(schedule: s_tir.Schedule, lanes: int) -> None:
    """Schedule a function whose blocks share their outer axes. Raises NotApplicable."""
    blocks = inline_producers(schedule, leaf_blocks(schedule))
    if is_reduction(schedule, blocks[-1]):
        blocks.append(schedule.cache_write(blocks[-1], 0, "global"))
    shared = _shared_axes(schedule, blocks)
    parts = [_by_lanes(schedule, block, lanes) for block in blocks]
    partials = [part[0] for part in parts if len(part) > 1]
    *inner, final = [block for part in parts for block in part]
    elements = max(math.prod(extents(schedule, block)) for block in (*inner, final))
    outer = list(schedule.get_loops(final)[:shared])
    row = fuse_parallel(schedule, outer, parallel=elements >= PARALLEL_FROM)
    if row is None and inner:
        raise NotApplicable("the blocks share no axis")
    for block in reversed(inner):
        schedule.compute_at(block, row, preserve_unit_loops=True)
    for block in (*inner, final):
        loops = list(schedule.get_loops(block)[1:])
        if block in partials:
            # The partial results are the first axis.
            schedule.reorder(*loops[1:], loops[0])
            split_vector(schedule, loops[0], lanes)
        elif not is_reduction(schedule, block) and loops:
            split_vector(schedule, loops[-1], lanes)


def _shared_axes(schedule: s_tir.Schedule, blocks: list[SBlockRV]) -> int:
    shapes = [extents(schedule, block)[: spatial_rank(schedule, block)] for block in blocks]
    shared = 0
    for axis in zip(*shapes, strict=False):
        if len(set(axis)) > 1:
            break
        shared += 1
    reduced = [shape for shape, block in zip(shapes, blocks, strict=True) if is_reduction(schedule, block)]
    if any(len([n for n in shape[shared:] if n > 1]) for shape in reduced):
        raise NotApplicable("a reduction is not by rows")
    return shared


def _by_lanes(schedule: s_tir.Schedule, block: SBlockRV, lanes: int) -> list[SBlockRV]:
    """Split a reduction into one that keeps a partial result per lane, and one that combines them."""
    reduced = list(schedule.get_loops(block)[spatial_rank(schedule, block) :])
    if not reduced:
        return [block]
    last = reduced[0] if len(reduced) == 1 else schedule.fuse(*reduced)
    extent = int(schedule.get(last).extent)
    if extent % lanes or extent < 2 * lanes:
        return [block]
    partials = _PARTIALS if extent >= _LONG and extent % _PARTIALS == 0 else lanes
    _, lane = schedule.split(last, [None, partials])
    return [schedule.rfactor(lane, 0), block]
