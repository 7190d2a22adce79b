"""Matrix products and convolutions: register tiles.

A tile of (rows, vector) accumulators stays in registers while the reduction runs, so that each step loads one
vector of the operand that lies contiguously and one scalar per row of the other. The elementwise operators
that follow are computed on the tile before it is stored. (Goto & van de Geijn, "Anatomy of high-performance
matrix multiplication", ACM TOMS 34(3), 2008, without its packing of the left operand.)
"""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from lowerkit.targets.cpu.schedules.blocks import (
    NotApplicable,
    extents,
    fuse_parallel,
    inline_producers,
    is_conditional,
    is_reduction,
    leaf_blocks,
    count,
)
from lowerkit.targets.cpu.schedules.elementwise import schedule_block

#: Name of the block -> its axes (rows, vector) of a tile, counted as in the output.
AXES = {
    "matmul": (-2, -1),
    "dense_packed": (-2, -1),
    "conv2d_nchw": (1, 3),
    "conv2d_packed": (3, 1),
    "group_conv2d_nchw": (2, 3),
}


def schedule_contraction(schedule: s_tir.Schedule, lanes: int) -> None:
    """Schedule a function of one contraction and elementwise operators around it. Raises NotApplicable."""
    blocks = leaf_blocks(schedule)
    reductions = [block for block in blocks if is_reduction(schedule, block)]
    if len(reductions) != 1:
        raise NotApplicable("not one reduction")
    (reduction,) = reductions
    name = schedule.get(reduction).name_hint
    if name not in AXES:
        raise NotApplicable("not a contraction")
    index = [schedule.get(block).name_hint for block in blocks].index(name)
    before, after = blocks[:index], blocks[index + 1 :]
    before = inline_producers(schedule, before)
    if after:
        final = after[-1]
    else:
        final = schedule.cache_write(reduction, 0, "global")
    attached = [*after[:-1]]
    shape = extents(schedule, final)
    loops = schedule.get_loops(final)
    rank = len(loops)
    if any(extents(schedule, block) != shape for block in attached):
        raise NotApplicable("the operators that follow have another shape")
    row_axis, vector_axis = (axis % rank for axis in AXES[name])
    width = _vector_width(shape[vector_axis], lanes)
    rows = _rows(shape[row_axis], max(1, 2 * lanes // width))

    row_outer, row_inner = schedule.split(loops[row_axis], [None, rows])
    vector_outer, vector_inner = schedule.split(loops[vector_axis], [None, width])
    others = [loop for axis, loop in enumerate(loops) if axis not in (row_axis, vector_axis)]
    # A panel of the contiguous operand stays in cache while the rows go by.
    outer = [*others, vector_outer, row_outer] if row_axis < vector_axis or rank < 4 else [*others, row_outer]
    if row_axis > vector_axis:
        outer = [others[0], vector_outer, *others[1:], row_outer]
    elif name == "conv2d_nchw":
        outer = [others[0], row_outer, *others[1:], vector_outer]
    elif name == "group_conv2d_nchw":
        outer = [*others, row_outer, vector_outer]
    schedule.reorder(*outer, row_inner, vector_inner)
    if shape[vector_axis] % width:
        schedule.annotate(vector_outer, "pragma_loop_partition_hint", True)
    tile = outer[-1]
    for block in reversed(attached):
        schedule.compute_at(block, tile, preserve_unit_loops=True)
        schedule.set_scope(block, 0, "local")
    schedule.compute_at(reduction, tile, preserve_unit_loops=True)
    schedule.set_scope(reduction, 0, "local")
    depth = len(outer)
    for block in (*attached, final):
        inner = schedule.get_loops(block)[depth:]
        if block is final:
            inner = [row_inner, vector_inner]
            schedule.unroll(row_inner)
            schedule.vectorize(vector_inner)
        else:
            _order_tile(schedule, inner, row_axis, vector_axis)
    inner = schedule.get_loops(reduction)[depth:]
    spatial, reduced = inner[:rank], inner[rank:]
    schedule.reorder(*reduced, *[s for i, s in enumerate(spatial) if i not in (row_axis, vector_axis)],
                     spatial[row_axis], spatial[vector_axis])
    schedule.unroll(spatial[row_axis])
    schedule.vectorize(spatial[vector_axis])
    fuse_parallel(schedule, outer[:-1])
    for block in before:
        schedule_block(schedule, block, lanes)
    # Last: a decomposed reduction no longer satisfies what the other moves check.
    schedule.decompose_reduction(reduction, reduced[0])


def _order_tile(schedule: s_tir.Schedule, loops: list[LoopRV], row_axis: int, vector_axis: int) -> None:
    rest = [loop for axis, loop in enumerate(loops) if axis not in (row_axis, vector_axis)]
    schedule.reorder(*rest, loops[row_axis], loops[vector_axis])
    schedule.unroll(loops[row_axis])
    schedule.vectorize(loops[vector_axis])


def _vector_width(extent: int, lanes: int) -> int:
    """Two registers wide, or the widest power of two that divides a short axis."""
    width = 2 * lanes
    while width > 1 and extent % width and extent < 4 * width:
        width //= 2
    return width


def _rows(extent: int, registers: int) -> int:
    """Rows of a tile: 4 to 6 that divide the axis if any, so that no tile is cut short."""
    for rows in (4, 6, 5, 7, 3, 2):
        if extent % rows == 0:
            return rows
    return min(extent, 6)
