"""Convolutions with channels last: a register tile of pixels by vectors of channels, see `kernels/conv.py`.

The accumulators stay in registers while the reduction runs; elementwise operators that follow are computed on them
before they are stored. A panel of weights stays in cache while the image goes by.
"""

from __future__ import annotations

import math

from tvm import s_tir
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV, SBlockRV

from lowerkit.targets.cpu.kernels.conv import BY_CHANNEL, CUT, PANELS, PHASES, registers, tile
from lowerkit.targets.cpu.schedules.blocks import (
    NotApplicable,
    extents,
    inline_producers,
    leaf_blocks,
    spatial_rank,
)
from lowerkit.targets.cpu.schedules.elementwise import schedule_block

#: Multiply-adds below which a loop is not worth the start of threads.
_PARALLEL_FROM = 1 << 19
#: Steps of a reduction over few channels that are unrolled; more of them take too many registers at once.
_UNROLLED_STEPS = 12
#: Taps of a kernel by channel times accumulators, up to which the taps are unrolled.
_UNROLLED = 256
#: Nodes of the expression of what follows a convolution, up to which it is one block: equal parts are computed once.
_INLINED = 512
#: Bytes of the padded rows that a kernel by channel works on at a time.
_BAND = 1 << 16


def schedule_convolution(schedule: s_tir.Schedule, lanes: int) -> None:
    """Schedule a convolution and the elementwise operators after it. Raises NotApplicable."""
    blocks = leaf_blocks(schedule)
    names = [schedule.get(block).name_hint for block in blocks]
    index = next((names.index(name) for name in (PANELS, BY_CHANNEL, PHASES) if name in names), None)
    if index is None:
        raise NotApplicable("not a convolution")
    conv, name = blocks[index], names[index]
    before = inline_producers(schedule, blocks[:index])
    rest = blocks[index + 1 :]
    shape = extents(schedule, rest[0] if CUT in names else conv)[:4]
    same = [block for block in rest if extents(schedule, block) == shape]
    if same != rest[: len(same)]:
        raise NotApplicable("an operator of another shape lies between")
    # What is spread over a larger image, or cut out, is a loop of its own.
    for block in inline_producers(schedule, rest[len(same) :]):
        schedule_block(schedule, block, lanes)
    after = [*inline_producers(schedule, same[:-1], _INLINED), *same[-1:]]
    if not after:
        after = [schedule.cache_write(conv, 0, "global")]
    parallel = math.prod(shape) * math.prod(_reduction(schedule, conv)) >= _PARALLEL_FROM
    if name == BY_CHANNEL:
        _schedule_by_channel(schedule, before, conv, after, shape, lanes, parallel)
        return
    _schedule_panels(schedule, conv, after, shape, lanes, parallel)
    for block in before:
        schedule_block(schedule, block, lanes)


def _schedule_panels(
    schedule: s_tir.Schedule,
    conv: SBlockRV,
    after: list[SBlockRV],
    shape: list[int],
    lanes: int,
    parallel: bool,
) -> None:
    if schedule.get(conv).name_hint == PHASES:
        # The pixels of a tile are of one phase, a stride apart in the result.
        sh, sw = (int(stride) for stride in schedule.get(conv).annotations["strides"])

        def by_phase(b: Expr, y: Expr, x: Expr, o: Expr) -> tuple[Expr, ...]:
            return b, y // sh, y % sh, x // sw, x % sw, o

        schedule.transform_block_layout(after[-1], by_phase)
        schedule.transform_block_layout(conv, lambda b, y, x, o, t, u, c: (*by_phase(b, y, x, o), t, u, c))
        schedule.transform_layout(conv, ("write", 0), by_phase)
        image, row, row_phase, column, column_phase, channel = schedule.get_loops(after[-1])
        outer, width = [image, row_phase, column_phase], shape[2] // sw
    else:
        image, row, column, channel = schedule.get_loops(after[-1])
        outer, width = [image], shape[2]
    pixels, vectors = tile(width, shape[3], registers(lanes), lanes)
    tiles, pixel = schedule.split(column, [None, pixels])
    panels, vector, lane = _split_channels(schedule, channel, shape[3], vectors, lanes)
    outer += [panels, row]
    schedule.reorder(*outer, tiles, pixel, vector, lane)
    _into_registers(schedule, [conv, *after[:-1]], tiles, vectors, lanes)
    _unroll(schedule, [pixel, vector, lane])
    if parallel:
        schedule.parallel(schedule.fuse(*outer))
    reduction = _reduction(schedule, conv)
    if len(reduction) > 1 and math.prod(reduction[-2:]) <= _UNROLLED_STEPS < math.prod(reduction):
        for loop in _reduced_loops(schedule, conv)[-2:]:
            schedule.unroll(loop)
    _start_sums(schedule, conv)


def _schedule_by_channel(
    schedule: s_tir.Schedule,
    before: list[SBlockRV],
    conv: SBlockRV,
    after: list[SBlockRV],
    shape: list[int],
    lanes: int,
    parallel: bool,
) -> None:
    width = math.gcd(shape[3], lanes)
    vectors = next(v for v in (2, 3, 5, 1) if shape[3] // width % v == 0)
    pixels = min(range(1, 1 + min(shape[2], 10 // vectors)), key=lambda n: (-(-shape[2] // n), n))
    image, row, column, channel = schedule.get_loops(after[-1])
    columns, pixel = schedule.split(column, [None, pixels])
    panels, vector, lane = _split_channels(schedule, channel, shape[3], vectors, width)
    bands, line = schedule.split(row, [None, _band(schedule, before, shape[1], vectors * width)])
    schedule.reorder(image, panels, bands, line, columns, pixel, vector, lane)
    _into_registers(schedule, [conv, *after[:-1]], columns, vectors, width)
    _unroll(schedule, [pixel, vector, lane])
    for block in before:
        # A band of padded rows stays in cache.
        schedule.compute_at(block, bands, preserve_unit_loops=True)
        schedule.vectorize(schedule.get_loops(block)[-1])
    if math.prod(_reduction(schedule, conv)) * pixels * vectors <= _UNROLLED:
        for loop in _reduced_loops(schedule, conv):
            schedule.unroll(loop)
    if parallel:
        schedule.parallel(schedule.fuse(image, panels, bands))
    _start_sums(schedule, conv)


def _split_channels(
    schedule: s_tir.Schedule, channel: LoopRV, channels: int, vectors: int, lanes: int
) -> tuple[LoopRV, LoopRV, LoopRV]:
    """`channel` as tiles, vectors of a tile, and lanes: a cut tile is cut by whole vectors, if need be short ones."""
    width = math.gcd(channels, lanes)
    pieces, lane = schedule.split(channel, [None, width])
    tiles, vector = schedule.split(pieces, [None, vectors * lanes // width])
    return tiles, vector, lane


def _into_registers(
    schedule: s_tir.Schedule, blocks: list[SBlockRV], at: LoopRV, vectors: int, lanes: int
) -> None:
    """Compute `blocks`, of pixels by channels and perhaps a reduction, on the tile below the loop `at`."""
    for block in reversed(blocks):
        schedule.compute_at(block, at, preserve_unit_loops=True)
        schedule.set_scope(block, 0, "local")
    depth = len(schedule.get_loops(blocks[0])) - len(schedule.get(blocks[0]).iter_vars)
    for block in blocks:
        loops = list(schedule.get_loops(block)[depth:])
        # Images, rows, columns and, in between, phases; then channels.
        rank = spatial_rank(schedule, block)
        pixels, channel, reduced = loops[: rank - 1], loops[rank - 1], loops[rank:]
        vector, lane = schedule.split(channel, [vectors, lanes])
        schedule.reorder(*reduced, *pixels, vector, lane)
        _unroll(schedule, [*pixels, vector, lane])


def _reduction(schedule: s_tir.Schedule, conv: SBlockRV) -> list[int]:
    """Extents of the axes that the convolution sums over."""
    axes = schedule.get(conv).iter_vars[spatial_rank(schedule, conv) :]
    return [int(axis.dom.extent) for axis in axes]


def _unroll(schedule: s_tir.Schedule, tile: list[LoopRV]) -> None:
    for loop in tile[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(tile[-1])


def _reduced_loops(schedule: s_tir.Schedule, conv: SBlockRV) -> list[LoopRV]:
    """The loops of the convolution's reduction, which are outside of those over the tile."""
    tile_loops = spatial_rank(schedule, conv) + 1
    count = len(schedule.get(conv).iter_vars) - spatial_rank(schedule, conv)
    return list(schedule.get_loops(conv)[-tile_loops - count : -tile_loops])


def _start_sums(schedule: s_tir.Schedule, conv: SBlockRV) -> None:
    """Set the sums to 0 before the reduction; last, for other moves do not take a block in two parts."""
    schedule.decompose_reduction(conv, _reduced_loops(schedule, conv)[0])


def _band(schedule: s_tir.Schedule, padded: list[SBlockRV], height: int, channels: int) -> int:
    """Rows of the result that are computed from one copy of padded rows: all where nothing is padded."""
    if not padded:
        return 1
    _, rows, columns, _ = extents(schedule, padded[0])
    row = columns * channels * 4 * rows / height
    most = max(4, int(_BAND / row))
    return next((n for n in range(min(most, height), most // 2, -1) if height % n == 0), min(most, height))
