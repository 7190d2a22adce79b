"""Integers over their row's sum: a leading-one detector, a table of reciprocals, a product and a shift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowerkit.passes.softmax.fixed import RECIPROCAL, reciprocal_table
from lowerkit.targets.fpga.lang.expr import (
    Array,
    BitLength,
    Expr,
    Operand,
    Range,
    Slice,
    expr,
    maximum,
)
from lowerkit.targets.fpga.lang.program import Builder


def half_up(a: Operand, count: Operand) -> Expr:
    """a / 2^count rounded, halves up, where the count is a number of the hardware's; 0 is no shift."""
    return (((expr(a) << 1) >> count) + 1) >> 1


def not_negative(a: Expr) -> Expr:
    """`a`, which its caller knows not to be negative and intervals do not: the sign's wire is left out."""
    return a if a.range.low >= 0 else Slice(a, 0, Range(0, a.range.high).bits)


@dataclass(frozen=True)
class Reciprocal:
    """factor 2^-(RECIPROCAL + least + octave), about 1 / S.

    Attributes:
        factor: an entry of the table, in units of 2^-RECIPROCAL.
        octave: floor(log2 S) - least, not negative.
    """

    factor: Expr
    octave: Expr
    least: int

    def times(self, e: Operand, bits: int) -> Expr:
        """e / S in units of 2^-bits, rounded, halves up: `Fixed.divide` before it saturates."""
        shift = RECIPROCAL + self.least - bits
        left = max(0, 1 - shift)
        product = expr(e) * self.factor
        wide = product << left if left else product
        # floor(w / 2^s + 1/2) = floor((floor(w / 2^(s - 1)) + 1) / 2), and s is at least 1.
        return ((wide >> (self.octave + (shift + left - 1))) + 1) >> 1


def reciprocal(k: Builder, total: Expr, least: int, bits: int) -> Reciprocal:
    """Of a row's sum, which the caller knows to be at least 2^least, by a table of 2^bits entries.

    Source: `lowerkit.passes.softmax.fixed`, whose table this is.
    """
    table = k.constant(Array.constant(f"{k.name}_reciprocals", reciprocal_table(bits).astype(np.int64)))
    octave = k.let("octave", maximum(BitLength(total >> least), 1) - 1)
    # The `bits` bits below the leading one.
    mantissa = ((total << bits) >> least) >> octave
    return Reciprocal(k.let("reciprocal", table[Slice(mantissa, 0, bits)]), octave, least)
