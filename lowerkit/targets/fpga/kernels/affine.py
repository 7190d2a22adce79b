"""Arithmetic of single elements where a format is affine: exact before it is rounded once, half to even."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lowerkit.targets.fpga.formats import Bipolar, Format
from lowerkit.targets.fpga.kernels.lanes import broadcast, elements
from lowerkit.targets.fpga.kernels.requantise import HALF, Line, Requantise, small, total
from lowerkit.targets.fpga.kernels.schedule import Built, built
from lowerkit.targets.fpga.lang.expr import Expr, Operand, Range, Select, Slice, clamp
from lowerkit.targets.fpga.lang.program import Builder

Shape = Sequence[int]
#: Sums of two activations are proven for each code of the narrower one.
WIDEST = 12


def scaled(
    name: str, shape: Shape, x: Format, y: Format, *, factor: np.ndarray | None = None,
    offset: np.ndarray | None = None, within: tuple[int, int] | None = None,
) -> Built:  # fmt: skip
    """y = factor x + offset; codes x [*shape] to y of the shape that numpy broadcasts to.

    Args:
        factor, offset: numbers that broadcast with `shape`; 1 and 0 where left out.
        within: the least and the greatest code of x that is told from those beyond it.
    """
    f, o = (
        np.atleast_1d(np.float64(1) if factor is None else factor),
        np.atleast_1d(np.float64(0) if offset is None else offset),
    )
    constants = np.broadcast_shapes(f.shape, o.shape)
    out = np.broadcast_shapes(tuple(shape), constants)
    k = Builder(
        name, f"y = {'f x' if factor is not None else 'x'}{' + c' if offset is not None else ''}, {x} to {y}"
    )
    source, target = k.input("x", shape, x.range), k.output("y", out, y.range)
    low, high = within or (x.range.low, x.range.high)
    held = Range(max(low, x.range.low), min(high, x.range.high))
    lines = []
    for a, b in zip(
        np.broadcast_to(f, constants).ravel(), np.broadcast_to(o, constants).ravel(), strict=True
    ):
        step = Fraction(float(a)) * x.scale / y.scale
        lines.append(Line(held, step, Fraction(float(b)) / y.scale - x.zero * step))
    exact = Requantise(k, "y", lines, y)
    with elements(k, out) as index:
        value = clamp(source[broadcast(index, shape)], held.low, held.high)
        k.store(target, index, exact.of(value, _flat(broadcast(index, constants), constants)))
    return built(k.finish())


def multiply(name: str, shape: Shape, other: Shape, a: Format, b: Format, y: Format) -> Built:
    """y = a b for codes a [*shape] and b [*other]."""
    k, out = Builder(name, f"y = a b, {a} and {b} to {y}"), np.broadcast_shapes(tuple(shape), tuple(other))
    left, right, target = (
        k.input("a", shape, a.range),
        k.input("b", other, b.range),
        k.output("y", out, y.range),
    )
    first, second = a.range.less(a.zero), b.range.less(b.zero)
    ends = [p * q for p in (first.low, first.high) for q in (second.low, second.high)]
    exact = Requantise(k, "y", [Line(Range(min(ends), max(ends)), a.scale * b.scale / y.scale)], y)
    with elements(k, out) as index:
        p, q = left[broadcast(index, shape)] - a.zero, right[broadcast(index, other)] - b.zero
        k.store(target, index, exact.of(p * q))
    return built(k.finish())


def add(
    name: str, shape: Shape, other: Shape, a: Format, b: Format, y: Format, *, negate: bool = False
) -> Built:
    """y = a + b, or a - b if `negate`, for codes a [*shape] and b [*other]."""
    k, out = (
        Builder(name, f"y = a {'-' if negate else '+'} b, {a} and {b} to {y}"),
        np.broadcast_shapes(tuple(shape), tuple(other)),
    )
    left, right, target = (
        k.input("a", shape, a.range),
        k.input("b", other, b.range),
        k.output("y", out, y.range),
    )
    p, q = a.scale / y.scale, (-b.scale if negate else b.scale) / y.scale
    pair = Pair(k, a.range, b.range, p, q, -a.zero * p - b.zero * q, y)
    with elements(k, out) as index:
        k.store(target, index, pair.of(left[broadcast(index, shape)], right[broadcast(index, other)]))
    return built(k.finish())


class Pair:
    """Brings p a + q b + c, in output steps, to codes exactly, for numbers a and b of two ranges.

    As in `requantise`, with a product for each number. For every b the results are those of a line in a, whose sum
    proves them.
    """

    def __init__(
        self, k: Builder, a: Range, b: Range, p: Fraction, q: Fraction, c: Fraction, out: Format
    ) -> None:
        """Raises ValueError where 63 bits do not suffice, or both ranges are too wide to be proven."""
        if isinstance(out, Bipolar):
            raise ValueError(f"{k.name}: no kernel for the sign of a sum")
        self.swapped = a.bits < b.bits
        if self.swapped:
            a, b, p, q = b, a, q, p
        if b.bits > WIDEST:
            raise ValueError(f"{k.name}: no exact sum of two formats of more than {WIDEST} bits")
        self.k, self.out = k, out
        lines = [Line(a, p, q * n + c) for n in range(b.low, b.high + 1)]
        wanted, ties = [line.halves() for line in lines], sum(line.ties() for line in lines)
        for self.shift in range(62):
            unit = 1 << self.shift
            self.m, self.n = math.ceil(p * unit), math.ceil(q * unit)
            over = (self.m - p * unit, self.n - q * unit)
            # At least the exact number for every a and b.
            self.c = math.ceil((c + HALF) * unit - a.low * over[0] - b.low * over[1])
            starts = [self.n * n + self.c for n in range(b.low, b.high + 1)]
            slope = Fraction(self.m, unit)
            if any(
                total(a, slope, Fraction(at, unit)) != sums for at, sums in zip(starts, wanted, strict=True)
            ):
                continue
            self.rest = 0
            if ties:
                self.rest = math.floor(a.high * over[0] + b.high * over[1] + self.c - (c + HALF) * unit) + 1
            if self.rest < unit and sum(small(a, slope, at, unit, self.rest) for at in starts) == ties:
                break
        else:
            raise ValueError(f"{k.name}: no multipliers of 63 bits are exact")

    def of(self, a: Expr, b: Expr) -> Expr:
        """The code."""
        if self.swapped:
            a, b = b, a
        raised = self.k.let("raised", a * self.m + b * self.n + self.c)
        found = self.k.let("nearest", raised >> self.shift)
        if self.rest:
            tie = Slice(raised, 0, self.shift) < self.rest
            found = self.k.let("even", Select(tie, found - Slice(found, 0, 1), found))
        return clamp(
            found + self.out.zero if self.out.zero else found, self.out.range.low, self.out.range.high
        )


def _flat(index: Sequence[Operand], shape: Sequence[int]) -> Operand:
    """The place of an element in row-major order."""
    found: Operand = 0
    for i, size in zip(index, shape, strict=True):
        if size > 1:
            found = i if isinstance(found, int) and found == 0 else found * size + i
    return found
