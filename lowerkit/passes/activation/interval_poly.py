"""Activations by one polynomial over a calibrated interval: additions and multiplications alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.numerics.functions import ScalarFunction
from lowerkit.numerics.series import Series, certified_series, least_squares_series, minimax_series
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.activation.base import (
    ACTIVATIONS,
    RELU,
    Activation,
    ActivationMethod,
    for_each,
    integer_option,
)
from lowerkit.passes.activation.bodies import Body, coefficients, from_attribute, lines, number
from lowerkit.passes.base import Bound, Contract, Evidence

#: Bodies evaluate this many coefficients; those above the degree are zero.
TERMS = 64
#: Degrees that take all of a number of levels on encrypted data, among which `max_error` chooses.
_WHOLE = (1, 3, 7, 15, 31, 63)
#: Parts of the interval in which calibrated values are counted.
_PARTS = 256
#: Ends of intervals of positive functions, of exp, whose values are then float32's, and of all others.
_LEAST, _EXP, _MOST = 2.0**-24, 80.0, 1e6


def _clenshaw() -> str:
    """sum c_k T_k(t), from the highest on: b_k = c_k + 2 t b_(k+1) - b_(k+2)."""
    steps = ["twice = Add (t, t)"]
    one, two = f"c{TERMS - 1}", ""
    for k in range(TERMS - 2, -1, -1):
        factor = "twice" if k else "t"
        steps.append(f"turned{k} = Mul ({factor}, {one})")
        steps.append(f"raised{k} = Add (turned{k}, c{k})")
        if two:
            steps.append(f"b{k} = Sub (raised{k}, {two})")
            two, one = one, f"b{k}"
        else:
            two, one = one, f"raised{k}"
    return lines(*steps, f"Y = Identity ({one})")


@dataclass(frozen=True)
class IntervalPolyActivation(ActivationMethod):
    """The whole function on [low, high] as one polynomial, which knows no comparison, sign or shift.

    sum c_k T_k(t), t the interval mapped to [-1, 1], by Clenshaw's recurrence: Chebyshev polynomials keep degrees
    up to 63 stable in float32. What symmetry the function has is used where the interval has it too, so that half
    of the coefficients are 0: tanh and erf are odd, the sigmoid is after 1/2 is taken off, and GELU, SiLU and
    softplus are even after x/2 is, and ReLU is |x|/2. There the polynomial is x/2 plus one of t^2, and a degree of
    2 m costs the depth of m and one.

    `fitting` says what the degrees of freedom are for: `minimax` makes the largest error on the interval the
    least, `least-squares` the mean square error over the calibrated values, a hundredth of the weight spread
    evenly over the interval. The latter's coefficients depend on the data, so that plans hold them.

    `fit` takes the calibrated range, `margin` times as wide about its middle (1/x and x^(-1/2), whose intervals
    must stay above 0: from low / margin to high * margin), and makes it symmetric where that gives a parity.
    The bound is certified on 2^17 cells for the rounded coefficients, whichever way they were found; it is
    relative for exp, 1/x and x^(-1/2).

    Where `max_error` is not 0, the degree is the least of 1, 3, 7, ..., 63 whose minimax polynomial is within it on the
    interval. For 1/x the relative error of degree d is 1 / T_(d+1)((high + low) / (high - low)): at high / low = 100,
    8 % for degree 15, 0.33 % for 31 and, as coefficients are float32, 2e-5 for 63. A Newton step, which squares it,
    takes two products in a row, where twice the degree nearly squares it with one.

    Outside of [low, high] polynomials grow without limit: the error there has no bound, and values that
    calibration did not foresee may spoil everything that depends on them. NaN gives NaN.
    """

    degree: int = 11
    low: float = 0.0
    high: float = 0.0
    margin: float = 1.5
    fitting: str = "minimax"
    coefficients: tuple[float, ...] = ()
    max_error: float = 0.0

    name: ClassVar[str] = "interval-poly"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "polynomials on calibrated ranges for encrypted inference: Chen et al., THE-X (Findings of ACL 2022), "
        "section 3; Remez exchange or weighted least squares, certified here"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "63 steps of Clenshaw's recurrence per element: for reference, `poly` is faster",
        "gpu": "as on a cpu",
        "fpga": "`degree` multipliers, half of them where there is a parity; no comparators",
        "he": "depth ceil(log2(degree + 1)); about 2 sqrt(degree) products by Paterson and Stockmeyer's scheme",
    }

    def __post_init__(self) -> None:
        integer_option(self, "degree", 1, TERMS - 1)
        if self.low == self.high == 0:
            object.__setattr__(self, "low", self.of.low)
            object.__setattr__(self, "high", self.of.high)
        least, most = self._ends()
        for name in ("low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise ValueError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}")
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, not {self.low!r} and {self.high!r}")
        if (
            isinstance(self.margin, bool)
            or not isinstance(self.margin, (int, float))
            or not 1 <= self.margin <= 100
        ):
            raise ValueError(f"margin must be a number from 1 to 100, not {self.margin!r}")
        if self.fitting not in ("minimax", "least-squares"):
            raise ValueError(f"fitting must be minimax or least-squares, not {self.fitting!r}")
        wanted = self.max_error
        if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or not 0 <= wanted < 1:
            raise ValueError(f"max_error must be a number from 0 to 1, not {wanted!r}")
        if wanted and not self.coefficients:
            object.__setattr__(self, "degree", self._least_degree())  # so that plans say what was chosen
        given = tuple(self.coefficients)
        if given and (len(given) != self.degree + 1 or not np.all(np.isfinite(given))):
            raise ValueError(f"coefficients must be {self.degree + 1} finite numbers")
        object.__setattr__(self, "coefficients", given)

    def _ends(self) -> tuple[float, float]:
        """Between which the interval has to be."""
        if self.positive:
            return _LEAST, _MOST
        return (-_EXP, _EXP) if self.of.op == "Exp" else (-_MOST, _MOST)

    def _least_degree(self) -> int:
        """The least degree whose bound on the interval is at most `max_error`."""
        for degree in _WHOLE:
            bound = replace(self, degree=degree, max_error=0.0).bound().value
            if bound <= self.max_error:
                return degree
        raise ValueError(
            f"max_error {self.max_error:g} is out of reach on [{self.low:.4g}, {self.high:.4g}]: degree {degree} "
            f"gives {bound:.2g}; choose a smaller margin"
        )

    @property
    def positive(self) -> bool:
        """Whether the function is wanted above 0 alone."""
        return self.of.op in ("Reciprocal", "Rsqrt")

    @property
    def relative(self) -> bool:
        """Whether the bound is relative."""
        return self.of.form.relative

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> IntervalPolyActivation:
        """The interval from the calibrated range, and the least-squares coefficients from the values."""
        if stats is None or not stats.count:
            return cls(**options)
        if "low" not in options and "high" not in options:
            low, high = cls(**{**options, "max_error": 0.0}).widened(stats.minimum, stats.maximum)
            options = {**options, "low": low, "high": high}
        method = cls(**options)
        if method.fitting == "least-squares" and "coefficients" not in options:
            fitted = method.weighted(stats)
            method = replace(method, coefficients=fitted)
        return method

    def widened(self, low: float, high: float) -> tuple[float, float]:
        """`low` and `high` for a calibrated range."""
        if self.positive:
            low, high = max(low / self.margin, _LEAST), min(max(high * self.margin, 2 * _LEAST), _MOST)
            return low, max(high, low * 2)
        if self.of.parity is not None:
            reach = float(np.clip(self.margin * max(abs(low), abs(high)), 1.0, _MOST))
            return -reach, reach
        middle, half = (low + high) / 2, max(self.margin * (high - low) / 2, 0.5)
        least, most = self._ends()
        return max(middle - half, least), min(middle + half, most)

    def weighted(self, stats: TensorStats) -> tuple[float, ...]:
        """Least-squares coefficients for the calibrated values."""
        values = np.concatenate([np.zeros(0), *(x.ravel() for x in stats.examples)])
        density = np.histogram(values[np.isfinite(values)], _PARTS, (self.low, self.high))[0].astype(
            np.float64
        )
        if not density.any():
            density += 1
        parity = _parity(self.of, self.low, self.high)
        if parity is not None:
            density += density[::-1]
        reduced = _reduced(self.of, 0, parity)
        found = least_squares_series(
            reduced, self.low, self.high, self.degree, density, relative=self.relative, parity=parity
        )
        return _with_line(found, self.of, parity).coefficients

    def series(self, variant: int = 0) -> Series:
        """The polynomial, with its bound, for one of the function's forms."""
        if self.coefficients:
            return _given(self.of, variant, float(self.low), float(self.high), self.coefficients)
        return _minimax(self.of, variant, float(self.low), float(self.high), self.degree)

    def bound(self) -> Bound:
        """The larger of the bounds of the function's forms."""
        worst = max(self.series(variant).error for variant in range(len(self.of.wholes)))
        kind = "relative" if self.relative else "absolute"
        return Bound(worst, kind, f"x in [{self.low:.4g}, {self.high:.4g}]", Evidence.PROVED)

    def outside(self, stats: TensorStats) -> str | None:
        """Calibrated values that leave the interval."""
        if not stats.count or self.low <= stats.minimum <= stats.maximum <= self.high:
            return None
        return (
            f"values reach from {stats.minimum:.4g} to {stats.maximum:.4g}, "
            f"and the interval is {self.low:.4g} to {self.high:.4g}"
        )

    @classmethod
    def body_for(cls, activation: Activation) -> Body:
        """The operator of one of the functions."""
        text = lines(
            from_attribute("low", "low"),
            from_attribute("high", "high"),
            number("one", 1.0),
            number("two", 2.0),
            "width = Sub (high, low)",
            "stretch = Div (two, width)",
            "from_low = Sub (X, low)",
            "stretched = Mul (from_low, stretch)",
            "t = Sub (stretched, one)",
            coefficients("c", "coefficients", TERMS),
            _clenshaw(),
        )
        attributes = f"low: float = {activation.low!r}, high: float = {activation.high!r}"
        return Body(f"IntervalPoly{activation.op}", ("X", "coefficients"), attributes, text)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Coefficients of T_0 to T_63, float32."""
        found = self.series(self.variant(node)).coefficients
        return {"coefficients": np.array([*found, *[0.0] * (TERMS - len(found))], np.float32)}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`low` and `high`."""
        return {"low": float(self.low), "high": float(self.high)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`; `tanh=True` for Gelu's tanh form."""
        return self.series(int(bool(attributes.get("tanh"))))(np.asarray(x, np.float64))


def _parity(of: Activation, low: float, high: float) -> int | None:
    return of.parity if low == -high else None


def _reduced(of: Activation, variant: int, parity: int | None) -> ScalarFunction:
    """The function less its line, where what is left has a parity."""
    whole = of.wholes[variant]
    if parity is None:
        return whole
    return ScalarFunction(whole.name, lambda x: whole.value(x) - of.slope * x - of.offset, whole.curvature)


def _with_line(series: Series, of: Activation, parity: int | None) -> Series:
    """The series with the line put back, and its bound anew."""
    if parity is None:
        return series
    found = np.zeros(max(len(series.coefficients), 2))
    found[: len(series.coefficients)] = series.coefficients
    found[0] += of.offset
    found[1] += of.slope * series.high
    return Series(tuple(float(np.float32(c)) for c in found), series.low, series.high, series.error)


@functools.cache
def _minimax(of: Activation, variant: int, low: float, high: float, degree: int) -> Series:
    parity = _parity(of, low, high)
    found = minimax_series(
        _reduced(of, variant, parity), low, high, degree, relative=of.form.relative, parity=parity
    )
    return _given(of, variant, low, high, _with_line(found, of, parity).coefficients)


@functools.cache
def _given(of: Activation, variant: int, low: float, high: float, given: tuple[float, ...]) -> Series:
    return certified_series(np.array(given), of.wholes[variant], low, high, relative=of.form.relative)


METHODS = for_each(IntervalPolyActivation, [*ACTIVATIONS, RELU])
