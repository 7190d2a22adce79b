"""How integers are reduced to a function's core: the forms of `passes.activation.forms` on hardware.

Source: range reduction as in Muller, Elementary Functions (3rd ed. 2016), section 10; ReLU less a table of |x|:
Sarkar et al., Edge-MoE (ICCAD 2023), section IV.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowerkit.numerics.functions import ScalarFunction
from lowerkit.passes.activation.base import Activation
from lowerkit.passes.activation.forms import LinearTail, Mantissas, Odd, PowersOfE, ReluLessBump
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.lookup import (
    FLOAT64,
    Lookup,
    Piece,
    magnitude,
    normalised,
    scaled,
    times,
)
from lowerkit.targets.fpga.lang.expr import (
    Expr,
    Select,
    Slice,
    clamp,
    equal,
    expr,
    maximum,
    minimum,
    round_shift,
)
from lowerkit.targets.fpga.lang.program import Builder

#: Fraction bits of tables beyond the output's: entries are off by 1/16 of an output step.
GUARD = 3


@dataclass(frozen=True)
class Settings:
    """What is asked for: the function, its formats and its table."""

    of: Activation
    variant: int
    source: Fixed
    target: Fixed
    index_bits: int
    interpolate: bool

    @property
    def core(self) -> ScalarFunction:
        """The core of the function's form."""
        return self.of.cores[self.variant]

    @property
    def fraction(self) -> int:
        """Of tables' entries."""
        return max(self.target.fraction + GUARD, 1)

    def table(self, core: Piece, bits: int) -> Lookup:
        """A table of absolute error for addresses of `bits` bits."""
        return Lookup.make([core], bits, self.index_bits, self.fraction, interpolate=self.interpolate)


@dataclass(frozen=True)
class Reduced:
    """The code, before it saturates, and what it is off by at most, without the output's rounding."""

    value: Expr
    absolute: float
    relative: float
    table: Lookup


def _reach(s: Settings, available: int) -> int:
    """Bits of the codes below the limit: the power of two that holds it, or all the `available` ones."""
    wanted = math.ceil(math.log2(s.of.limit)) + s.source.fraction
    return min(max(wanted, 1), available)


def _folded(k: Builder, x: Expr, s: Settings) -> Reduced:
    """ReLU less the core of |x|, or the core of |x| with the sign of x and an offset."""
    form, step = s.of.form, s.source.step
    available = s.source.width - s.source.signed or 1
    bits = _reach(s, available)
    limit, last = (1 << bits) * step, ((1 << bits) - 1) * step
    table = s.table(Piece(s.core, 0.0, limit), bits)
    v = table.read(k, "core", clamp(magnitude(k, x), 0, (1 << bits) - 1))
    fraction = max(table.result_fraction, s.source.fraction)
    v = v << (fraction - table.result_fraction)
    if isinstance(form, ReluLessBump):
        total = (maximum(x, 0) << (fraction - s.source.fraction)) - v
    else:
        assert isinstance(form, Odd)
        total = (Select(x < 0, -v, v) if s.source.signed else v) + int(form.offset * 2.0**fraction)
    # With all codes in reach only the lowest of a signed format is beyond, by one step.
    ends = s.core(np.array([last, limit]))
    held = form.beyond(s.core, last) if bits < available else float(abs(ends[1] - ends[0]))
    value = round_shift(total, fraction - s.target.fraction)
    return Reduced(value, table.error + held, 0.0, table)


def _linear_tail(k: Builder, x: Expr, s: Settings) -> Reduced:
    """The core on [-limit, limit), and what x exceeds its last code by."""
    step = s.source.step
    available = s.source.width - s.source.signed or 1
    bits = _reach(s, available)
    half, last = 1 << bits, (1 << bits) - 1
    table = s.table(Piece(s.core, -half * step, half * step), bits + 1)
    v = table.read(k, "core", k.let("address", clamp(x, -half, last) + half))
    fraction = max(table.result_fraction, s.source.fraction)
    tail = maximum(x - last, 0) << (fraction - s.source.fraction)
    held = s.of.form.beyond(s.core, last * step) if bits < available else 0.0
    value = round_shift((v << (fraction - table.result_fraction)) + tail, fraction - s.target.fraction)
    return Reduced(value, table.error + held, 0.0, table)


def _power(k: Builder, x: Expr, s: Settings) -> Reduced:
    """e^x = 2^n 2^r, n + r = x log2(e): the core is 2^r on [0, 1), as the index's bits then are those of r.

    x is bounded to where the result is neither 0 nor saturated. log2(e) is rounded to 2^-places, so that x log2(e) is
    off by |x| 2^-(places + 1); bits of r that no table reads are dropped. The error is relative.
    """
    source, target = s.source, s.target
    lowest = math.floor((math.log(target.step) - 3) / source.step)
    highest = math.ceil((math.log(target.high + target.step) + 1) / source.step)
    # Where the whole format lies beyond either end, its nearest code saturates or vanishes as well.
    lowest, highest = min(lowest, source.range.high), max(highest, source.range.low)
    inside = clamp(x, lowest, highest)
    size = max(abs(inside.range.low), abs(inside.range.high), 1)
    top = min(target.high, math.exp(min(inside.range.high * source.step, 700.0)))
    digits = min(max(math.ceil(math.log2(top / target.step)) + GUARD, 2), 24)
    bits = max(s.index_bits, digits + 1)
    places = max(digits + 1 + size.bit_length() - source.fraction, bits - source.fraction, 0)
    factor = round(math.log2(math.e) * 2**places)
    point = source.fraction + places
    octaves = k.let("octaves", inside * factor)
    # From 2^most on the result saturates, however far a coarse input's codes lie above.
    most = math.ceil(math.log2(target.high + target.step)) + 1
    n = k.let("n", minimum(octaves >> point, most))
    two = ScalarFunction("exp2", np.exp2, lambda low, high: math.log(2) ** 2 * np.exp2(high))
    table = Lookup.make(
        [Piece(two, 0.0, 1.0)], bits, s.index_bits, digits, interpolate=s.interpolate, relative=True
    )
    v = table.read(k, "power", k.let("address", Slice(octaves, point - bits, bits)))
    value = scaled(v, (table.result_fraction - target.fraction) - n)
    moved = abs(factor / 2**places - math.log2(math.e)) * size * source.step + 2.0**-bits
    relative = (1 + table.error) * 2**moved - 1
    return Reduced(value, 0.0, relative + FLOAT64, table)


def _mantissa(k: Builder, x: Expr, s: Settings) -> Reduced:
    """1 / x or x^(-1/2) from the leading one on: the core on [1, 2), for the root a second one on [2, 4).

    |x| = m 2^e with e = length - 1 - fraction. The root has one half of the table for even e and one for odd e. The
    error is relative. Where there is no value the largest number stands.
    """
    form = s.of.form
    assert isinstance(form, Mantissas)
    source, target = s.source, s.target
    positive = maximum(x, 0) if form.root else magnitude(k, x)
    # |x| of a signed format has a bit less, but for the lowest code, a power of two.
    bits = max(source.width - 1, 1)
    part, length = normalised(k, positive, bits)
    # e up to a multiple of 2 that keeps it from being negative.
    least = 2 * math.ceil((source.fraction + 1) / 2) if source.fraction > -1 else 0
    e = k.let("e", length + (least - 1 - source.fraction))
    pieces = [Piece(s.core, 1.0, 2.0)]
    if form.root:
        pieces = [*pieces, Piece(times(s.core, 2**-0.5), 1.0, 2.0)]
        part = k.let("address", (Slice(e, 0, 1) << bits) + part)
    digits = min(target.width + GUARD, 24)
    table = Lookup.make(
        pieces, bits + form.root, s.index_bits, digits, interpolate=s.interpolate, relative=True
    )
    v = table.read(k, "core", part)
    exponent = (e >> 1) - least // 2 if form.root else e - least
    shift = exponent + (table.result_fraction - target.fraction)
    size: Expr = k.let("size", scaled(v, shift))
    if not form.root and source.signed:
        size = Select(x < 0, -size, size)
    missing = x <= 0 if form.root else equal(x, 0)
    return Reduced(Select(missing, expr(target.range.high), size), 0.0, table.error, table)


#: By form.
REDUCTIONS: dict[type, Callable[[Builder, Expr, Settings], Reduced]] = {
    ReluLessBump: _folded,
    Odd: _folded,
    LinearTail: _linear_tail,
    PowersOfE: _power,
    Mantissas: _mantissa,
}
