"""Activations by a rational function of the core."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.numerics.rational import Rational, fit_rational
from lowerkit.passes.activation import bodies
from lowerkit.passes.activation.base import Activation, CoreMethod, body, for_each, integer_option, on_unit
from lowerkit.passes.activation.bodies import Body

#: Bodies evaluate this many coefficients of numerator and denominator; those above the degrees are zero.
TOP, BOTTOM = 9, 8


@dataclass(frozen=True)
class _OnInterval:
    """A rational function of w in [0, 1] as a function on [low, high]."""

    rational: Rational
    low: float
    high: float

    @property
    def error(self) -> float:
        return self.rational.error

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.rational((x - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class RationalActivation(CoreMethod):
    """The function's core (see `table`) as P(w) / (1 + |Q(w)|), w in [0, 1] on the core's interval.

    P has degree `numerator` and Q, without a constant, degree `denominator`. The divisor is at least 1, so that
    there is no pole whatever the coefficients: they may be rounded, or trained further, which is what the form is
    for. Functions that level off are where a quotient is far ahead of a polynomial of the same cost.

    P and Q are found by linear programming, a denominator at a time, with Q >= 0. Proof of the bound: times
    1 + |Q| the error is |P - f (1 + |Q|)|, at most |P - f (1 + Q)| and 2 |f| times what Q is below 0; the former
    is smooth, and bounded on each of 2^17 cells by the larger of its ends and h^2/8 of its second derivative, for
    the coefficients as rounded to float32. Beyond `limit` the value at the limit holds.

    NaN and infinities are as with `table`; f(0) is off by up to the bound.
    """

    numerator: int = 5
    denominator: int = 4

    name: ClassVar[str] = "rational"
    source: ClassVar[str] = (
        "the safe quotient: Yang and Wang, Kolmogorov-Arnold Transformer (ICLR 2025, preprint 2024), section 3; its "
        "fit and bound: here"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "`numerator` + `denominator` multiply-adds and a division per element, all vectorised",
        "gpu": "as on a cpu; no special-function unit",
        "fpga": "`numerator` + `denominator` multipliers and a divider in a pipeline of II 1",
        "he": "not applicable: needs a division",
    }

    def __post_init__(self) -> None:
        integer_option(self, "denominator", 1, BOTTOM)
        self.check("numerator", range(1, TOP))

    @classmethod
    def body_for(cls, activation: Activation) -> Body:
        """The operator of one of the functions."""
        return body("Rational", activation, ("numerator", "denominator"), bodies.rational(TOP, BOTTOM))

    def fitted(self, variant: int) -> _OnInterval:
        """The quotient for one of the function's forms."""
        low, high = self.of.form.interval(self.reach)
        return _OnInterval(
            _rational(self.of, variant, self.reach, self.numerator, self.denominator), low, high
        )

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Coefficients, highest power first, float32: nine of P, and eight of Q without its constant."""
        fitted = self.fitted(self.variant(node)).rational
        top, bottom = fitted.numerator[::-1], fitted.denominator[:0:-1]
        return {
            "numerator": np.array([*[0.0] * (TOP - len(top)), *top], np.float32),
            "denominator": np.array([*[0.0] * (BOTTOM - len(bottom)), *bottom], np.float32),
        }


@functools.cache
def _rational(of: Activation, variant: int, limit: float, numerator: int, denominator: int) -> Rational:
    core = on_unit(of.cores[variant], *of.form.interval(limit), 0.0)
    return fit_rational(core, numerator, denominator, relative=of.form.relative)


METHODS = for_each(RationalActivation)
