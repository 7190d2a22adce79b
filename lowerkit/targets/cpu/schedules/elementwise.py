"""Elementwise operators, copies and padding: parallel over the outer axes, vectors along the last."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import SBlockRV

from lowerkit.targets.cpu.schedules.blocks import (
    NotApplicable,
    extents,
    fuse_parallel,
    inline_producers,
    is_reduction,
    leaf_blocks,
    split_vector,
)

#: Elements below which a loop is not worth the start of threads.
PARALLEL_FROM = 4096


def schedule_elementwise(schedule: s_tir.Schedule, lanes: int) -> None:
    """Schedule a function without reductions. Raises NotApplicable."""
    blocks = leaf_blocks(schedule)
    if any(is_reduction(schedule, block) for block in blocks):
        raise NotApplicable("there is a reduction")
    for block in inline_producers(schedule, blocks):
        schedule_block(schedule, block, lanes)


def schedule_block(schedule: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    """Schedule one block without a reduction, by itself."""
    loops = schedule.get_loops(block)
    shape = extents(schedule, block)
    if not loops:
        return
    size = 1
    for extent in shape:
        size *= extent
    if len(loops) > 1 and shape[-1] >= lanes:
        outer, last = loops[:-1], loops[-1]
    else:
        # A short last axis: one long loop.
        outer, last = [], schedule.fuse(*loops) if len(loops) > 1 else loops[0]
    chunk = split_vector(schedule, last, lanes)
    if size >= PARALLEL_FROM:
        fuse_parallel(schedule, list(outer) or [chunk])
