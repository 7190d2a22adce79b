"""Softmax over rows: the kept operator, the polynomial one, online and two-pass softmax.

A row that fits the second-level cache is read three times, but from memory once: its maximum, the exponentials and
their sum, and the quotients. A longer one is read twice. The first pass takes it in blocks that stay in the nearest
cache, finds the maximum and the sum of the exponentials of each, and joins such pairs as online softmax does (Milakov
and Gimelshein, 2018), in float64; the second computes the exponentials anew, times the reciprocal of the sum.

Sums are of one partial result per lane and block, so that rounding does not grow with the row. What is larger than the
last cache is stored past the caches, which saves reading it first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from lowerkit.passes.softmax.poly_exp import PolyExp
from lowerkit.targets.cpu.kernels.softmax_rows import by_rows, exponential
from lowerkit.targets.cpu.kernels.streaming import fence, imported, store_past_caches, streams
from lowerkit.targets.cpu.kernels.vectors import (
    PARALLEL_FROM,
    across,
    call_kernel,
    f32,
    flat,
    load,
    loop,
    store,
    vector_lanes,
)

#: Elements of the longest row that is kept in cache, and of a block of a longer one.
_LONGEST, _BLOCK = 1 << 16, 1 << 12


def softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr | None:
    """Softmax of `inputs[0]` over `axis`; None, for the front end to do it, of other types than float32."""
    x = inputs[0]
    if str(x.ty.dtype.dtype) != "float32" or 0 in [int(n) for n in x.ty.shape]:
        return None
    return _softmax(bb, x, attributes, exact_coefficients())


def poly_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr | None:
    """The same with the polynomial `inputs[1]`, highest power first, for the exponential."""
    x, coefficients = inputs
    numbers = [float(c) for c in np.trim_zeros(coefficients.value.numpy(), "f")]
    return _softmax(bb, x, attributes, tuple(f32(c) for c in numbers))


@functools.cache
def exact_coefficients() -> tuple[Expr, ...]:
    """The exponential's on the reduced range, highest power first: off by 2^-25.8 of it, less than a rounding."""
    return tuple(f32(float(c)) for c in PolyExp(degree=6).polynomial().array())


def _softmax(
    bb: relax.BlockBuilder, x: relax.Expr, attributes: dict[str, Any], coefficients: Sequence[Expr]
) -> relax.Expr:
    def rows_of(data: relax.Expr) -> relax.Expr:
        shape = [int(n) for n in data.ty.shape]

        def body(x: tirx.Buffer, y: tirx.Buffer) -> None:
            kernel = _Kernel(flat(x), flat(y), *shape, coefficients, vector_lanes())
            with imported(kernel.lanes) if kernel.streamed else nullcontext():
                kernel.write()

        return call_kernel(bb, "softmax", [data], shape, body)

    return by_rows(bb, rows_of, x, attributes)


class _Kernel:
    """Writes the statements; one object for one kernel."""

    def __init__(
        self, x: tirx.Buffer, y: tirx.Buffer, rows: int, width: int, coefficients: Sequence[Expr], lanes: int
    ) -> None:
        self.x, self.y, self.rows, self.width = x, y, rows, width
        self.coefficients, self.lanes = list(coefficients), lanes
        self.streamed = streams(rows * width, width, lanes)

    def write(self) -> None:
        """The whole kernel."""
        if self.width > _LONGEST:
            with loop(self.rows) as row:
                self._long_row(T.bind(row * self.width))
            return
        few = max(1, PARALLEL_FROM // self.width)
        tasks = -(-self.rows // few)
        with T.parallel(0, tasks) if tasks > 1 else loop(tasks) as task:
            scratch = T.alloc_buffer((self.width,), "float32") if self.streamed else None
            count = T.bind(tirx.min(few, self.rows - task * few))
            with T.serial(0, count) as row:
                self._row(T.bind((task * few + row) * self.width), scratch)
            if self.streamed:
                fence()

    def _row(self, start: Expr, scratch: tirx.Buffer | None) -> None:
        """One row from `start` on; exponentials wait in `scratch`, or in the result's place."""
        kept, at = (self.y, start) if scratch is None else (scratch, 0)
        largest = self._largest(start, self.width)
        total = self._sum(start, self.width, largest, kept, at)
        factor = T.bind(f32(1) / total)
        with loop(self.width // self.lanes) as j:
            e = load(kept, at + j * self.lanes, self.lanes)
            self._store(e * factor, start + j * self.lanes, self.lanes)
        if rest := self.width % self.lanes:
            tail = self.width - rest
            store(self.y, load(kept, at + tail, rest) * factor, start + tail, rest)

    def _store(self, value: Expr, at: Expr, lanes: int) -> None:
        (store_past_caches if self.streamed else store)(self.y, value, at, lanes)

    def _largest(self, start: Expr, count: int) -> Expr:
        """The maximum of `count` elements from `start` on."""
        lanes = self.lanes
        largest: Expr = f32(-math.inf)
        if count >= lanes:
            top = T.alloc_buffer((lanes,), "float32")
            store(top, f32(-math.inf), 0, lanes)
            with loop(count // lanes) as j:
                store(top, tirx.max(load(top, 0, lanes), load(self.x, start + j * lanes, lanes)), 0, lanes)
            largest = across(T.bind(load(top, 0, lanes)), lanes, tirx.max)
        for j in range(count - count % lanes, count):
            largest = T.bind(tirx.max(largest, self.x[start + j]))
        return largest

    def _sum(
        self, start: Expr, count: int, largest: Expr, kept: tirx.Buffer | None = None, at: Expr | int = 0
    ) -> Expr:
        """The sum of `count` exponentials; they stay in `kept` from `at` on."""
        lanes, tail = self.lanes, count - count % self.lanes
        total: Expr = f32(0)
        if tail:
            sums = T.alloc_buffer((lanes,), "float32")
            store(sums, f32(0), 0, lanes)
            with loop(count // lanes) as j:
                e = self._exponentials(start + j * lanes, lanes, largest)
                if kept is not None:
                    store(kept, e, at + j * lanes, lanes)
                store(sums, load(sums, 0, lanes) + e, 0, lanes)
            total = across(T.bind(load(sums, 0, lanes)), lanes, lambda a, b: a + b)
        if rest := count % lanes:
            e = self._exponentials(start + tail, rest, largest)
            if kept is not None:
                store(kept, e, at + tail, rest)
            for i in range(rest):
                total = T.bind(total + (tirx.Shuffle([e], [i]) if rest > 1 else e))
        return total

    def _exponentials(self, at: Expr, lanes: int, largest: Expr) -> Expr:
        return T.bind(exponential(T.bind(load(self.x, at, lanes) - largest), self.coefficients))

    def _long_row(self, start: Expr) -> None:
        """A row that does not fit the cache, in blocks that do."""
        blocks, rest = -(-self.width // _BLOCK), self.width % _BLOCK
        tops = T.alloc_buffer((blocks,), "float32")
        totals = T.alloc_buffer((blocks,), "float32")

        def first(block: Expr | int, count: int) -> None:
            at = T.bind(start + block * _BLOCK)
            largest = self._largest(at, count)
            # A block of -inf alone has nothing to add; its differences would be NaN.
            bounded = T.bind(tirx.max(largest, f32(np.finfo(np.float32).min)))
            T.buffer_store(tops, bounded, [block])
            T.buffer_store(totals, self._sum(at, count, bounded), [block])

        with T.parallel(0, self.width // _BLOCK) as block:
            first(block, _BLOCK)
        if rest:
            first(blocks - 1, rest)
        largest, factor = self._join(tops, totals, blocks)

        def second(block: Expr | int, count: int) -> None:
            at = T.bind(start + block * _BLOCK)
            with loop(count // self.lanes) as j:
                place = T.bind(at + j * self.lanes)
                self._store(self._exponentials(place, self.lanes, largest) * factor, place, self.lanes)
            if tail := count % self.lanes:
                place = at + (count - tail)
                store(self.y, self._exponentials(place, tail, largest) * factor, place, tail)

        with T.parallel(0, self.width // _BLOCK) as block:
            second(block, _BLOCK)
            if self.streamed:
                fence()
        if rest:
            second(blocks - 1, rest)
            if self.streamed:
                fence()

    def _join(self, tops: tirx.Buffer, totals: tirx.Buffer, blocks: int) -> tuple[Expr, Expr]:
        """The row's maximum, and the reciprocal of its sum, from those of its blocks."""
        top = T.alloc_buffer((1,), "float32")
        total = T.alloc_buffer((1,), "float64")
        T.buffer_store(top, tops[0], [0])
        T.buffer_store(total, tirx.const(0, "float64"), [0])
        with loop(blocks) as block:
            T.buffer_store(top, tirx.max(top[0], tops[block]), [0])
        with loop(blocks) as block:
            part = totals[block] * exponential(tops[block] - top[0], self.coefficients)
            T.buffer_store(total, total[0] + part.astype("float64"), [0])
        return T.bind(top[0]), T.bind((tirx.const(1, "float64") / total[0]).astype("float32"))
