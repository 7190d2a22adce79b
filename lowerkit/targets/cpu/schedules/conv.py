"""Convolutions with channels last: a register tile of pixels by vectors of channels, see `kernels/conv.py`.

The accumulators stay in registers while the reduction runs; elementwise operators that follow are computed on them
before they are stored. A panel of weights stays in cache while the image goes by.
"""

from __future__ import annotations

import math

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from lowerkit.targets.cpu.kernels.conv import BY_CHANNEL, PANELS, registers, tile
from lowerkit.targets.cpu.schedules.blocks import (
    NotApplicable,
    extents,
    inline_producers,
    leaf_blocks,
)
from lowerkit.targets.cpu.schedules.elementwise import schedule_block

#: Multiply-adds below which a loop is not worth the start of threads.
_PARALLEL_FROM = 1 << 19
#: Taps of a kernel by channel times accumulators, up to which the taps are unrolled.
_UNROLLED = 256
#: Bytes of the padded rows that a kernel by channel works on at a time.
_BAND = 1 << 16


def schedule_convolution(schedule: s_tir.Schedule, lanes: int) -> None:
    """Schedule a convolution and the elementwise operators after it. Raises NotApplicable."""
    blocks = leaf_blocks(schedule)
    names = [schedule.get(block).name_hint for block in blocks]
    index = next((names.index(name) for name in (PANELS, BY_CHANNEL) if name in names), None)
    if index is None:
        raise NotApplicable("not a convolution")
    conv = blocks[index]
    before = inline_producers(schedule, blocks[:index])
    after = inline_producers(schedule, blocks[index + 1 :]) or [schedule.cache_write(conv, 0, "global")]
    shape = extents(schedule, after[-1])
    if len(shape) != 4 or any(extents(schedule, block) != shape for block in after):
        raise NotApplicable("the operators that follow have another shape")
    kernel = extents(schedule, conv)[4:]
    parallel = math.prod(shape) * math.prod(kernel) >= _PARALLEL_FROM
    if names[index] == PANELS:
        _schedule_panels(schedule, conv, after, shape, lanes, parallel)
        for block in before:
            schedule_block(schedule, block, lanes)
    else:
        _schedule_by_channel(schedule, before, conv, after, shape, lanes, parallel)


def _schedule_panels(
    schedule: s_tir.Schedule,
    conv: SBlockRV,
    after: list[SBlockRV],
    shape: list[int],
    lanes: int,
    parallel: bool,
) -> None:
    pixels, vectors = tile(shape[2], shape[3], registers(lanes), lanes)
    image, row, column, channel = schedule.get_loops(after[-1])
    columns, pixel = schedule.split(column, [None, pixels])
    panels, vector, lane = _split_channels(schedule, channel, shape[3], vectors, lanes)
    schedule.reorder(image, panels, row, columns, pixel, vector, lane)
    _into_registers(schedule, [conv, *after[:-1]], columns, vectors, lanes)
    _unroll(schedule, [pixel, vector, lane])
    if parallel:
        schedule.parallel(schedule.fuse(image, panels, row))
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
    taps = [loop for loop in _reduced_loops(schedule, conv)]
    kernel = [int(schedule.get(loop).extent) for loop in taps]
    if math.prod(kernel) * pixels * vectors <= _UNROLLED:
        for loop in taps:
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
    depth = len(schedule.get_loops(blocks[0])) - len(_axes(schedule, blocks[0]))
    for block in blocks:
        loops = list(schedule.get_loops(block)[depth:])
        pixels, channel, reduced = loops[:3], loops[3], loops[4:]
        vector, lane = schedule.split(channel, [vectors, lanes])
        schedule.reorder(*reduced, *pixels, vector, lane)
        _unroll(schedule, [*pixels, vector, lane])


def _axes(schedule: s_tir.Schedule, block: SBlockRV) -> list[object]:
    return list(schedule.get(block).iter_vars)


def _unroll(schedule: s_tir.Schedule, tile: list[LoopRV]) -> None:
    for loop in tile[:-1]:
        schedule.unroll(loop)
    schedule.vectorize(tile[-1])


def _reduced_loops(schedule: s_tir.Schedule, conv: SBlockRV) -> list[LoopRV]:
    """The loops of the convolution's reduction, which are outside of its five loops over the tile."""
    count = len(_axes(schedule, conv)) - 4
    return list(schedule.get_loops(conv)[-5 - count : -5])


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
