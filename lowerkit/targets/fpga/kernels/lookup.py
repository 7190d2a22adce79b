"""Tables of integers, read by an address's high bits and interpolated by the bits below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowerkit.numerics.functions import ScalarFunction
from lowerkit.numerics.tables import uniform_table
from lowerkit.targets.fpga.lang.expr import Array, BitLength, Expr, Slice, maximum, minimum
from lowerkit.targets.fpga.lang.program import Builder

#: Tables have at most 2^12 words.
LARGEST_INDEX = 12
#: Interpolation uses at most so many bits below the index: one input of a DSP block.
REST_BITS = 17
#: What float64 may hide in tables and in exact values, relative to the value.
FLOAT64 = 2.0**-48


@dataclass(frozen=True)
class Piece:
    """A function on [low, high], to which an equal share of the addresses belongs."""

    function: ScalarFunction
    low: float
    high: float


@dataclass(frozen=True)
class Lookup:
    """A table of 2^index_bits words for addresses of `bits` bits.

    With interpolation there are two tables, of values and of differences to the next one, so that both have a power
    of two of words, where a table read at two places would have one more: 513 words take twice the memory of 512.
    Otherwise the word is the function in the middle of its segment, so that the index is the address's high bits.

    Attributes:
        values, slopes: integers in units of 2^-fraction; `slopes` is None without interpolation.
        rest: bits of the address below the index that interpolate; what is below them is dropped.
        error: proven bound of |value - f|, or of |value / f - 1| where it was asked for: that of
            `numerics.tables.uniform_table`, half a unit for the rounding of the words, the largest difference times
            2^-rest where address bits are dropped, and float64's rounding.
    """

    bits: int
    index_bits: int
    fraction: int
    rest: int
    values: np.ndarray
    slopes: np.ndarray | None
    error: float

    @classmethod
    def make(
        cls,
        pieces: Sequence[Piece],
        bits: int,
        index_bits: int,
        fraction: int,
        *,
        interpolate: bool = True,
        relative: bool = False,
    ) -> Lookup:
        """The table of `pieces`, a power of two of them; fewer words where there are fewer addresses."""
        index_bits = min(index_bits, bits)
        interpolate = interpolate and bits > index_bits
        rest = min(bits - index_bits, REST_BITS) if interpolate else 0
        segments = (1 << index_bits) // len(pieces)
        unit = 2.0**-fraction
        values: list[np.ndarray] = []
        slopes: list[np.ndarray] = []
        error = 0.0
        for piece in pieces:
            half = 0.0 if interpolate else (piece.high - piece.low) / segments / 2
            if bits == index_bits and not interpolate:
                half = 0.0
            entries, found = _entries(piece, segments, half, bits == index_bits, interpolate, relative)
            codes = np.rint(entries / unit).astype(np.int64)
            values.append(codes[:-1] if interpolate or bits == index_bits else codes[1:-1])
            slopes.append(np.diff(codes))
            rounding = unit / 2
            if interpolate and bits - index_bits > rest:
                rounding += unit * 2.0**-rest * float(np.abs(slopes[-1]).max())
            least = float(np.abs(piece.function(np.linspace(piece.low, piece.high, segments + 1))).min())
            error = max(error, found + rounding / (least if relative else 1.0))
        return cls(
            bits,
            index_bits,
            fraction,
            rest,
            np.concatenate(values),
            np.concatenate(slopes) if interpolate else None,
            error + FLOAT64,
        )

    @property
    def result_fraction(self) -> int:
        """Fraction bits of what `read` gives: interpolation is exact."""
        return self.fraction + self.rest

    @property
    def memory_bits(self) -> int:
        """Bits of memory."""
        arrays = [self.values] if self.slopes is None else [self.values, self.slopes]
        return sum(Array.constant("table", data).range.bits * data.size for data in arrays)

    def read(self, k: Builder, name: str, address: Expr) -> Expr:
        """The value at an address of `bits` bits, in units of 2^-result_fraction."""
        index = k.let(f"{name}_index", Slice(address, self.bits - self.index_bits, self.index_bits))
        value = k.constant(Array.constant(f"{k.name}_{name}_values", self.values))[index]
        if self.slopes is None:
            return k.let(name, value)
        slope = k.constant(Array.constant(f"{k.name}_{name}_slopes", self.slopes))[index]
        rest = Slice(address, self.bits - self.index_bits - self.rest, self.rest)
        return k.let(name, (value << self.rest) + slope * rest)


def _entries(
    piece: Piece, segments: int, half: float, every: bool, interpolate: bool, relative: bool
) -> tuple[np.ndarray, float]:
    """The function at the table's points, and the bound of what is between them.

    Middles of segments come with one more at either end, so that the outer halves lie between points too.
    """
    if every:
        # A word for each address: nothing lies between. Rounding to float32 is left out as well.
        return piece.function(np.linspace(piece.low, piece.high, segments + 1)), 0.0
    table = uniform_table(
        piece.function.value,
        piece.low - half,
        piece.high + half,
        segments if interpolate else segments + 1,
        curvature=piece.function.curvature,
        relative=relative,
        interpolate=interpolate,
    )
    return np.array(table.entries), table.error


def magnitude(k: Builder, x: Expr) -> Expr:
    """|x|; the slice says that it is not negative, and costs nothing."""
    if not x.range.signed:
        return x
    return k.let("magnitude", Slice(maximum(x, -x), 0, x.range.bits))


def normalised(k: Builder, a: Expr, bits: int) -> tuple[Expr, Expr]:
    """The first `bits` bits of a > 0 behind the leading one, and the bits that `a` takes.

    So a = (1 + fraction) 2^(length - 1), where what is below `bits` bits is dropped: less than 2^-bits. For a = 0
    the fraction is 0, too.
    """
    length = k.let("length", BitLength(a))
    whole = bits + 1
    down = Slice(a >> maximum(length - whole, 0), 0, whole) if length.range.high > whole else a
    up = down << maximum(whole - length, 0) if length.range.low < whole else down
    return k.let("fraction", Slice(up, 0, bits)), length


def scaled(value: Expr, shift: Expr) -> Expr:
    """value / 2^shift, rounded half up, for shifts that vary and may be negative.

    Raises ValueError where the result may need more than 62 bits.
    """
    most = -min(shift.range.low - 1, 0)
    raised = value << most if most else value
    # All bits are gone by 62, or only the sign is left.
    count = minimum(shift + (most - 1), 62) if shift.range.high + most - 1 > 62 else shift + (most - 1)
    return ((raised >> count) + 1) >> 1


def times(function: ScalarFunction, factor: float) -> ScalarFunction:
    """factor f, factor above 0."""
    return ScalarFunction(
        function.name,
        lambda x: factor * function(x),
        lambda low, high: factor * function.curvature(low, high),
    )
