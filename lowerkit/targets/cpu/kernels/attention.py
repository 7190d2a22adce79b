"""Attention in one kernel: scores, softmax and weighted values of a few queries at a time, by heads.

A task is some queries of one head. It packs keys into panels, of which a row holds one channel of as many keys as a
tile is wide, so that scores are made in a tile of registers, as in any matrix product; they stay in the nearest cache
while the row's maximum, exponentials and sum are taken, and the weighted sum of the values is a second tile.

Rows of up to BLOCK keys are done whole. Longer ones go block by block with a running maximum and sum (Milakov and
Gimelshein, Online normalizer calculation for softmax, 2018; Dao et al., FlashAttention, 2022, Algorithm 1), and the
result is kept unscaled in its own place. A query of which all keys are hidden gives NaN, as softmax of -inf does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from lowerkit.targets.cpu.kernels.exponential import (
    Exponential,
    exact_exponential,
    imported,
    polynomial_exponential,
)
from lowerkit.targets.cpu.kernels.vectors import (
    across,
    call_kernel,
    f32,
    filled,
    flat,
    load,
    loop,
    pieces,
    store,
    vector_lanes,
)

#: Keys of a block: their scores for a tile of queries and their panels stay in the second-level cache.
BLOCK = 1024
#: Tasks below which a head's queries are divided, and queries that are worth packing the keys again for.
_TASKS, _FEWEST = 8, 48
#: Queries of a tile; with two vectors of each they take 12 of AVX2's 16 registers.
_ROWS, _VECTORS = 6, 2
_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True)
class View:
    """Where element (batch, head, token, channel) of an operand lies: strides, in elements, from `offset` on."""

    offset: int
    batch: int
    head: int
    token: int
    channel: int

    def at(self, batch: Expr, head: Expr, token: Expr | int, channel: Expr | int) -> Expr:
        """The element's place."""
        return (
            self.offset + batch * self.batch + head * self.head + token * self.token + channel * self.channel
        )


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention: `size` channels of queries and keys, `values` of values.

    Every `group` heads of queries share one of keys and values.
    """

    batch: int
    heads: int
    group: int
    queries: int
    keys: int
    size: int
    values: int


def fused_attention(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: Mapping[str, Any]
) -> relax.Expr:
    """softmax(scale Q K' + masks) V of float32 operands, in `shape`, from the operator of `fuse_attention.py`."""
    numbers = [int(n) for n in attributes["views"]]
    views = [View(*numbers[i : i + 5]) for i in range(0, len(numbers), 5)]
    views.append(View(0, *(int(n) for n in attributes["out"])))
    p = [f32(float(c)) for c in attributes.get("coefficients", ())]
    e: Exponential = (lambda z: polynomial_exponential(z, p)) if p else exact_exponential

    def body(*buffers: tirx.Buffer) -> None:
        operands = [(flat(buffer), view) for buffer, view in zip(buffers, views, strict=True)]
        shape, shown = Shape(*(int(n) for n in attributes["sizes"])), bool(attributes["shown"])
        with imported():
            _Kernel(shape, operands, float(attributes["scale"]), e, vector_lanes(), shown).write()

    return call_kernel(bb, "attention", inputs, [int(n) for n in attributes["shape"]], body)


class _Kernel:
    """Writes the statements; one object for one kernel."""

    def __init__(
        self,
        shape: Shape,
        operands: list[tuple[tirx.Buffer, View]],
        scale: float,
        exponential: Exponential,
        lanes: int,
        shown: bool,
    ) -> None:
        self.shape, self.scale, self.exponential, self.lanes = shape, scale, exponential, lanes
        (self.q, self.q_at), (self.k, self.k_at), (self.v, self.v_at), *self.masks, out = operands
        self.out, self.out_at = out
        #: Queries that are not shown any key get 0.
        self.shown = self.masks.pop() if shown else None
        self.panel = _VECTORS * lanes
        self.block = min(shape.keys, BLOCK)
        #: Of a row of scores, whole panels.
        self.row = -(-self.block // self.panel) * self.panel
        self.online = shape.keys > self.block

    def write(self) -> None:
        """The whole kernel."""
        s = self.shape
        wanted = max(1, min(-(-_TASKS // (s.batch * s.heads)), s.queries // _FEWEST))
        # Whole tiles, and an even number of tasks, as threads mostly are; each packs the keys anew.
        wanted -= wanted > 1 and wanted * s.batch * s.heads % 2
        chunk = min(-(-s.queries // (wanted * _ROWS)) * _ROWS, s.queries)
        chunks = -(-s.queries // chunk)
        with T.parallel(0, s.batch * s.heads * chunks) as task:
            self.b = T.bind(task // (s.heads * chunks))
            self.h = T.bind(task // chunks % s.heads)
            first = T.bind(task % chunks * chunk)
            self.panels = T.alloc_buffer((self.row * s.size,), "float32")
            self.scores = T.alloc_buffer((_ROWS * self.row,), "float32")
            self.inverse = T.alloc_buffer((_ROWS,), "float32")
            if self.online:
                self.top = T.alloc_buffer((chunk,), "float32")
                self.total = T.alloc_buffer((chunk,), "float32")
            if s.queries % chunk == 0:
                self._task(first, chunk)
            else:
                with T.If(task % chunks < chunks - 1):
                    with T.Then():
                        self._task(first, chunk)
                    with T.Else():
                        self._task(first, s.queries - (chunks - 1) * chunk)

    def _task(self, first: Expr, queries: int) -> None:
        """`queries` of one head from `first` on, against all keys."""
        keys, block = self.shape.keys, self.block
        if self.online:
            with loop(queries) as i:
                T.buffer_store(self.top, f32(_LOWEST), [i])
                T.buffer_store(self.total, f32(0), [i])
                for start, lanes in pieces(self.shape.values, self.lanes):
                    store(self.out, f32(0), self._out(first + i, start), lanes)
        with loop(keys // block) as index:
            self._against(first, queries, index * block, block)
        if keys % block:
            self._against(first, queries, keys - keys % block, keys % block)
        if self.online:
            with loop(queries) as i:
                factor = T.bind(f32(1) / self.total[i])
                for start, lanes in pieces(self.shape.values, self.lanes):
                    at = T.bind(self._out(first + i, start))
                    store(self.out, self._if_shown(first + i, load(self.out, at, lanes) * factor), at, lanes)

    def _against(self, first: Expr, queries: int, key: Expr | int, keys: int) -> None:
        """`queries` from `first` on against `keys` from `key` on."""
        self._pack(key, keys)
        with loop(queries // _ROWS) as tile:
            self._tile(first, tile * _ROWS, _ROWS, key, keys)
        if queries % _ROWS:
            self._tile(first, queries - queries % _ROWS, queries % _ROWS, key, keys)

    def _pack(self, key: Expr | int, keys: int) -> None:
        """Keys as [panels, channels, keys of a panel]; those that the last panel lacks are zeros."""
        size, view, panel = self.shape.size, self.k_at, self.panel
        head = self.h // self.shape.group

        def whole(index: Expr | int) -> None:
            with loop(size) as d:
                for start, lanes in pieces(panel, self.lanes):
                    at = view.at(self.b, head, key + index * panel + start, d)
                    store(
                        self.panels,
                        load(self.k, at, lanes, view.token),
                        (index * size + d) * panel + start,
                        lanes,
                    )

        with loop(keys // panel) as index:
            whole(index)
        if rest := keys % panel:
            index = keys // panel
            with loop(size) as d, loop(panel) as j:
                at = view.at(self.b, head, key + index * panel + tirx.min(j, rest - 1), d)
                value = tirx.Select(j < rest, self.k[at], f32(0))
                T.buffer_store(self.panels, value, [(index * size + d) * panel + j])

    def _tile(self, first: Expr, start: Expr | int, rows: int, key: Expr | int, keys: int) -> None:
        """`rows` queries, `start` of the task's, against the packed `keys`."""
        self._make_scores(first + start, rows, keys)
        with loop(rows) as r:
            self._softmax(first + start, start, r, key, keys)
        self._weigh(first + start, rows, key, keys)

    def _make_scores(self, query: Expr, rows: int, keys: int) -> None:
        panel, size, vectors = self.panel, self.shape.size, range(0, self.panel, self.lanes)
        rows_at = [T.bind(self.q_at.at(self.b, self.h, query + r, 0)) for r in range(rows)]
        with loop(-(-keys // panel)) as index:
            sums = T.alloc_buffer((rows * panel,), "float32")
            for r in range(rows):
                for v in vectors:
                    store(sums, f32(0), r * panel + v, self.lanes)
            with loop(size) as d:
                key = [T.bind(load(self.panels, (index * size + d) * panel + v, self.lanes)) for v in vectors]
                for r in range(rows):
                    x = T.bind(self.q[rows_at[r] + d * self.q_at.channel])
                    for v, vector in zip(vectors, key, strict=True):
                        at = r * panel + v
                        store(sums, load(sums, at, self.lanes) + x * vector, at, self.lanes)
            for r in range(rows):
                for v in vectors:
                    value = load(sums, r * panel + v, self.lanes)
                    if self.scale != 1:
                        value = value * f32(self.scale)
                    store(self.scores, value, r * self.row + index * panel + v, self.lanes)

    def _softmax(self, query: Expr, start: Expr | int, r: Expr, key: Expr | int, keys: int) -> None:
        """Exponentials in place of row `r` of the scores; what the weighted values are to be scaled by."""
        lanes, row = self.lanes, T.bind(r * self.row)
        whole, padded = keys - keys % lanes, -(-keys // lanes) * lanes
        top = T.alloc_buffer((lanes,), "float32")
        total = T.alloc_buffer((lanes,), "float32")
        masks = [
            (buffer, view, T.bind(view.at(self.b, self.h, query + r, key))) for buffer, view in self.masks
        ]
        for j in range(whole, keys):
            value = self.scores[row + j]
            for buffer, view, at in masks:
                value = value + buffer[at + j * view.channel]
            T.buffer_store(self.scores, value, [row + j])
        for j in range(keys, padded):
            T.buffer_store(self.scores, f32(-math.inf), [row + j])
        store(top, f32(_LOWEST if self.online else -math.inf), 0, lanes)
        with loop(whole // lanes) as j:
            value = load(self.scores, row + j * lanes, lanes)
            for buffer, view, at in masks:
                value = value + (load(buffer, at + j * lanes, lanes) if view.channel else buffer[at])
            value = T.bind(value)
            if masks:
                store(self.scores, value, row + j * lanes, lanes)
            store(top, tirx.max(load(top, 0, lanes), value), 0, lanes)
        if padded > whole:
            store(top, tirx.max(load(top, 0, lanes), load(self.scores, row + whole, lanes)), 0, lanes)
        largest = across(T.bind(load(top, 0, lanes)), lanes, tirx.max)
        if self.online:
            largest = T.bind(tirx.max(self.top[start + r], largest))
        store(total, f32(0), 0, lanes)
        with loop(padded // lanes) as j:
            difference = T.bind(load(self.scores, row + j * lanes, lanes) - largest)
            e = T.bind(self.exponential(difference))
            store(self.scores, e, row + j * lanes, lanes)
            store(total, load(total, 0, lanes) + e, 0, lanes)
        sum_of_row = across(T.bind(load(total, 0, lanes)), lanes, lambda a, b: a + b)
        if self.online:
            factor = T.bind(self.exponential(self.top[start + r] - largest))
            T.buffer_store(self.total, self.total[start + r] * factor + sum_of_row, [start + r])
            T.buffer_store(self.top, largest, [start + r])
            T.buffer_store(self.inverse, factor, [r])
        else:
            T.buffer_store(self.inverse, f32(1) / sum_of_row, [r])

    def _weigh(self, query: Expr, rows: int, key: Expr | int, keys: int) -> None:
        """Exponentials times values, added to the result so far or scaled as the whole of it."""
        for first, width in pieces(self.shape.values, self.panel):
            sums = T.alloc_buffer((rows * self.panel,), "float32")
            parts = list(pieces(width, self.lanes))
            for r in range(rows):
                for at, lanes in parts:
                    store(sums, f32(0), r * self.panel + at, lanes)
            with loop(keys) as n:
                place = T.bind(self.v_at.at(self.b, self.h // self.shape.group, key + n, first))
                values = [T.bind(load(self.v, place + at, lanes)) for at, lanes in parts]
                for r in range(rows):
                    e = T.bind(self.scores[r * self.row + n])
                    for (at, lanes), vector in zip(parts, values, strict=True):
                        where = r * self.panel + at
                        store(sums, load(sums, where, lanes) + e * vector, where, lanes)
            for r in range(rows):
                factor = T.bind(self.inverse[r])
                for at, lanes in parts:
                    value = load(sums, r * self.panel + at, lanes)
                    place = self._out(query + r, first + at)
                    if self.online:
                        value = value + load(self.out, place, lanes) * factor
                    else:
                        value = self._if_shown(query + r, value * factor)
                    store(self.out, value, place, lanes)

    def _if_shown(self, query: Expr, value: Expr) -> Expr:
        if self.shown is None:
            return value
        buffer, view = self.shown
        return tirx.if_then_else(buffer[view.at(self.b, self.h, query, 0)], value, filled(0, value))

    def _out(self, query: Expr, channel: int) -> Expr:
        return self.out_at.at(self.b, self.h, query, channel)
