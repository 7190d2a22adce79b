"""Reductions over tiles of the output: matrix products, convolutions, pooling, sums over outer axes.

A tile of (rows, vector) accumulators stays in registers while the reduction runs, so that each step loads one
vector of the operand that lies contiguously and one scalar per row of the other. The elementwise operators
that follow are computed on the tile before it is stored. (Goto & van de Geijn, "Anatomy of high-performance
matrix multiplication", ACM TOMS 34(3), 2008, without its packing of the left operand.)
"""

from __future__ import annotations

import tvm
from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from lowerkit.targets.cpu.schedules.blocks import (
    NotApplicable,
    extents,
    fuse_parallel,
    inline_producers,
    is_reduction,
    last_index_varies_with,
    leaf_blocks,
)
from lowerkit.targets.cpu.schedules.elementwise import schedule_block

#: Contraction -> the output's axes that make a tile: rows, vector.
_AXES = {
    "matmul": (-2, -1),
    "conv2d_nchw": (1, 3),
    "group_conv2d_nchw": (2, 3),
}
#: Rows of a tile, best first: with two vectors a row they fill 8 to 14 of AVX2's 16 registers.
_ROWS = (4, 6, 5, 7, 3, 2)


def schedule_contraction(schedule: s_tir.Schedule, lanes: int) -> None:
    """Schedule a function of one reduction and elementwise operators around it. Raises NotApplicable."""
    blocks = leaf_blocks(schedule)
    reductions = [index for index, block in enumerate(blocks) if is_reduction(schedule, block)]
    if len(reductions) != 1:
        raise NotApplicable("not one reduction")
    reduction = blocks[reductions[0]]
    before = inline_producers(schedule, blocks[: reductions[0]])
    after = blocks[reductions[0] + 1 :] or [schedule.cache_write(reduction, 0, "global")]
    shape = extents(schedule, after[-1])
    if any(extents(schedule, block) != shape for block in after):
        raise NotApplicable("the operators that follow have another shape")
    row_axis, vector_axis = _axes(schedule, reduction, len(shape))
    if vector_axis != len(shape) - 1:
        # The tile's own memory holds whole vectors, whatever the order of the output's axes.
        def vectors_last(*axes: tvm.tirx.Var) -> list[tvm.tirx.Var]:
            return [*axes[:vector_axis], *axes[vector_axis + 1 :], axes[vector_axis]]

        for block in (reduction, *after[:-1]):
            schedule.transform_layout(block, ("write", 0), vectors_last)

    loops = schedule.get_loops(after[-1])
    width = _width(shape[vector_axis], lanes)
    outer = list(loops)
    vector_outer, vector = schedule.split(loops[vector_axis], [None, width])
    outer[vector_axis] = vector_outer
    tile = [vector]
    if row_axis is not None:
        outer[row_axis], row = schedule.split(loops[row_axis], [None, _rows(shape[row_axis])])
        tile = [row, vector]
        if row_axis == len(shape) - 2:
            # A panel of the right operand stays in cache while the rows go by.
            outer[row_axis], outer[vector_axis] = outer[vector_axis], outer[row_axis]
    schedule.reorder(*outer, *tile)
    at = outer[-1]
    for block in (*reversed(after[:-1]), reduction):
        schedule.compute_at(block, at, preserve_unit_loops=True)
        schedule.set_scope(block, 0, "local")
    _run_tile(schedule, tile)
    for block in after[:-1]:
        inner = list(schedule.get_loops(block)[len(outer) :])
        _run_tile(schedule, _move_inside(schedule, inner, [], row_axis, vector_axis))
    inner = list(schedule.get_loops(reduction)[len(outer) :])
    spatial, reduced = inner[: len(shape)], inner[len(shape) :]
    _run_tile(schedule, _move_inside(schedule, spatial, reduced, row_axis, vector_axis))
    fuse_parallel(schedule, outer[:-1], vector_outer if shape[vector_axis] % width else None)
    for block in before:
        schedule_block(schedule, block, lanes)
    # Last: a decomposed reduction no longer satisfies what the other moves check.
    schedule.decompose_reduction(reduction, reduced[0])


def _axes(schedule: s_tir.Schedule, reduction: SBlockRV, rank: int) -> tuple[int | None, int]:
    name = schedule.get(reduction).name_hint
    if name in _AXES and rank >= 2:
        row_axis, vector_axis = (axis % rank for axis in _AXES[name])
        return row_axis, vector_axis
    if rank and last_index_varies_with(schedule, reduction, rank - 1):
        return None, rank - 1
    raise NotApplicable("the reduction runs along the last axis")


def _move_inside(
    schedule: s_tir.Schedule,
    spatial: list[LoopRV],
    reduced: list[LoopRV],
    row_axis: int | None,
    vector_axis: int,
) -> list[LoopRV]:
    tile = [spatial[axis] for axis in (row_axis, vector_axis) if axis is not None]
    rest = [loop for axis, loop in enumerate(spatial) if axis not in (row_axis, vector_axis)]
    schedule.reorder(*reduced, *rest, *tile)
    return tile


def _run_tile(schedule: s_tir.Schedule, tile: list[LoopRV]) -> None:
    schedule.vectorize(tile[-1])
    for loop in tile[:-1]:
        schedule.unroll(loop)


def _width(extent: int, lanes: int) -> int:
    """Two registers, or for a short axis the widest power of two that divides it."""
    width = 2 * lanes
    while extent % width and extent < 4 * width:
        width //= 2
    return width


def _rows(extent: int) -> int:
    return next((rows for rows in _ROWS if extent % rows == 0), min(extent, 6))
