"""Activations that level off, as a polynomial of a polynomial."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.numerics.composite import Composite, fit_composite
from lowerkit.numerics.functions import ScalarFunction
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.activation.base import ACTIVATIONS, Activation, ActivationMethod, for_each, on_unit
from lowerkit.passes.activation.bodies import Body, coefficients, from_attribute, horner, lines, number
from lowerkit.passes.base import Bound, Contract, Evidence

#: Degrees that either polynomial may have, and the coefficients that bodies evaluate: those of odd powers.
DEGREES = (3, 5, 7, 9, 11, 13, 15)
TERMS = 8


@dataclass(frozen=True)
class CompositeActivation(ActivationMethod):
    """f(x) = offset + outer(inner(x / limit)), both odd polynomials, for sigmoid, tanh and erf on [-limit, limit].

    Of depth 6, a polynomial of degree 49 in two of degree 7 takes 8 products where one of degree 49 takes about
    14 (Paterson and Stockmeyer): on encrypted data products, each with its relinearisation, are the time. The
    price is accuracy, for not every polynomial is such a composition; `interval-poly` of the same depth is closer.

    Both are fitted together, and the bound is certified for the rounded coefficients on 2^17 cells of [0, 1],
    from (outer o inner)'' = outer''(inner) inner'^2 + outer'(inner) inner''. By oddness it holds on the other
    side as well.

    `fit` takes the calibrated range's larger end times `margin` as `limit`. Beyond it the polynomials grow
    without limit, and there is no bound. f(0) is exact. NaN gives NaN.
    """

    inner: int = 7
    outer: int = 7
    limit: float = 0.0
    margin: float = 1.5

    name: ClassVar[str] = "composite"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Lee, Lee, No and Kim, Minimax approximation of sign function by composite polynomial for homomorphic "
        "comparison (IEEE TDSC 19, 2022), for functions that level off; fitted and certified here"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "14 multiply-adds per element: for reference, `poly` is closer",
        "gpu": "as on a cpu",
        "fpga": "(inner + outer) / 2 + 3 multipliers; no comparators",
        "he": "depth ceil(log2(inner + 1)) + ceil(log2(outer + 1)), and (inner + outer) / 2 + 1 products",
    }

    def __post_init__(self) -> None:
        for name in ("inner", "outer"):
            if getattr(self, name) not in DEGREES or not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be an odd integer from 3 to 15, not {getattr(self, name)!r}")
        if self.limit == 0:
            object.__setattr__(self, "limit", self.of.near)
        if (
            isinstance(self.limit, bool)
            or not isinstance(self.limit, (int, float))
            or not 1 <= self.limit <= 1000
        ):
            raise ValueError(f"limit must be a number from 1 to 1000, not {self.limit!r}")
        if (
            isinstance(self.margin, bool)
            or not isinstance(self.margin, (int, float))
            or not 1 <= self.margin <= 100
        ):
            raise ValueError(f"margin must be a number from 1 to 100, not {self.margin!r}")

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> CompositeActivation:
        """`limit` from the calibrated range."""
        method = cls(**options)
        if stats is None or not stats.count or "limit" in options:
            return method
        reach = method.margin * max(abs(stats.minimum), abs(stats.maximum))
        return replace(method, limit=float(np.clip(reach, 1.0, 1000.0)))

    def composite(self) -> Composite:
        """Both polynomials, with their bound."""
        return _composite(self.of, float(self.limit), self.inner, self.outer)

    def bound(self) -> Bound:
        """That of the two polynomials."""
        domain = f"x in [{-self.limit:.4g}, {self.limit:.4g}]"
        return Bound(self.composite().error, "absolute", domain, Evidence.PROVED)

    def refuses(self, node: ir.Node) -> str | None:
        """An error that leaves nothing of the function."""
        error = self.composite().error
        if error < 0.5:
            return None
        return f"may err by {error:.2g} on [{-self.limit:.4g}, {self.limit:.4g}]; raise the degrees, or lower the limit"

    def outside(self, stats: TensorStats) -> str | None:
        """Calibrated values that leave the interval."""
        reach = max(abs(stats.minimum), abs(stats.maximum)) if stats.count else 0.0
        return f"values reach {reach:.4g}, and the limit is {self.limit:.4g}" if reach > self.limit else None

    @classmethod
    def body_for(cls, activation: Activation) -> Body:
        """The operator of one of the functions."""
        text = lines(
            from_attribute("end", "limit"),
            number("one", 1.0),
            "shrink = Div (one, end)",
            "t = Mul (X, shrink)",
            "tt = Mul (t, t)",
            coefficients("i", "inner", TERMS),
            horner("i", "tt", TERMS, "first"),
            "u = Mul (first, t)",
            "uu = Mul (u, u)",
            coefficients("o", "outer", TERMS),
            horner("o", "uu", TERMS, "second"),
            "v = Mul (second, u)",
            number("offset", activation.offset),
            "Y = Add (v, offset)",
        )
        attributes = f"limit: float = {activation.near!r}"
        return Body(f"Composite{activation.op}", ("X", "inner", "outer"), attributes, text)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Eight coefficients of odd powers of each, highest first, float32."""
        both = self.composite()
        return {"inner": _odd(both.inner), "outer": _odd(both.outer)}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`limit`."""
        return {"limit": float(self.limit)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        result: np.ndarray = self.of.offset + self.composite()(np.asarray(x, np.float64) / self.limit)
        return result


def _odd(powers: tuple[float, ...]) -> np.ndarray:
    odd = powers[1::2]
    return np.array([*[0.0] * (TERMS - len(odd)), *odd[::-1]], np.float32)


@functools.cache
def _composite(of: Activation, limit: float, inner: int, outer: int) -> Composite:
    whole = of.wholes[0]
    odd = ScalarFunction(whole.name, lambda x: whole.value(x) - of.offset, whole.curvature)
    return fit_composite(on_unit(odd, -limit, limit, -1.0), inner, outer)


METHODS = for_each(CompositeActivation, [a for a in ACTIVATIONS if a.parity == 1])
