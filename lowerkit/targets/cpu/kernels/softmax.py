"""Softmax over rows: the kept operator, the polynomial one, online and two-pass softmax.

A row that fits in cache is read three times, but from memory once: its maximum, the exponentials and their sum, and the
quotients. A longer one is read twice. The first pass sums exponentials relative to a guess, an element of the row,
which will do as long as none exceeds it by so much that the sum is too large. It takes blocks that stay in the nearest
cache and finds the maximum of each beside the sum; a block beyond the guess's reach is summed anew relative to its own.
Such pairs of a number and a sum are joined as online softmax does (Milakov and Gimelshein, 2018), in float64. The
second pass computes the exponentials anew, times the reciprocal of the sum.

Sums are of one partial result per lane and some hundred terms, so that rounding does not grow with the row. What is
larger than the last cache is stored past the caches, which saves reading it first.

Error, relative to any element above 2^-126: 2e-6, and half a unit in the last place of its distance to the maximum or
to the guess, which is rounded before it is an exponent: 2^-20 as far as 32 from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from lowerkit.targets.cpu.kernels import exponential, streaming
from lowerkit.targets.cpu.kernels.exponential import Exponential, exact_exponential, polynomial_exponential
from lowerkit.targets.cpu.kernels.softmax_rows import by_rows
from lowerkit.targets.cpu.kernels.streaming import LINE, fence, prefetch, store_past_caches, streams
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
#: Elements that are summed by themselves, so that rounding does not grow with the row.
_GROUP = 1 << 10
#: Blocks of a part of a long row, which one thread sums.
_PART = 16
#: How far an element may exceed the guess: sums stay float32, and differences below 32 are off by 2^-20 at most.
_REACH = 31.0
_LEAST = float(np.finfo(np.float32).min)


def exact_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr | None:
    """Softmax of `inputs[0]` over `axis`; None, for the front end to do it, of other types than float32."""
    x = inputs[0]
    if str(x.ty.dtype.dtype) != "float32" or 0 in [int(n) for n in x.ty.shape]:
        return None
    return _softmax(bb, x, attributes, exact_exponential)


def poly_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr | None:
    """The same with the polynomial `inputs[1]`, highest power first, for the exponential."""
    x, coefficients = inputs
    numbers = [float(c) for c in np.trim_zeros(coefficients.value.numpy(), "f")]
    p = [f32(c) for c in numbers]
    return _softmax(bb, x, attributes, lambda z: polynomial_exponential(z, p))


def _softmax(bb: relax.BlockBuilder, x: relax.Expr, attributes: dict[str, Any], e: Exponential) -> relax.Expr:
    def rows_of(data: relax.Expr) -> relax.Expr:
        rows, width = (int(n) for n in data.ty.shape)

        def body(x: tirx.Buffer, y: tirx.Buffer) -> None:
            kernel = _Kernel(flat(x), flat(y), rows, width, e, vector_lanes())
            with exponential.imported(), streaming.imported(kernel.lanes):
                kernel.write()

        return call_kernel(bb, "softmax", [data], (rows, width), body)

    return by_rows(bb, rows_of, x, attributes)


class _Kernel:
    """Writes the statements; one object for one kernel."""

    def __init__(
        self, x: tirx.Buffer, y: tirx.Buffer, rows: int, width: int, e: Exponential, lanes: int
    ) -> None:
        self.x, self.y, self.rows, self.width = x, y, rows, width
        self.e, self.lanes = e, lanes
        self.streamed = streams(rows * width, width, lanes)
        #: Whether a row's exponentials wait in cache for their sum.
        self.kept = width <= (_BLOCK if self.streamed else _LONGEST)

    def write(self) -> None:
        """The whole kernel."""
        if self.width > _LONGEST:
            with loop(self.rows) as row:
                self._long_row(T.bind(row * self.width), T.parallel)
            return
        few = max(1, PARALLEL_FROM // self.width)
        tasks = -(-self.rows // few)
        with T.parallel(0, tasks) if tasks > 1 else loop(tasks) as task:
            scratch = T.alloc_buffer((self.width,), "float32") if self.kept and self.streamed else None
            count = T.bind(tirx.min(few, self.rows - task * few))
            with T.serial(0, count) as row:
                start = T.bind((task * few + row) * self.width)
                if self.kept:
                    self._row(start, scratch)
                else:
                    self._long_row(start, T.serial)
            if self.kept and self.streamed:
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
        self,
        start: Expr,
        count: int,
        largest: Expr,
        kept: tirx.Buffer | None = None,
        at: Expr | int = 0,
        seen: tirx.Buffer | None = None,
    ) -> Expr:
        """The sum of `count` exponentials; they stay in `kept` from `at` on, the maxima of the lanes in `seen`."""
        lanes, tail = self.lanes, count - count % self.lanes
        total: Expr = f32(0)
        if tail:
            sums = T.alloc_buffer((lanes,), "float32")
            store(sums, f32(0), 0, lanes)

            def add(group: Expr | int, size: int) -> None:
                partial = T.alloc_buffer((lanes,), "float32")
                store(partial, f32(0), 0, lanes)

                def term(j: Expr) -> None:
                    x = T.bind(load(self.x, start + j, lanes))
                    if seen is not None:
                        store(seen, tirx.max(load(seen, 0, lanes), x), 0, lanes)
                    e = self._exponentials(x, largest)
                    if kept is not None:
                        store(kept, e, at + j, lanes)
                    store(partial, load(partial, 0, lanes) + e, 0, lanes)

                self._by_vectors(start, group, size, term)
                store(sums, load(sums, 0, lanes) + load(partial, 0, lanes), 0, lanes)

            with loop(tail // _GROUP) as i:
                add(i * _GROUP, _GROUP)
            if tail % _GROUP:
                add(tail - tail % _GROUP, tail % _GROUP)
            total = across(T.bind(load(sums, 0, lanes)), lanes, lambda a, b: a + b)
        if rest := count % lanes:
            x = T.bind(load(self.x, start + tail, rest))
            e = self._exponentials(x, largest)
            if kept is not None:
                store(kept, e, at + tail, rest)
            for i in range(rest):
                if seen is not None:
                    T.buffer_store(seen, tirx.max(seen[i], _lane(x, i, rest)), [i])
                total = T.bind(total + _lane(e, i, rest))
        return total

    def _by_vectors(self, start: Expr, first: Expr | int, count: int, body: Callable[[Expr], None]) -> None:
        """`body` at `first`, and on by vectors for `count`; lines of long rows are asked for ahead of that."""
        line = max(LINE, self.lanes)
        if self.kept or count % line:
            with loop(count // self.lanes) as j:
                body(first + j * self.lanes)
            return
        with loop(count // line) as i:
            prefetch(self.x, start + first + i * line)
            for j in range(0, line, self.lanes):
                body(first + i * line + j)

    def _exponentials(self, x: Expr, largest: Expr) -> Expr:
        return T.bind(self.e(T.bind(x - largest)))

    def _long_row(self, start: Expr, over: Callable[[int, int], T.frame.ForFrame]) -> None:
        """A row that is read twice, in parts of blocks; `over` makes the loop of the parts."""
        blocks, rest = self.width // _BLOCK, self.width % _BLOCK
        parts = -(-blocks // _PART)
        tops = T.alloc_buffer((parts + 1,), "float32")
        totals = T.alloc_buffer((parts + 1,), "float64")
        with over(0, parts) as part:
            self._begin(T.bind(start + part * (_PART * _BLOCK)), tops, totals, part)
            with T.serial(0, T.bind(tirx.min(_PART, blocks - part * _PART))) as block:
                self._add_block(start + (part * _PART + block) * _BLOCK, _BLOCK, tops, totals, part)
        if rest:
            self._begin(start + blocks * _BLOCK, tops, totals, parts)
            self._add_block(start + blocks * _BLOCK, rest, tops, totals, parts)
        largest, factor = self._join(tops, totals, parts + bool(rest))

        def second(block: Expr | int, count: int) -> None:
            at, tail = T.bind(start + block * _BLOCK), count % self.lanes

            def divide(j: Expr | int, lanes: int = self.lanes) -> None:
                e = self._exponentials(load(self.x, at + j, lanes), largest)
                self._store(e * factor, at + j, lanes)

            self._by_vectors(at, 0, count - tail, divide)
            if tail:
                divide(count - tail, tail)
            if self.streamed:
                fence()

        with over(0, blocks) as block:
            second(block, _BLOCK)
        if rest:
            second(blocks, rest)

    def _begin(self, start: Expr, tops: tirx.Buffer, totals: tirx.Buffer, part: Expr | int) -> None:
        """The pair of `part`, which begins at `start`, before its first block: its first element will do."""
        T.buffer_store(tops, tirx.max(self.x[start], f32(_LEAST)), [part])  # of -inf differences are NaN
        T.buffer_store(totals, tirx.const(0, "float64"), [part])

    def _add_block(
        self, start: Expr, count: int, tops: tirx.Buffer, totals: tirx.Buffer, part: Expr | int
    ) -> None:
        """Add `count` elements to the pair of `part`.

        The block's maximum is found beside the sum. Where it is so far above the pair's number that the sum may be
        too large, as in few blocks, that becomes the number, and the block is summed anew from the cache.
        """
        total = T.alloc_buffer((1,), "float32")
        before = T.bind(tops[part])
        start = T.bind(start)
        largest = T.alloc_buffer((self.lanes,), "float32")
        store(largest, before, 0, self.lanes)
        T.buffer_store(total, self._sum(start, count, before, seen=largest), [0])
        top = across(T.bind(load(largest, 0, self.lanes)), self.lanes, tirx.max)
        with T.If(top > before + f32(_REACH)), T.Then():
            T.buffer_store(total, self._sum(start, count, top), [0])
            factor = self.e(before - top).astype("float64")
            T.buffer_store(totals, totals[part] * factor, [part])
            T.buffer_store(tops, top, [part])
        T.buffer_store(totals, totals[part] + total[0].astype("float64"), [part])

    def _join(self, tops: tirx.Buffer, totals: tirx.Buffer, parts: int) -> tuple[Expr, Expr]:
        """The largest of the parts' numbers, and the reciprocal of the row's sum relative to it."""
        top = T.alloc_buffer((1,), "float32")
        total = T.alloc_buffer((1,), "float64")
        T.buffer_store(top, tops[0], [0])
        T.buffer_store(total, tirx.const(0, "float64"), [0])
        with loop(parts) as part:
            T.buffer_store(top, tirx.max(top[0], tops[part]), [0])
        with loop(parts) as part:
            factor = self.e(tops[part] - top[0]).astype("float64")
            T.buffer_store(total, total[0] + totals[part] * factor, [0])
        return T.bind(top[0]), T.bind((tirx.const(1, "float64") / total[0]).astype("float32"))


def _lane(vector: Expr, index: int, lanes: int) -> Expr:
    return tirx.Shuffle([vector], [index]) if lanes > 1 else vector
