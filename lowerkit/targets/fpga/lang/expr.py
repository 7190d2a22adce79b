"""Integer expressions whose ranges are known.

Every expression carries the least interval that interval arithmetic proves for it. Widths follow from that, so that
nothing overflows in any printer, and nothing is wider than it has to be. Numbers are mathematical integers: a shift to
the right is a floor division by a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: The interpreter computes in int64; nothing may be wider.
LARGEST = 2**62


@dataclass(frozen=True)
class Range:
    """All integers from `low` to `high`."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an empty range, {self.low} to {self.high}")
        if self.low < -LARGEST or self.high > LARGEST:
            raise ValueError(f"{self.low} to {self.high} needs more than 63 bits")

    @property
    def signed(self) -> bool:
        """Whether there are negative numbers."""
        return self.low < 0

    @property
    def bits(self) -> int:
        """The width of the narrowest integer type, at least 1; a sign is one of the bits."""
        if self.signed:
            return max((-self.low - 1).bit_length(), max(self.high, 0).bit_length()) + 1
        return max(self.high.bit_length(), 1)

    def less(self, number: int) -> Range:
        """The range of differences to a number."""
        return Range(self.low - number, self.high - number)

    def union(self, other: Range) -> Range:
        """The least range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


def hull(values: Sequence[int]) -> Range:
    """The least range of some numbers."""
    return Range(min(values), max(values))


class Expr:
    """An expression; operators build larger ones."""

    range: Range

    def __add__(self, other: Operand) -> Expr:
        return Binary.of("add", self, other)

    def __radd__(self, other: int) -> Expr:
        return Binary.of("add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return Binary.of("sub", self, other)

    def __rsub__(self, other: int) -> Expr:
        return Binary.of("sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return Binary.of("mul", self, other)

    def __rmul__(self, other: int) -> Expr:
        return Binary.of("mul", other, self)

    def __neg__(self) -> Expr:
        return Binary.of("sub", 0, self)

    def __lshift__(self, count: Operand) -> Expr:
        return Binary.of("shl", self, count)

    def __rshift__(self, count: Operand) -> Expr:
        return Binary.of("shr", self, count)

    def __lt__(self, other: Operand) -> Expr:
        return Binary.of("lt", self, other)

    def __le__(self, other: Operand) -> Expr:
        return Binary.of("le", self, other)

    def __gt__(self, other: Operand) -> Expr:
        return Binary.of("lt", other, self)

    def __ge__(self, other: Operand) -> Expr:
        return Binary.of("le", other, self)


Operand = Expr | int


@dataclass(frozen=True, eq=False)
class Const(Expr):
    """A number."""

    value: int

    @property
    def range(self) -> Range:  # type: ignore[override]
        """Itself."""
        return Range(self.value, self.value)


@dataclass(frozen=True, eq=False)
class Var(Expr):
    """A name: a loop's counter (`Counter`), a register, or a value that was named with `Let`."""

    name: str
    range: Range


class Counter(Var):
    """A loop's counter: an int in the printed code, as is what is added up of counters."""


def expr(operand: Operand) -> Expr:
    """A number as an expression."""
    return Const(int(operand)) if isinstance(operand, (int, np.integer)) else operand


@dataclass(frozen=True, eq=False)
class Binary(Expr):
    """One operation of two operands; `BINARY` has them all."""

    op: str
    left: Expr
    right: Expr
    range: Range

    @classmethod
    def of(cls, op: str, left: Operand, right: Operand) -> Expr:
        """The operation, folded where both operands are numbers."""
        a, b = expr(left), expr(right)
        made = cls(op, a, b, _range(op, a.range, b.range))
        return Const(made.range.low) if isinstance(a, Const) and isinstance(b, Const) else made


def _range(op: str, a: Range, b: Range) -> Range:
    if op == "add":
        return Range(a.low + b.low, a.high + b.high)
    if op == "sub":
        return Range(a.low - b.high, a.high - b.low)
    if op == "mul":
        return hull([x * y for x in (a.low, a.high) for y in (b.low, b.high)])
    if op == "min":
        return Range(min(a.low, b.low), min(a.high, b.high))
    if op == "max":
        return Range(max(a.low, b.low), max(a.high, b.high))
    if op in ("lt", "le", "eq"):
        return _comparison(op, a, b)
    if op in ("shl", "shr"):
        if b.low < 0 or b.high > 62:
            raise ValueError(f"a shift by {b.low} to {b.high}")
        counts = (b.low, b.high)
        ends = (a.low, a.high)
        return hull([x << n if op == "shl" else x >> n for x in ends for n in counts])
    raise ValueError(f"no operation {op!r}")


def _comparison(op: str, a: Range, b: Range) -> Range:
    always = {"lt": a.high < b.low, "le": a.high <= b.low, "eq": a == b and a.low == a.high}[op]
    never = {"lt": a.low >= b.high, "le": a.low > b.high, "eq": a.high < b.low or a.low > b.high}[op]
    return Range(int(always), int(not never))


@dataclass(frozen=True, eq=False)
class Select(Expr):
    """`yes` where the condition is not 0, else `no`; both are computed."""

    condition: Expr
    yes: Expr
    no: Expr

    @property
    def range(self) -> Range:  # type: ignore[override]
        """Of either."""
        return self.yes.range.union(self.no.range)


@dataclass(frozen=True, eq=False)
class BitLength(Expr):
    """The bits that a number, not negative, takes: 0 for 0, k + 1 for 2^k to 2^(k + 1) - 1."""

    operand: Expr

    def __post_init__(self) -> None:
        if self.operand.range.low < 0:
            raise ValueError("the bit length of a number that may be negative")

    @property
    def range(self) -> Range:  # type: ignore[override]
        """It rises with the number."""
        return Range(self.operand.range.low.bit_length(), self.operand.range.high.bit_length())


@dataclass(frozen=True, eq=False)
class Slice(Expr):
    """Bits `low` to `low + width - 1` of the number in two's complement, as a number that is not negative."""

    operand: Expr
    low: int
    width: int

    @property
    def range(self) -> Range:  # type: ignore[override]
        """Of as many bits."""
        return Range(0, (1 << self.width) - 1)


@dataclass(frozen=True, eq=False)
class Load(Expr):
    """An element of an array."""

    array: Array
    indices: tuple[Expr, ...]

    def __post_init__(self) -> None:
        if len(self.indices) != len(self.array.shape):
            raise ValueError(f"{self.array.name} has {len(self.array.shape)} axes, not {len(self.indices)}")
        for index, size in zip(self.indices, self.array.shape, strict=True):
            if index.range.low < 0 or index.range.high >= size:
                where = f"{index.range.low} to {index.range.high}"
                raise ValueError(f"index {where} in an axis of {size} of {self.array.name}")

    @property
    def range(self) -> Range:  # type: ignore[override]
        """Of the array's elements."""
        return self.array.range


@dataclass(frozen=True, eq=False)
class Array:
    """Memory of numbers: a layer's input or output, what it keeps, or constants.

    Attributes:
        data: the numbers of constants (weights, tables), int64; None for what is written.
    """

    name: str
    shape: tuple[int, ...]
    range: Range
    data: np.ndarray | None = None

    @classmethod
    def constant(cls, name: str, data: np.ndarray) -> Array:
        """Constants, with the range that they have."""
        numbers = np.asarray(data)
        if numbers.dtype.kind not in "iu":
            raise ValueError(f"{name} is of {numbers.dtype}, not of integers")
        return cls(
            name, numbers.shape, Range(int(numbers.min()), int(numbers.max())), numbers.astype(np.int64)
        )

    def __getitem__(self, indices: Operand | tuple[Operand, ...]) -> Load:
        given = indices if isinstance(indices, tuple) else (indices,)
        return Load(self, tuple(expr(index) for index in given))


def minimum(a: Operand, b: Operand) -> Expr:
    """The smaller of two."""
    return Binary.of("min", a, b)


def maximum(a: Operand, b: Operand) -> Expr:
    """The larger of two."""
    return Binary.of("max", a, b)


def equal(a: Operand, b: Operand) -> Expr:
    """1 where two are equal, else 0."""
    return Binary.of("eq", a, b)


def clamp(a: Operand, low: int, high: int) -> Expr:
    """`a`, saturated to [low, high]; nothing is emitted for an end that it cannot pass."""
    found = expr(a)
    if found.range.high > high:
        found = minimum(found, high)
    return maximum(found, low) if found.range.low < low else found


def round_shift(a: Operand, count: int, mode: str = "half-up") -> Expr:
    """a / 2^count, rounded: `floor`, `half-up` (ties towards +inf) or `half-even`; a shift left where count < 0.

    These are AP_TRN, AP_RND and AP_RND_CONV of ap_fixed.
    """
    found = expr(a)
    if count <= 0:
        return found << -count if count else found
    if mode == "floor":
        return found >> count
    if mode == "half-up":
        return (found + (1 << (count - 1))) >> count
    if mode == "half-even":
        # The result's own last bit decides a tie: add one less than half, and that bit.
        return (found + ((1 << (count - 1)) - 1) + Slice(found, count, 1)) >> count
    raise ValueError(f"no rounding {mode!r}")
