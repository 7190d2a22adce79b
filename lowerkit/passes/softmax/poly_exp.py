"""Softmax with a polynomial exponential."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.polynomial import Polynomial, minimax
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod

LOG2E = math.log2(math.e)
#: ln 2 in two parts: the first has few enough bits that its product with any exponent here is exact.
LN2_HIGH, LN2_LOW = 0.693359375, math.log(2.0) - 0.693359375
#: Where float32's exponential leaves the normal numbers.
CUTOFF = -126 * math.log(2.0)
#: Reach of the range-reduced argument: half of ln 2, and what rounding may add.
REACH = 0.3466


#: Bodies and kernels evaluate this many coefficients; those above the degree are zero.
TERMS = 8


@script(LOWERKIT, default_opset=op)
def PolySoftmax(X, coefficients, axis: int = -1):  # type: ignore[no-untyped-def]
    """e / sum e with e = p(r) 2^n and x - max = n ln 2 + r; 8 coefficients, highest power first."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    z = X - op.ReduceMax(X, axes)
    n = op.Round(z * 1.4426950408889634)
    r = z - n * 0.693359375 + n * 2.12194440054690583e-4
    c7, c6, c5, c4, c3, c2, c1, c0 = op.Split(coefficients, num_outputs=8)
    p = ((((((c7 * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r + c1) * r + c0
    e = op.Where(z < -87.33654475055310, op.CastLike(0.0, X), p * op.Pow(op.CastLike(2.0, X), n))
    return e / op.ReduceSum(e, axes)


@dataclass(frozen=True)
class PolyExp(SoftmaxMethod):
    """Softmax with exp replaced by a minimax polynomial after range reduction.

    x - max(x) = n ln 2 + r with n an integer and |r| <= ln(2)/2, so that exp(x - max) = 2^n exp(r), and
    p(r), of degree `degree`, stands for exp(r) with |p(r) / exp(r) - 1| <= eps. Below -126 ln 2 the
    exponential is taken as 0.

    Error: with p_i = e_i / sum e_j the softmax and each e_j perturbed to e_j (1 + d_j), |d_j| <= eps,

        p'_i - p_i = p_i (d_i (1 - p_i) - sum_{j != i} d_j p_j) / (1 + sum_j d_j p_j),

    and sum_{j != i} p_j = 1 - p_i, so that |p'_i - p_i| <= 2 eps / (1 - eps) p_i (1 - p_i), which is at most
    eps / (2 (1 - eps)). Each element below the cut-off is less than 2^-126 of the largest, so that dropping
    them moves a row of n <= 2^31 elements by less than n 2^-126 <= 2^-95 in all.

    Weights are non-negative, sum to 1, and are invariant to a shift. They keep the order of the logits up to eps:
    the pieces do not quite meet where n changes, and next to it the larger of two logits may get a weight smaller
    than the other's, by 2 eps / (1 + eps) of that at most. Equal logits get equal weights.

    Rows of -inf alone, with NaN or with +inf give NaN, as Softmax does.
    """

    degree: int = 5

    name: ClassVar[str] = "poly-exp"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "range reduction: Cody and Waite (1980); coefficients: Remez exchange, certified here"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "`degree` multiply-adds, a rounding and an exponent shift per element, all vectorised",
        "gpu": "as on a cpu; the special-function unit is left free",
        "fpga": "`degree` multipliers in a pipeline of II 1, and a shifter; one divider per row",
        "he": "depth ceil(log2(degree + 1)) for p, but range reduction and the maximum are not polynomial",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": PolySoftmax}

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or not 1 <= self.degree < TERMS:
            raise ValueError(f"degree must be an integer from 1 to {TERMS - 1}, not {self.degree!r}")

    def polynomial(self) -> Polynomial:
        """p, fitted to exp on the reduced range in relative error."""
        return _exp_polynomial(self.degree)

    def bound(self) -> Bound:
        """eps / (2 (1 - eps)), and what the cut-off drops."""
        eps = self.polynomial().error
        value = eps / (2 * (1 - eps)) + 2.0**-95
        return Bound(value, "absolute", "every finite row, and -inf elements", Evidence.PROVED)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Eight coefficients, highest power first."""
        array = self.polynomial().array()
        return {"coefficients": np.concatenate([np.zeros(TERMS - len(array), np.float32), array])}

    def exponentials(self, x: np.ndarray) -> np.ndarray:
        """e: p(r) 2^n along the last axis, in float64."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            z = x - x.max(axis=-1, keepdims=True)
            n = np.round(z * LOG2E)
            r = z - n * LN2_HIGH - n * LN2_LOW
            e: np.ndarray = np.where(z < CUTOFF, 0.0, self.polynomial()(r) * np.exp2(n))
        return e

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        e = self.exponentials(x)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            result: np.ndarray = e / e.sum(axis=-1, keepdims=True)
        return result


@functools.cache
def _exp_polynomial(degree: int) -> Polynomial:
    return minimax(np.exp, -REACH, REACH, degree, curvature=math.exp(REACH), relative=True)
