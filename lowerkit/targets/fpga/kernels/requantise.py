"""Exact requantisation: from an accumulator to codes of any scale, as a product and a shift.

An integer sum stands for factor * sum + offset output steps, both rational: for a product of quantised numbers the
factor is s_x s_w / s_y, as in Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference (CVPR 2018), section 2.2. There, the factor is rounded to a multiplier of 31 bits and
the result may differ from the formula's by one. Here, multiplier and shift are the least with which it never does.

With M = ceil(factor 2^S) and C = ceil((offset + 1/2) 2^S - low (M - factor 2^S)), the number (sum M + C) / 2^S is
at least factor sum + offset + 1/2 for every sum from `low` on, and so is its floor. Two functions of which one is
nowhere smaller are equal where their sums over the interval are; and sums of floors of an arithmetic progression
take a logarithmic number of steps (Graham, Knuth and Patashnik, Concrete Mathematics, 1994, section 3.5). So
equality is proven for every sum, however many there are, for the least S that has it. Rounding is then half up. In
a tie, what is left below the shift is small, at most high (M - factor 2^S) and the rounding of C; S is such that as
many sums leave so little as there are ties, which are counted by a congruence. So those are the ties, and their odd
results go back by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lowerkit.targets.fpga.formats import Bipolar, Fixed, Format
from lowerkit.targets.fpga.kernels.narrow import narrow
from lowerkit.targets.fpga.lang.expr import (
    LARGEST,
    Array,
    Expr,
    Operand,
    Range,
    Select,
    Slice,
    clamp,
    expr,
    maximum,
    minimum,
)
from lowerkit.targets.fpga.lang.program import Builder

HALF = Fraction(1, 2)


def floor_sum(count: int, a: int, b: int, m: int) -> int:
    """The sum of floor((a i + b) / m) for i from 0 to count - 1, for whole a and b, and m > 0."""
    found = 0
    while count > 0:
        found += (count - 1) * count // 2 * (a // m) + count * (b // m)
        a, b = a % m, b % m
        last = a * count + b
        if last < m:
            break
        # Count lattice points along the other axis.
        count, a, b, m = last // m, m, last % m, a
    return found


@dataclass(frozen=True)
class Line:
    """What a column's sums stand for: factor * sum + offset output steps, for sums of `numbers`."""

    numbers: Range
    factor: Fraction
    offset: Fraction = Fraction(0)

    def held(self, least: int, most: int) -> Line:
        """For the sums alone whose results may lie between two codes; all others saturate as the ends do."""
        low, high = self.numbers.low, self.numbers.high
        if not self.factor:
            return Line(Range(low, low), self.factor, self.offset)
        ends = [(end - self.offset) / self.factor for end in (least - 1, most + 1)]
        first, last = math.floor(min(ends)), math.ceil(max(ends))
        return Line(Range(min(max(low, first), high), max(min(high, last), low)), self.factor, self.offset)

    def halves(self) -> int:
        """The sum over `numbers` of the results, rounded half up."""
        return total(self.numbers, self.factor, self.offset + HALF)

    def ties(self) -> int:
        """How many sums of `numbers` stand for a number half way between two steps."""
        # 2 (p sum + u) = (2 t - 1) d, divided by what 2 p and 2 d share: solvable only if that divides d + 2 u.
        d = math.lcm(self.factor.denominator, self.offset.denominator)
        p, u = int(self.factor * d), int(self.offset * d)
        shared = math.gcd(2 * p, 2 * d)
        if (d + 2 * u) % shared:
            return 0
        a, b, c = 2 * p // shared, 2 * d // shared, (d + 2 * u) // shared
        first = (-c * pow(a, -1, b)) % b if b > 1 else 0
        low, high = self.numbers.low, self.numbers.high
        return (high - low - (first - low) % b) // b + 1


def total(numbers: Range, slope: Fraction, start: Fraction) -> int:
    """The sum of floor(slope n + start) for every n of a range."""
    d = math.lcm(slope.denominator, start.denominator)
    p, q = int(slope * d), int(start * d)
    return floor_sum(numbers.high - numbers.low + 1, p, numbers.low * p + q, d)


def multipliers(lines: Sequence[Line]) -> tuple[int, list[int], list[int], list[int]]:
    """The least shift S for all lines; M, C, and the bound of what is left of a tie, 0 without ties, of each.

    Raises ValueError where 63 bits do not suffice.
    """
    wanted, ties = [line.halves() for line in lines], [line.ties() for line in lines]
    order = list(range(len(lines)))
    for shift in range(62):
        found: dict[int, tuple[int, int, int]] = {}
        for place, i in enumerate(order):
            each = _multiplier(lines[i], shift, wanted[i], ties[i])
            if each is None:
                # What fails at one shift often fails at the next: ask it first.
                order.insert(0, order.pop(place))
                break
            found[i] = each
        else:
            m, c, rest = (list(column) for column in zip(*(found[i] for i in range(len(lines))), strict=True))
            return shift, m, c, rest
    raise ValueError("no multiplier of 63 bits is exact")


def _multiplier(line: Line, shift: int, wanted: int, ties: int) -> tuple[int, int, int] | None:
    """M, C and the bound of ties at a shift, or None where they are not exact. Raises ValueError past 63 bits."""
    numbers, unit = line.numbers, 1 << shift
    scaled, start = line.factor * unit, (line.offset + HALF) * unit
    m = math.ceil(scaled)
    c = math.ceil(start - numbers.low * (m - scaled))
    ends = (numbers.low * m, numbers.high * m, numbers.low * m + c, numbers.high * m + c, m, c)
    if max(map(abs, ends)) > LARGEST:
        raise ValueError(f"sums from {numbers.low} to {numbers.high} need a multiplier of more than 63 bits")
    slope = Fraction(m, unit)
    if total(numbers, slope, Fraction(c, unit)) != wanted:
        return None
    if not ties:
        return m, c, 0
    rest = math.floor(numbers.high * (m - scaled) + c - start) + 1
    return (m, c, rest) if rest < unit and small(numbers, slope, c, unit, rest) == ties else None


def small(numbers: Range, slope: Fraction, start: int, unit: int, rest: int) -> int:
    """For how many n of a range the bits of (slope unit n + start) below `unit` are less than `rest`."""
    return total(numbers, slope, Fraction(start, unit)) - total(numbers, slope, Fraction(start - rest, unit))


class Requantise:
    """Brings sums to codes of a format, exactly: factor sum + offset, rounded half to even, plus the zero's code."""

    def __init__(self, k: Builder, label: str, lines: Sequence[Line], out: Format) -> None:
        """A line for each column, or one for all. Raises ValueError where 63 bits do not suffice."""
        self.k, self.label, self.out = k, label, out
        self.bipolar = isinstance(out, Bipolar)
        if self.bipolar:
            if any(line.factor <= 0 for line in lines):
                raise ValueError(
                    f"{k.name}: no kernel for the sign of a product with a number that is not positive"
                )
            # From this sum on, the number is not negative; one beyond the range is never reached.
            first = [math.ceil(-line.offset / line.factor) for line in lines]
            bounds = [
                min(max(n, line.numbers.low), line.numbers.high + 1)
                for n, line in zip(first, lines, strict=True)
            ]
            self.first = self._table("first", bounds)
            return
        least, most = out.range.low - out.zero, out.range.high - out.zero
        held = [line.held(least, most) for line in lines]
        self.low = self._table("low", [line.numbers.low for line in held])
        self.high = self._table("high", [line.numbers.high for line in held])
        self.holds_low = any(a.numbers.low > b.numbers.low for a, b in zip(held, lines, strict=True))
        self.holds_high = any(a.numbers.high < b.numbers.high for a, b in zip(held, lines, strict=True))
        self.shift, m, c, rest = multipliers(held)
        self.m, self.c = self._table("m", m), self._table("c", c)
        ends = [
            sorted((line.numbers.low * f, line.numbers.high * f)) for line, f in zip(held, m, strict=True)
        ]
        self.product = Range(min(e[0] for e in ends), max(e[1] for e in ends))
        raised = [(low + add, high + add) for (low, high), add in zip(ends, c, strict=True)]
        self.raised = Range(min(r[0] for r in raised), max(r[1] for r in raised))
        self.ties = any(rest)
        self.rest = self._table("rest", rest)

    def of(self, number: Operand, index: Operand = 0, label: str = "") -> Expr:
        """The code of a sum of column `index`; `label` distinguishes uses in one kernel."""
        name, k = f"{self.label}{label}", self.k
        if self.bipolar:
            return Select(expr(number) >= self._at(self.first, index), expr(1), expr(-1))
        held = expr(number)
        if self.holds_low:
            held = maximum(held, self._at(self.low, index))
        if self.holds_high:
            held = minimum(held, self._at(self.high, index))
        held = k.let(f"{name}_held", held)
        # Intervals do not know which multiplier goes with which sums.
        product = k.let(f"{name}_product", held * self._at(self.m, index), self.product)
        raised = k.let(f"{name}_raised", product + self._at(self.c, index), self.raised)
        found = k.let(f"{name}_nearest", raised >> self.shift)
        if self.ties:
            tie = Slice(raised, 0, self.shift) < self._at(self.rest, index)
            found = k.let(f"{name}_even", Select(tie, found - Slice(found, 0, 1), found))
        return clamp(
            found + self.out.zero if self.out.zero else found, self.out.range.low, self.out.range.high
        )

    def _table(self, kind: str, numbers: list[int]) -> Array | int:
        if len(set(numbers)) == 1:
            return numbers[0]
        return self.k.constant(Array.constant(f"{self.k.name}_{self.label}_{kind}", np.array(numbers)))

    def _at(self, table: Array | int, index: Operand) -> Operand:
        return table if isinstance(table, int) else table[index]


def converted(
    k: Builder, x: Format, y: Format, rounding: str = "half-even", label: str = "y"
) -> Callable[[Expr], Expr]:
    """What turns a code of x into the code of y nearest to it; exactly, half to even, where a format is affine."""
    if isinstance(x, Fixed) and isinstance(y, Fixed):
        fraction = x.fraction
        return lambda code: narrow(code, fraction, y, rounding)
    if x == y:
        return lambda code: code
    factor = x.scale / y.scale
    return Requantise(k, label, [Line(x.range, factor, -x.zero * factor)], y).of
