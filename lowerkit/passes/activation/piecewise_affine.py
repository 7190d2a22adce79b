"""Activations without multiplications: additions of floating-point bit patterns."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lowerkit.numerics.functions import ScalarFunction
from lowerkit.numerics.piecewise_affine import WORST, paexp2, palog2
from lowerkit.passes.activation.base import ACTIVATIONS, Activation, ActivationMethod, for_each
from lowerkit.passes.activation.bodies import Body, lines
from lowerkit.passes.base import Bound, Contract, Evidence

LOG2E = math.log2(math.e)
#: The logistic function's scale at which it is nearest to the normal distribution function: off by 0.0095.
QUICK = 1.702
#: Where bounds of everything but exp, 1/x and x^(-1/2) are computed, and in how many cells; beyond, e^-a is nothing.
_REACH, _CELLS = 40.0, 1 << 18


def _decay(a: np.ndarray) -> np.ndarray:
    """E(a), which stands for e^-a, a >= 0: from 1 down to 0."""
    return paexp2(-a * LOG2E)


def _gated_mish(x: np.ndarray) -> np.ndarray:
    """n / (n + 2), n = e^x (e^x + 2), by patterns; rising."""
    e = palog2(paexp2(np.minimum(x, _REACH) * LOG2E))
    n = paexp2(e + palog2(paexp2(e) + 2))
    return paexp2(palog2(n) - palog2(n + 2))


def _logistic(scale: float) -> Callable[[np.ndarray], np.ndarray]:
    """1 - E(s x) / 2 for x >= 0 and E(-s x) / 2 below; rising."""

    def gate(x: np.ndarray) -> np.ndarray:
        half = _decay(scale * np.abs(x)) / 2
        return np.where(x < 0, half, 1 - half)

    return gate


#: What multiplies x.
_GATES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": _logistic(QUICK),
    "silu": _logistic(1.0),
    "mish": _gated_mish,
}
#: (offset, height, scale): offset + sign(x) height (1 - E(scale |x|)).
_ODD: Mapping[str, tuple[float, float, float]] = {
    "sigmoid": (0.5, 0.5, 1.0),
    "tanh": (0.0, 1.0, 2.0),
    "erf": (0.0, 1.0, QUICK * math.sqrt(2)),
}
#: (function of the logarithm, in powers of x): 2 to this times palog2(x).
_POWERS: Mapping[str, float] = {"reciprocal": -1.0, "rsqrt": -0.5}


@dataclass(frozen=True)
class PiecewiseAffineActivation(ActivationMethod):
    """The function with every exponential, product and quotient replaced by an addition of bit patterns.

    A float's bit pattern, read as an integer, is its logarithm with chords between powers of two. With
    paexp2(u) = (1 + u - floor u) 2^floor(u), palog2 its inverse and E(a) = paexp2(-a log2 e) for e^-a, between 1
    and c = 2 / (e ln 2) = 1.0615 times it:

        exp      paexp2(x log2 e)                     1 to c
        1/x      paexp2(-palog2 |x|), with x's sign   1 to 9/8
        x^(-1/2) paexp2(-palog2(x) / 2)               1 to c^(3/2): c of the power, c^(1/2) of half the logarithm

    times the function. For x >= 0, 1 + E is in [1, 2], where palog2(1 + E) = E and so paexp2(-palog2(1 + E)) is
    1 - E/2: no quotient is left of the sigmoid, and no logarithm of softplus.

        sigmoid  1/2 + (1 - E(|x|)) / 2, with x's sign
        tanh     1 - E(2 |x|), with x's sign
        erf      1 - E(1.702 sqrt(2) |x|), with x's sign: the normal distribution function is nearly logistic
        softplus max(x, 0) + ln(2) E(|x|)
        SiLU     x times the sigmoid; GELU: x times the sigmoid of 1.702 x, for both of its forms
        Mish     x times n / (n + 2), n = e^x (e^x + 2)

    with x times a gate g as paexp2(palog2 |x| + palog2 g). Constant factors, the logarithms' base among them, are
    folded into the scale of what comes before.

    The bounds of the latter are by intervals: over each of 2^18 cells of |x| from 0 to 40 the method and the
    function are monotone, or products of what is, so that their values at the cell's ends enclose them. Beyond
    40, E(|x|) is below 2^-57, and the method is within 1e-14 of the function's limit or of x.

    NaN gives NaN; infinities what the function gives, but for GELU, SiLU and Mish at -inf, where the result is 0.
    exp, 1/x, x^(-1/2), sigmoid, tanh, erf and softplus keep the order of their arguments, as the functions do.
    """

    name: ClassVar[str] = "piecewise-affine"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Kosson and Jaggi, Multiplication-Free Transformer Training via Piecewise Affine Operations (NeurIPS 2023), "
        "section 3; Mitchell, Computer Multiplication and Division Using Binary Logarithms (1962)"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "a few integer additions and shifts per element; here in float64, for reference",
        "gpu": "integer additions, beside the floating-point units",
        "fpga": "two or three adders of the float's width per element; no multiplier, no table",
        "he": "not applicable: needs bit patterns",
    }

    @classmethod
    def body_for(cls, activation: Activation) -> Body:
        """The operator of one of the functions."""
        family = activation.family
        text = (
            _odd_text(*_ODD[family])
            if family in _ODD
            else _power_text(family)
            if family in _POWERS
            else {"exp": _exp_text, "softplus": _softplus_text}.get(family, lambda: _gate_text(family))()
        )
        start = lines("x = Cast <to = 11> (X)", *_CONSTANTS, "a = Abs (x)", "negative = Less (x, zero)")
        return Body(
            f"PiecewiseAffine{activation.op}", ("X",), "", lines(start, text, "Y = Cast <to = 1> (y)")
        )

    def bound(self) -> Bound:
        """See the class."""
        family = self.of.family
        relative = {"exp": WORST - 1, "reciprocal": 0.125, "rsqrt": WORST**1.5 - 1}
        if family in relative:
            return Bound(relative[family], "relative", self.everywhere, Evidence.PROVED)
        return Bound(_enclosed(self.of), "absolute", "all finite x", Evidence.PROVED)

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`; both forms of Gelu are one here."""
        return _value(self.of, np.asarray(x, np.float64))


def _value(of: Activation, x: np.ndarray) -> np.ndarray:
    family, a = of.family, np.abs(x)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if family == "exp":
            return paexp2(x * LOG2E)
        if family in _POWERS:
            power = paexp2(_POWERS[family] * palog2(a))
            rooted = np.where(x < 0, np.nan, power)
            return rooted if family == "rsqrt" else np.copysign(power, x)
        relu = np.where(x < 0, 0.0, x)
        if family in _ODD:
            offset, height, scale = _ODD[family]
            v = height * (1 - _decay(scale * a))
            return offset + np.where(x < 0, -v, v)
        if family == "softplus":
            return relu + math.log(2) * _decay(a)
        product = paexp2(palog2(a) + palog2(_GATES[family](x)))
        return np.where((a > 0) & np.isfinite(x), np.where(x < 0, -product, product), relu)


@functools.cache
def _enclosed(of: Activation) -> float:
    """The bound of |method - function| for every x, by the ends of cells; for all of the function's forms."""
    a = np.linspace(0.0, _REACH, _CELLS + 1)
    worst = 0.0
    for whole in of.wholes:
        for x in (a, -a):
            if of.family in _GATES:
                error = _gated_error(of, whole, x)
            else:
                ours, exact = _value(of, x), whole(x)
                # Both rise with x: each cell's values lie between those of its ends.
                error = np.maximum(np.abs(ours[1:] - exact[:-1]), np.abs(exact[1:] - ours[:-1]))
            worst = max(worst, float(error.max()))
    return worst + 1e-13


def _gated_error(of: Activation, whole: ScalarFunction, x: np.ndarray) -> np.ndarray:
    """|x g(x) - f(x)| on cells: |x| and the gates, ours and f's own f(x) / x, are monotone on either side of 0."""
    a, gate = np.abs(x), _GATES[of.family](x)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = whole(x) / x
    own[0] = 0.6 if of.family == "mish" else 0.5

    def product(factor: np.ndarray, gates: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return paexp2(palog2(factor) + palog2(gates))

    least_a, least_gate, least_own = (np.minimum(v[:-1], v[1:]) for v in (a, gate, own))
    most_a, most_gate, most_own = (np.maximum(v[:-1], v[1:]) for v in (a, gate, own))
    over = product(most_a, most_gate) - least_a * least_own
    under = most_a * most_own - product(least_a, least_gate)
    result: np.ndarray = np.maximum(over, under)
    return result


# Bodies: in float64, where exponent and mantissa of any float32 have room in one number.

_CONSTANTS = (
    "zero = Constant <value = double {0.0}> ()",
    "one = Constant <value = double {1.0}> ()",
    "two = Constant <value = double {2.0}> ()",
    f"log2_e = Constant <value = double {{{LOG2E!r}}}> ()",
    "far = Constant <value = double {1000.0}> ()",
    "minus_far = Constant <value = double {-1000.0}> ()",
)


def _constant(name: str, value: float) -> str:
    return f"{name} = Constant <value = double {{{float(value)!r}}}> ()"


def _paexp2_text(u: str, y: str) -> str:
    """y = paexp2(u); NaN stays, infinities are far enough at a thousand octaves."""
    return lines(
        f"{y}_high = Less (far, {u})",
        f"{y}_low = Less ({u}, minus_far)",
        f"{y}_up = Where ({y}_high, far, {u})",
        f"{y}_u = Where ({y}_low, minus_far, {y}_up)",
        f"{y}_whole = Floor ({y}_u)",
        f"{y}_part = Sub ({y}_u, {y}_whole)",
        f"{y}_mantissa = Add ({y}_part, one)",
        f"{y}_power = Pow (two, {y}_whole)",
        f"{y} = Mul ({y}_mantissa, {y}_power)",
    )


def _palog2_text(x: str, y: str) -> str:
    """y = palog2(x), x > 0 and finite; the logarithm's rounding may put the exponent one off."""
    return lines(
        f"{y}_log = Log ({x})",
        f"{y}_log2 = Mul ({y}_log, log2_e)",
        f"{y}_near = Floor ({y}_log2)",
        f"{y}_near_power = Pow (two, {y}_near)",
        f"{y}_rough = Div ({x}, {y}_near_power)",
        f"{y}_above = Less ({y}_rough, one)",
        f"{y}_below = GreaterOrEqual ({y}_rough, two)",
        f"{y}_less = Sub ({y}_near, one)",
        f"{y}_more = Add ({y}_near, one)",
        f"{y}_upper = Where ({y}_below, {y}_more, {y}_near)",
        f"{y}_e = Where ({y}_above, {y}_less, {y}_upper)",
        f"{y}_power = Pow (two, {y}_e)",
        f"{y}_m = Div ({x}, {y}_power)",
        f"{y}_f = Sub ({y}_m, one)",
        f"{y} = Add ({y}_e, {y}_f)",
    )


def _decay_text(scale: float, y: str) -> str:
    """y = E(scale a)."""
    return lines(
        _constant(f"{y}_slope", -scale * LOG2E),
        f"{y}_times = Mul (a, {y}_slope)",
        _paexp2_text(f"{y}_times", y),
    )


def _exp_text() -> str:
    return lines("octaves = Mul (x, log2_e)", _paexp2_text("octaves", "y"))


def _power_text(family: str) -> str:
    """Powers by patterns, and 0, infinities and what has no root as the original has them."""
    root = family == "rsqrt"
    original = ["root = Sqrt (x)", "special = Reciprocal (root)"] if root else ["special = Reciprocal (x)"]
    return lines(
        _palog2_text("a", "logarithm"),
        _constant("exponent", _POWERS[family]),
        "octaves = Mul (logarithm, exponent)",
        _paexp2_text("octaves", "power"),
        "minus = Neg (power)",
        "signed = Where (negative, minus, power)",
        _constant("largest", float(np.finfo(np.float32).max)),
        f"above = Less (zero, {'x' if root else 'a'})",
        "finite = LessOrEqual (a, largest)",
        "regular = And (above, finite)",
        *original,
        "y = Where (regular, signed, special)",
    )


def _odd_text(offset: float, height: float, scale: float) -> str:
    return lines(
        _decay_text(scale, "decay"),
        "rise = Sub (one, decay)",
        _constant("height", height),
        "v = Mul (rise, height)",
        "minus = Neg (v)",
        "signed = Where (negative, minus, v)",
        _constant("offset", offset),
        "y = Add (signed, offset)",
    )


def _softplus_text() -> str:
    return lines(
        _decay_text(1.0, "decay"),
        _constant("ln2", math.log(2)),
        "v = Mul (decay, ln2)",
        "relu = Where (negative, zero, x)",
        "y = Add (relu, v)",
    )


def _gate_text(family: str) -> str:
    if family == "mish":
        gate = lines(
            _constant("reach", _REACH),
            "beyond = Less (reach, x)",
            "near = Where (beyond, reach, x)",
            "octaves = Mul (near, log2_e)",
            _paexp2_text("octaves", "e"),
            _palog2_text("e", "log_e"),
            "e_and_two = Add (e, two)",
            _palog2_text("e_and_two", "log_more"),
            "log_n = Add (log_e, log_more)",
            _paexp2_text("log_n", "n"),
            _palog2_text("n", "log_again"),
            "n_and_two = Add (n, two)",
            _palog2_text("n_and_two", "log_divisor"),
            "log_gate = Sub (log_again, log_divisor)",
        )
    else:
        gate = lines(
            _decay_text(QUICK if family == "gelu" else 1.0, "decay"),
            "half = Div (decay, two)",
            "rest = Sub (one, half)",
            "gate = Where (negative, half, rest)",
            _palog2_text("gate", "log_gate"),
        )
    return lines(
        gate,
        _palog2_text("a", "log_a"),
        "log_product = Add (log_a, log_gate)",
        _paexp2_text("log_product", "product"),
        "minus = Neg (product)",
        "signed = Where (negative, minus, product)",
        _constant("largest", float(np.finfo(np.float32).max)),
        "above = Less (zero, a)",
        "finite = LessOrEqual (a, largest)",
        "regular = And (above, finite)",
        "relu = Where (negative, zero, x)",
        "y = Where (regular, signed, relu)",
    )


METHODS = for_each(PiecewiseAffineActivation, ACTIVATIONS)
