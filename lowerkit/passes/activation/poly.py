"""Activations by one minimax polynomial of the core."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.numerics.polynomial import Polynomial, minimax
from lowerkit.passes.activation import bodies
from lowerkit.passes.activation.base import Activation, CoreMethod, body, for_each, on_unit
from lowerkit.passes.activation.bodies import Body

#: Bodies and kernels evaluate this many coefficients; those above the degree are zero.
TERMS = 13


@dataclass(frozen=True)
class _OnInterval:
    """A polynomial of t in [-1, 1] as a function on [low, high]."""

    polynomial: Polynomial
    low: float
    high: float

    @property
    def error(self) -> float:
        return self.polynomial.error

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.polynomial((2 * x - (self.low + self.high)) / (self.high - self.low))


@dataclass(frozen=True)
class PolyActivation(CoreMethod):
    """The function's core (see `table`) as one minimax polynomial of degree `degree`.

    The core's interval is mapped to t in [-1, 1], where the coefficients are small and Horner's scheme is stable.
    There the error is the polynomial's: certified on 2^17 cells, for the coefficients as rounded to float32, from
    the error at the cells' ends and h^2/8 of its second derivative. Beyond `limit` the polynomial holds its value
    at the limit, which adds at most how far the function is from its end there.

    NaN and infinities are as with `table`; f(0) is off by up to the bound.
    """

    degree: int = 11

    name: ClassVar[str] = "poly"
    source: ClassVar[str] = (
        "coefficients: Remez exchange (1934), certified here; the split of GELU as in Edge-MoE (ICCAD 2023)"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "`degree` multiply-adds, a maximum and a minimum per element, all vectorised",
        "gpu": "as on a cpu; no special-function unit",
        "fpga": "`degree` multipliers in a pipeline of II 1",
        "he": "not applicable as it stands, for |x| and max need sign polynomials: see interval-poly",
    }

    def __post_init__(self) -> None:
        self.check("degree", range(2, TERMS))

    @classmethod
    def body_for(cls, activation: Activation) -> Body:
        """The operator of one of the functions."""
        return body("Poly", activation, ("coefficients",), bodies.polynomial(TERMS))

    def fitted(self, variant: int) -> _OnInterval:
        """The polynomial for one of the function's forms."""
        low, high = self.of.form.interval(self.reach)
        return _OnInterval(_polynomial(self.of, variant, self.reach, self.degree), low, high)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Thirteen coefficients, highest power first."""
        array = self.fitted(self.variant(node)).polynomial.array()
        return {"coefficients": np.concatenate([np.zeros(TERMS - len(array), np.float32), array])}


@functools.cache
def _polynomial(of: Activation, variant: int, limit: float, degree: int) -> Polynomial:
    core = on_unit(of.cores[variant], *of.form.interval(limit), -1.0)
    return minimax(core.value, -1.0, 1.0, degree, curvature=core.curvature, relative=of.form.relative)


METHODS = for_each(PolyActivation, near=True)
