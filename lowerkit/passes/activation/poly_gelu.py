"""GELU as ReLU minus a polynomial."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.polynomial import Polynomial, minimax
from lowerkit.passes.activation.base import BUMP_CURVATURE, GeluMethod, bump, is_tanh
from lowerkit.passes.base import Bound, Contract, Evidence

#: Bodies and kernels evaluate this many coefficients; those above the degree are zero.
TERMS = 13


@script(LOWERKIT, default_opset=op)
def PolyGelu(X, coefficients, limit: float = 5.0):  # type: ignore[no-untyped-def]
    """max(x, 0) - p(t), t = 2 min(|x|, limit) / limit - 1; 13 coefficients, highest power first."""
    end = op.CastLike(op.Constant(value_float=limit), X)
    t = op.Min(op.Abs(X), end) * (2.0 / end) - 1.0
    c12, c11, c10, c9, c8, c7, c6, c5, c4, c3, c2, c1, c0 = op.Split(coefficients, num_outputs=13)
    p = ((((((c12 * t + c11) * t + c10) * t + c9) * t + c8) * t + c7) * t + c6) * t
    p = ((((((p + c5) * t + c4) * t + c3) * t + c2) * t + c1) * t) + c0
    # A maximum would lose NaN on hardware where max(NaN, 0) is 0.
    return op.Where(X < 0.0, op.CastLike(0.0, X), X) - p


@dataclass(frozen=True)
class PolyGeluMethod(GeluMethod):
    """GELU(x) = max(x, 0) - g(|x|) with g, a smooth bump, as one minimax polynomial of degree `degree`.

    The argument is mapped to t = 2 min(|x|, limit) / limit - 1 in [-1, 1], where the coefficients are small
    and Horner's scheme is stable. On |x| <= limit the error is the polynomial's, certified; beyond, the
    polynomial holds its value at the limit, which adds at most g(limit).

    NaN gives NaN and +inf gives +inf. At -inf, where the formula of Gelu gives -inf * 0 = NaN, the result is
    that of any x below -limit, within the bound of 0.
    """

    degree: int = 11
    limit: float = 5.0

    name: ClassVar[str] = "poly"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "coefficients: Remez exchange, certified here; the split as in Edge-MoE (ICCAD 2023)"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "`degree` multiply-adds, a maximum and a minimum per element, all vectorised",
        "gpu": "as on a cpu; no special-function unit",
        "fpga": "`degree` multipliers in a pipeline of II 1",
        "he": "not applicable as it stands: |x| and max need sign polynomials",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Gelu": PolyGelu}

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or not 2 <= self.degree < TERMS:
            raise ValueError(f"degree must be an integer from 2 to {TERMS - 1}, not {self.degree!r}")
        if not isinstance(self.limit, (int, float)) or not 2 <= self.limit <= 16:
            raise ValueError(f"limit must be a number from 2 to 16, not {self.limit!r}")

    def polynomial(self, tanh: bool = False) -> Polynomial:
        """p(t) for one of the two forms."""
        return _bump_polynomial(self.degree, float(self.limit), tanh)

    def bound(self) -> Bound:
        """The larger of the two forms' bounds."""
        worst = max(self.polynomial(tanh).error for tanh in (False, True))
        tail = max(float(bump(np.array([self.limit]), tanh)[0]) for tanh in (False, True))
        return Bound(worst + tail, "absolute", "all finite x", Evidence.PROVED)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Thirteen coefficients, highest power first."""
        array = self.polynomial(is_tanh(node)).array()
        return {"coefficients": np.concatenate([np.zeros(TERMS - len(array), np.float32), array])}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`limit`."""
        return {"limit": float(self.limit)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`; `tanh=True` for the tanh form."""
        x = np.asarray(x, np.float64)
        t = 2 * np.minimum(np.abs(x), self.limit) / self.limit - 1
        result: np.ndarray = np.maximum(x, 0) - self.polynomial(bool(attributes.get("tanh")))(t)
        return result


@functools.cache
def _bump_polynomial(degree: int, limit: float, tanh: bool) -> Polynomial:
    def mapped(t: np.ndarray) -> np.ndarray:
        return bump((t + 1) * limit / 2, tanh)

    return minimax(mapped, -1.0, 1.0, degree, curvature=BUMP_CURVATURE * (limit / 2) ** 2)
