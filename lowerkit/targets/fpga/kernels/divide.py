"""Division by constants, exactly: as a product and a shift."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowerkit.targets.fpga.lang.expr import (
    Array,
    Const,
    Expr,
    Operand,
    Range,
    Select,
    Slice,
    Var,
    clamp,
    equal,
    expr,
)
from lowerkit.targets.fpga.lang.program import Builder


class Division:
    """Divides numbers of a range by constants.

    For 0 <= t < 2^N and a divisor d, let m = ceil(2^p / d) and e = m d - 2^p. Then t m / 2^p = t / d + t e / (d 2^p),
    which has the floor of t / d where t e < 2^p (Granlund and Montgomery, 1994), as t / d lies 1 / d or more below the
    next whole number. p is the least that meets this for the largest t and every divisor. Powers of two that all
    divisors share are shifted out before, which leaves a narrower product: t / (2^s d) and floor(t / 2^s) / d have the
    same floor. Negative numbers are lifted by a multiple of the divisor.
    """

    def __init__(self, k: Builder, name: str, numbers: Range, divisors: Sequence[int]) -> None:
        """`numbers`: what is divided; `divisors`: each greater than 0. Raises ValueError if 63 bits do not suffice."""
        self.k, self.name = k, name
        every = math.gcd(*(int(d) for d in divisors))
        self.shared = (every & -every).bit_length() - 1
        odd = [int(d) >> self.shared for d in divisors]
        low, high = numbers.low >> self.shared, numbers.high >> self.shared
        lifts = [max(0, -(low // d)) for d in odd]
        self._largest = largest = max(high + lift * d for lift, d in zip(lifts, odd, strict=True))
        self.shift = next(p for p in range(256) if all(largest * (-(2**p) % d) < 2**p for d in odd))
        factors = [-(-(2**self.shift) // d) for d in odd]
        if self.shift > 62 or largest * max(factors) > 2**62:
            raise ValueError(
                f"{k.name}: {numbers.low} to {numbers.high} is too wide to be divided by a product"
            )
        self._product = Range(0, largest * max(factors))
        self._quotients = Range(min(low // d for d in odd), max(high // d for d in odd))
        self._lifts = self._table("lift", lifts)
        self._raised = self._table("raised", [lift * d for lift, d in zip(lifts, odd, strict=True)])
        self._factors = self._table("factor", factors)

    def floor(self, number: Operand, index: Operand = 0) -> Expr:
        """floor(number / divisors[index])."""
        lift, raised = self._at(self._lifts, index), self._at(self._raised, index)
        found = expr(number)
        if self.shared:
            # More than 62 bits leave the sign alone, as 62 do.
            found = found >> min(self.shared, 62)
        if isinstance(lift, Const) and lift.value == 0:
            return (found * self._at(self._factors, index)) >> self.shift
        # Intervals do not know which lift goes with which factor.
        lifted = self.k.let(f"{self.name}_lifted", found + raised, Range(0, self._largest))
        product = self.k.let(f"{self.name}_product", lifted * self._at(self._factors, index), self._product)
        return self.k.let(f"{self.name}_floor", (product >> self.shift) - lift, self._quotients)

    def _table(self, kind: str, numbers: list[int]) -> Array | Const:
        if len(set(numbers)) == 1:
            return Const(numbers[0])
        return self.k.constant(Array.constant(f"{self.k.name}_{self.name}_{kind}", np.array(numbers)))

    def _at(self, table: Array | Const, index: Operand) -> Expr:
        return table if isinstance(table, Const) else table[index]


class Quotient:
    """number 2^scale / divisor, rounded once, ties included exactly, and saturated to a range.

    Numbers whose quotients lie beyond the range are held at its ends before they are scaled: the division is no
    wider than the result and the divisor need.
    """

    def __init__(
        self,
        k: Builder,
        name: str,
        numbers: Range,
        divisors: Sequence[int],
        scale: int,
        rounding: str,
        out: Range,
    ) -> None:
        """`scale` may be negative; `rounding` is that of `round_shift`; `out` holds 0."""
        if rounding not in ("floor", "half-up", "half-even"):
            raise ValueError(f"no rounding {rounding!r}")
        self.k, self.rounding, self.doubled = k, rounding, rounding != "floor"
        self.out, most = out, max(int(d) for d in divisors)
        # Past these, all numbers but 0 saturate, or all are less than a quarter.
        scale = max(min(scale, ((out.high - out.low + 1) * most).bit_length()), -(numbers.bits + 2))
        up, down = max(scale, 0), max(-scale, 0)
        self.held = Range((out.low * most << down) >> up, -((-out.high * most << down) >> up))
        self.up = up + int(self.doubled)
        scaled = [int(d) << (down + int(self.doubled)) for d in divisors]
        lift = [d >> 1 if self.doubled else 0 for d in scaled]
        self.half = (
            lift[0]
            if len(set(lift)) == 1
            else k.constant(Array.constant(f"{k.name}_{name}_half", np.array(lift)))
        )
        numbers = clamp(Var(name, numbers), self.held.low, self.held.high).range
        whole = Range((numbers.low << self.up) + min(lift), (numbers.high << self.up) + max(lift))
        self.scaled = (
            scaled[0]
            if len(set(scaled)) == 1
            else k.constant(Array.constant(f"{k.name}_{name}_scaled", np.array(scaled)))
        )
        self.division = Division(k, name, whole, scaled)

    def of(self, number: Operand, index: Operand = 0, label: str = "quotient") -> Expr:
        """The quotient by divisors[index]; `label` names what is kept on the way."""
        half = self.half if isinstance(self.half, int) else self.half[index]
        scaled = self.scaled if isinstance(self.scaled, int) else self.scaled[index]
        held = clamp(number, self.held.low, self.held.high)
        found = self.k.let(f"{label}_scaled", (held << self.up) + half)
        quotient = self.k.let(f"{label}_nearest", self.division.floor(found, index))
        if self.rounding != "half-even":
            return clamp(quotient, self.out.low, self.out.high)
        # Number + 1/2 is whole: a tie, which went up; an odd one goes back.
        tie = equal(found, quotient * scaled)
        even = self.k.let(f"{label}_even", Select(tie, quotient - Slice(quotient, 0, 1), quotient))
        return clamp(even, self.out.low, self.out.high)
