"""How a function of every x is had from a core, a function on one short interval.

Hardware evaluates the core alone; what is around it are comparisons, signs and shifts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowerkit.numerics.functions import Function, ScalarFunction
from lowerkit.passes.activation.bodies import from_attribute, lines, number

#: Reach of what is left of an exponent: half of ln 2, and what rounding may add.
REACH = 0.3466
LN2_HIGH, LN2_REST = 0.693359375, 2.12194440054690583e-4


@dataclass(frozen=True)
class Form(ABC):
    """One way of reducing x, and of putting the result together."""

    #: Whether the core's interval is the option `limit`'s.
    limited: ClassVar[bool] = True
    #: Whether bounds are relative to the function.
    relative: ClassVar[bool] = False
    #: ONNX text from X to s and `width`, and from v to Y.
    before: ClassVar[str]

    @property
    @abstractmethod
    def after(self) -> str:
        """ONNX text from v to Y."""

    @abstractmethod
    def interval(self, limit: float) -> tuple[float, float]:
        """Where the core is needed."""

    @abstractmethod
    def evaluate(self, core: Function, x: np.ndarray, limit: float) -> np.ndarray:
        """The whole function in float64, with `core` on the interval."""

    def beyond(self, core: ScalarFunction, limit: float) -> float:
        """How far the function is, where |x| > limit, from what holding the core's end gives."""
        return 0.0


_FOLDED = lines(
    from_attribute("width", "limit"),
    number("zero", 0.0),
    "a = Abs (X)",
    "negative = Less (X, zero)",
)


@dataclass(frozen=True)
class ReluLessBump(Form):
    """f(x) = max(x, 0) - core(|x|), the core an even bump that vanishes far out.

    So are all f(x) = x P(x) with P(x) + P(-x) = 1: x P(x) is x - x P(-x) for x > 0, and -|x| P(-|x|) for x < 0. And
    softplus(x) is max(x, 0) + log(1 + exp(-|x|)).
    """

    before: ClassVar[str] = lines(_FOLDED, "s = Min (a, width)")

    @property
    def after(self) -> str:
        """A maximum would lose NaN on hardware where max(NaN, 0) is 0."""
        return lines("relu = Where (negative, zero, X)", "Y = Sub (relu, v)")

    def interval(self, limit: float) -> tuple[float, float]:
        """[0, limit]."""
        return 0.0, limit

    def evaluate(self, core: Function, x: np.ndarray, limit: float) -> np.ndarray:
        """See the class."""
        result: np.ndarray = np.where(x < 0, 0, x) - core(np.minimum(np.abs(x), limit))
        return result

    def beyond(self, core: ScalarFunction, limit: float) -> float:
        """The bump at the limit: it falls from there on, without a change of sign."""
        return float(np.abs(core(np.array(limit))))


@dataclass(frozen=True)
class Odd(Form):
    """f(x) = offset + core(|x|) with the sign of x, the core rising to a level."""

    offset: float = 0.0
    level: float = 1.0

    #: A minimum would lose NaN on hardware where min(NaN, 1) is 1.
    before: ClassVar[str] = lines(_FOLDED, "far = Less (width, a)", "s = Where (far, width, a)")

    @property
    def after(self) -> str:
        """The sign, and the offset where there is one."""
        sign = "minus = Neg (v)"
        if self.offset == 0:
            return lines(sign, "Y = Where (negative, minus, v)")
        signed = "signed = Where (negative, minus, v)"
        return lines(sign, signed, number("offset", self.offset), "Y = Add (signed, offset)")

    def interval(self, limit: float) -> tuple[float, float]:
        """[0, limit]."""
        return 0.0, limit

    def evaluate(self, core: Function, x: np.ndarray, limit: float) -> np.ndarray:
        """See the class."""
        v = core(np.minimum(np.abs(x), limit))
        result: np.ndarray = self.offset + np.where(x < 0, -v, v)
        return result

    def beyond(self, core: ScalarFunction, limit: float) -> float:
        """What is left of the rise."""
        return self.level - float(core(np.array(limit)))


@dataclass(frozen=True)
class LinearTail(Form):
    """f(x) = core(x) on [-limit, limit], nearly 0 below and nearly x above, where x - limit is added."""

    before: ClassVar[str] = lines(
        from_attribute("half", "limit"),
        number("zero", 0.0),
        "low = Neg (half)",
        "width = Add (half, half)",
        "bounded = Min (X, half)",
        "inside = Max (bounded, low)",
        "s = Sub (inside, low)",
    )

    @property
    def after(self) -> str:
        """A maximum would lose NaN on hardware where max(NaN, 0) is 0."""
        return lines(
            "over = Sub (X, half)",
            "within = Less (over, zero)",
            "tail = Where (within, zero, over)",
            "Y = Add (v, tail)",
        )

    def interval(self, limit: float) -> tuple[float, float]:
        """[-limit, limit]."""
        return -limit, limit

    def evaluate(self, core: Function, x: np.ndarray, limit: float) -> np.ndarray:
        """See the class."""
        over = x - limit
        result: np.ndarray = core(np.clip(x, -limit, limit)) + np.where(over < 0, 0, over)
        return result

    def beyond(self, core: ScalarFunction, limit: float) -> float:
        """The larger of both ends' distances, which shrink from there on."""
        low, high = core(np.array([-limit, limit]))
        return float(max(abs(low), abs(limit - high)))


@dataclass(frozen=True)
class PowersOfE(Form):
    """e^x = core(r) 2^n with x = n ln 2 + r, |r| <= ln(2)/2, and core(r) = e^r (Cody and Waite, 1980)."""

    limited: ClassVar[bool] = False
    relative: ClassVar[bool] = True
    before: ClassVar[str] = lines(
        number("highest", 89.0),
        number("lowest", -104.0),
        number("log2_e", math.log2(math.e)),
        number("ln2_high", LN2_HIGH),
        number("ln2_rest", LN2_REST),
        number("reach", REACH),
        number("width", 2 * REACH),
        "bounded = Min (X, highest)",
        "inside = Max (bounded, lowest)",
        "octaves = Mul (inside, log2_e)",
        "n = Round (octaves)",
        "most = Mul (n, ln2_high)",
        "rest = Mul (n, ln2_rest)",
        "rough = Sub (inside, most)",
        "r = Add (rough, rest)",
        "s = Add (r, reach)",
    )

    @property
    def after(self) -> str:
        """2^n in two factors, for 2^128 is no float and 2^-149 one without a normal half."""
        return lines(
            number("two", 2.0),
            number("one_half", 0.5),
            "half_n = Mul (n, one_half)",
            "first_n = Floor (half_n)",
            "second_n = Sub (n, first_n)",
            "first = Pow (two, first_n)",
            "second = Pow (two, second_n)",
            "part = Mul (v, first)",
            "y = Mul (part, second)",
            # Limits need not pass NaN on.
            "nan = IsNaN (X)",
            "Y = Where (nan, X, y)",
        )

    def interval(self, limit: float) -> tuple[float, float]:
        """[-ln(2)/2, ln(2)/2], and what rounding may add."""
        return -REACH, REACH

    def evaluate(self, core: Function, x: np.ndarray, limit: float) -> np.ndarray:
        """See the class."""
        with np.errstate(over="ignore"):
            inside = np.where(np.isnan(x), 0, np.clip(x, -104, 89))
            n = np.round(inside * math.log2(math.e))
            v = core(inside - n * math.log(2))
            result: np.ndarray = np.where(np.isnan(x), x, v * np.exp2(n))
        return result


@dataclass(frozen=True)
class Mantissas(Form):
    """1 / x = core(m) 2^-e with |x| = m 2^e, m in [1, 2), and core(m) = 1 / m. Or x^(-1/2) with m 4^e, m in [1, 4).

    On hardware e is a leading-zero count, and powers of two are shifts.
    """

    root: bool = False

    limited: ClassVar[bool] = False
    relative: ClassVar[bool] = True

    @property
    def before(self) -> str:  # type: ignore[override]
        """e by a logarithm whose rounding may put it one off; 4^e in two factors, for 4^-75 is no float."""

        def divided(result: str, power: str) -> str:
            if not self.root:
                return f"{result} = Div (a, {power})"
            return lines(f"{result}_half = Div (a, {power})", f"{result} = Div ({result}_half, {power})")

        base = 4.0 if self.root else 2.0
        return lines(
            number("two", 2.0),
            number("base", base),
            number("one", 1.0),
            number("to_log", 1 / math.log(base)),
            number("width", base - 1),
            "a = Abs (X)",
            "log_e = Log (a)",
            "log_base = Mul (log_e, to_log)",
            "near = Floor (log_base)",
            "near_power = Pow (two, near)",
            divided("rough", "near_power"),
            "too_high = Less (rough, one)",
            "too_low = GreaterOrEqual (rough, base)",
            "more = Add (near, one)",
            "less = Sub (near, one)",
            "not_more = Where (too_low, more, near)",
            "e = Where (too_high, less, not_more)",
            "power = Pow (two, e)",
            divided("m", "power"),
            "s = Sub (m, one)",
        )

    @property
    def after(self) -> str:
        """0, infinities and what has no root give what the original gives."""
        original = (
            ["root = Sqrt (X)", "special = Reciprocal (root)"] if self.root else ["special = Reciprocal (X)"]
        )
        sided = ["minus = Neg (size)", "negative = Less (X, zero)", "signed = Where (negative, minus, size)"]
        return lines(
            number("zero", 0.0),
            number("largest", float(np.finfo(np.float32).max)),
            "size = Div (v, power)",
            *([] if self.root else sided),
            f"above_zero = Greater ({'X' if self.root else 'a'}, zero)",
            "finite = LessOrEqual (a, largest)",
            "regular = And (above_zero, finite)",
            *original,
            f"Y = Where (regular, {'size' if self.root else 'signed'}, special)",
        )

    def interval(self, limit: float) -> tuple[float, float]:
        """[1, 4] or [1, 2]."""
        return 1.0, 4.0 if self.root else 2.0

    def evaluate(self, core: Function, x: np.ndarray, limit: float) -> np.ndarray:
        """See the class."""
        regular = np.isfinite(x) & (x > 0 if self.root else x != 0)
        mantissa, exponent = np.frexp(np.where(regular, np.abs(x), 1.0))
        e = exponent - 1
        if self.root:
            e = e // 2
        m = np.ldexp(mantissa, exponent - (2 * e if self.root else e))
        with np.errstate(all="ignore"):
            special = np.abs(x) ** -0.5 if self.root else 1 / x
            if self.root:
                special = np.where(x < 0, np.nan, special)
            y = np.ldexp(core(m), -e)
            result: np.ndarray = np.where(regular, y if self.root else np.copysign(y, x), special)
        return result
