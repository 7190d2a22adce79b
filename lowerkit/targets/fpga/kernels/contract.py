"""Sums of products, in loops that share multipliers over time.

Each output position has a matrix-vector product: for every column, a sum over the inner axes. A reuse factor takes
each axis in steps; within a step, everything is computed at once:

    for every position
        for every step of the inner axes        one after the other, sums are kept in between
            for every step of the columns       the pipelined loop: a step each cycle
                for every column of the step, for every inner element of the step: unrolled

The nest is perfect, which high-level synthesis flattens to one pipeline. Inner steps stand outside of the columns', so
that a sum is not needed again in the very next cycle.

Several positions may be computed at once. They share what does not depend on the position, weights or keys, so that
multipliers grow with their number while the words of it that are read each cycle do not: Sarkar et al., Edge-MoE
(ICCAD 2023), section IV-A, reorder attention to that end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from lowerkit.targets.fpga.lang.expr import Const, Expr, Operand, Range, Select, Var, equal
from lowerkit.targets.fpga.lang.program import Builder

Index = tuple[Operand, ...]


@dataclass(frozen=True)
class Axis:
    """A loop's name and its length, taken in `steps` equal steps."""

    name: str
    size: int
    steps: int = 1

    @property
    def lanes(self) -> int:
        """Elements of one step."""
        return self.size // self.steps


def constant_sums(weights: np.ndarray, x: Range, bias: np.ndarray | None = None) -> Range:
    """The least range that holds bias + sum over inner of x w for every column and for what is summed on the way.

    weights [inner, columns]; bias [columns]; x any numbers of its range. Positive and negative weights count
    separately, as in FINN's minimisation of accumulators.
    """
    peak = max(abs(x.low), abs(x.high)) * float(np.abs(weights).max()) * len(weights)
    # Past int64, in Python's integers.
    numbers = weights.astype(np.int64 if peak < 2**62 else object)
    positive, negative = np.maximum(numbers, 0).sum(0), np.minimum(numbers, 0).sum(0)
    low, high = min(x.low, 0), max(x.high, 0)
    start = np.zeros(weights.shape[1], np.int64) if bias is None else bias
    lows = [int(p) * low + int(n) * high + int(b) for p, n, b in zip(positive, negative, start, strict=True)]
    highs = [int(p) * high + int(n) * low + int(b) for p, n, b in zip(positive, negative, start, strict=True)]
    return Range(min(lows), max(highs))


def product_sums(inner: int, a: Range, b: Range) -> Range:
    """The range of sums of `inner` products of any numbers of two ranges, and of what is summed on the way."""
    ends = [p * q for p in (a.low, a.high) for q in (b.low, b.high)]
    return Range(min(0, inner * min(ends)), max(0, inner * max(ends)))


def contract(
    k: Builder,
    positions: Sequence[Axis],
    inner: Sequence[Axis],
    columns: Sequence[Axis],
    *,
    sums: Range,
    initial: Callable[[Index], Operand],
    term: Callable[[Index, Index, Index], Expr],
    finish: Callable[[Index, Index, Var], None],
    prefix: str = "",
    at_once: int = 1,
) -> None:
    """Write the nest.

    Args:
        sums: holds every sum, those on the way included.
        initial: what the sum of a column starts from.
        term: the product at a position, an inner element and a column.
        finish: stores the sum of a position and a column. It runs after every inner step; the last one's stays.
        prefix: of the names of sums, where a kernel has more than one nest.
        at_once: neighbours along the last of the positions that are computed together; the last group may be smaller.
    """
    outer = [(axis.name, axis.size, False) for axis in positions]
    if at_once > 1:
        outer[-1] = (positions[-1].name, -(-positions[-1].size // at_once), False)
    chunks = [(f"{axis.name}_step", axis.steps, True) for axis in inner]
    steps = [(f"{axis.name}_step", axis.steps, False) for axis in columns]
    nest = [name for name, count, _ in (*outer, *chunks, *steps) if count > 1]
    if not nest:
        outer.append((f"{prefix}once", 1, False))
    pipelined = nest[-1] if nest else f"{prefix}once"
    with ExitStack() as stack:

        def loop(name: str, count: int, serial: bool) -> Operand:
            if count == 1 and name != f"{prefix}once":
                return 0
            return stack.enter_context(k.loop(name, count, serial=serial, pipeline=name == pipelined))

        position = tuple(loop(*each) for each in outer)[: len(positions)]
        chunked = math.prod(axis.steps for axis in inner) > 1
        lanes = [at_once] if at_once > 1 else []
        kept = k.local(f"{prefix}kept", [*lanes, *(axis.size for axis in columns)], sums) if chunked else None
        chunk = [loop(*each) for each in chunks]
        step = [loop(*each) for each in steps]
        column = tuple(
            _element(s, axis, loop(axis.name, axis.lanes, False))
            for s, axis in zip(step, columns, strict=True)
        )
        lane: Index = ()
        if at_once > 1:
            lane = (stack.enter_context(k.loop(f"{positions[-1].name}_lane", at_once)),)
            position = (*position[:-1], _lane(k, stack, positions[-1], position[-1], at_once, lane[0]))
        start = initial(column)
        if kept is not None:
            first = equal(_sum(chunk), 0)
            start = Select(first, start if isinstance(start, Expr) else Const(start), kept[(*lane, *column)])
        total = k.register(f"{prefix}total", start, sums)
        with ExitStack() as reduction:
            element = tuple(
                _element(
                    c,
                    axis,
                    reduction.enter_context(k.loop(axis.name, axis.lanes, serial=True))
                    if axis.lanes > 1
                    else 0,
                )
                for c, axis in zip(chunk, inner, strict=True)
            )
            k.update(total, total + term(position, element, column))
        if kept is not None:
            k.store(kept, (*lane, *column), total)
        finish(position, column, total)


def _lane(k: Builder, stack: ExitStack, axis: Axis, group: Operand, at_once: int, lane: Operand) -> Operand:
    """The place along an axis of one of a group; what lies behind the end is left out."""
    place = lane if isinstance(group, int) else group * at_once + lane
    if axis.size % at_once == 0 or not isinstance(place, Expr):
        return place
    stack.enter_context(k.when(place < axis.size))
    return k.let(f"{axis.name}_place", place, Range(0, axis.size - 1))


def _element(step: Operand, axis: Axis, lane: Operand) -> Operand:
    """The index along an axis."""
    if axis.lanes == 1:
        return step
    return lane if axis.steps == 1 else step * axis.lanes + lane


def _sum(counters: Sequence[Operand]) -> Operand:
    total: Operand = 0
    for counter in counters:
        if isinstance(counter, Expr):
            total = counter if isinstance(total, int) else total + counter
    return total
