"""Softmax with the denominator from the cumulants of the row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod

#: q = p (1 - p) at which the fifth central moment of two atoms is largest.
FIFTH = (10 - math.sqrt(20)) / 40
#: Order m -> bound of the (m + 1)-th cumulant, in units of R^(m + 1), of a variable in an interval of width R.
CUMULANT = {
    2: 1 / (6 * math.sqrt(3)),
    3: 1 / 8,
    4: FIFTH * math.sqrt(1 - 4 * FIFTH) * (1 - 2 * FIFTH) + 10 / (25 * math.sqrt(5)),
}


@script(LOWERKIT, default_opset=op)
def CumulantSoftmax(X, axis: int = -1, order: int = 2):  # type: ignore[no-untyped-def]
    """exp(x - mean - k2/2 - k3/6 - k4/24 - log n), cumulants above `order` left out; -inf is masked."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    terms = op.Constant(value_int=order)
    zero = op.CastLike(0.0, X)
    # Only -inf is below the smallest float32.
    masked = X < -3.4028234663852886e38
    n = op.ReduceSum(op.Where(masked, zero, op.CastLike(1.0, X)), axes)
    # Divided first, so that the sum of a row cannot overflow.
    mean = op.ReduceSum(op.Where(masked, zero, X / n), axes)
    d = op.Where(masked, zero, X - mean)
    square = d * d
    k2 = op.ReduceSum(square, axes) / n
    k3 = op.ReduceSum(square * d, axes) / n
    k4 = op.ReduceSum(square * square, axes) / n - 3.0 * k2 * k2
    higher = op.Where(terms < 3, zero, k3 / 6.0) + op.Where(terms < 4, zero, k4 / 24.0)
    return op.Exp(X - mean - (k2 * 0.5 + higher + op.Log(n)))


@dataclass(frozen=True)
class Cgf(SoftmaxMethod):
    """Softmax without maximum and division: exp(x_i - log n - K(1)), K from the row's first cumulants.

    Let X be one of the row's n values, drawn uniformly, and K(t) = log E exp(t X) its cumulant generating
    function. Then log sum_j exp(x_j) = log n + K(1) exactly, and Taylor's formula about 0 gives

        K(1) = k1 + k2/2 + k3/6 + ... + k_m/m! + K^(m+1)(s) / (m+1)!   for some s in (0, 1),

    with k1 the mean, k2 the variance, k3 = E d^3, k4 = E d^4 - 3 k2^2, d = X - k1, and m = `order` from 2 to 4.

    Remainder. K^(j)(s) is the j-th cumulant of the values under weights proportional to exp(s x): of a variable
    Y within an interval of width R = max - min of the row. For such variables, with v = var Y:

    - |k3| <= R^3 / (6 sqrt 3). Among distributions on an interval with given mean, a linear functional is
      extreme at one with at most two atoms; for atoms w <= R apart with weights p and 1 - p it is
      w^3 p (1 - p)(1 - 2p), largest at 1 / (6 sqrt 3).
    - |k4| <= R^4 / 8. Given the mean, E d^4 - 3 v^2 is concave in the distribution, so that it is least at two
      atoms: w^4 (q - 6 q^2) >= -w^4 / 8, q = p (1 - p) in [0, 1/4]. And E d^4 <= R^2 v gives
      k4 <= R^2 v - 3 v^2 <= R^4 / 12.
    - |k5| <= 0.2458 R^5. k5 = E d^5 - 10 k3 v. E d^5 is linear given the mean: two atoms,
      q sqrt(1 - 4q)(1 - 2q) w^5, largest where 20 q^2 - 10 q + 1 = 0: 0.0669. And for Y - mean in [-A, B],
      E (B - d)(d + v/B)^2 >= 0 says k3 <= v (B - v/B), where v <= A B (Bhatia and Davis) and A + B <= R give
      B + v/B <= R, hence B - v/B <= sqrt(R^2 - 4v) and, with the mirror image, |k3| <= v sqrt(R^2 - 4v). So
      |k3 v| <= v^2 sqrt(R^2 - 4v) <= R^5 / (25 sqrt 5).

    With e the remainder's bound for R = `spread`, the result is exp(t) times the softmax, |t| <= e, and its
    relative error at most exp(e) - 1. e is 0.0161 R^3, 0.0053 R^4 or 0.0021 R^5 for the three orders.

    The result is non-negative and keeps the order of the logits, as exp does; every element of a row is off by
    the same factor, and the row sums to it.

    Rows wider than `spread` are outside the domain: a lone peak can give any factor, +inf included, and rows
    whose cubes or fourth powers leave float32 may give NaN for orders 3 and 4. `fit` takes the calibrated spread
    as long as the bound for it is below 1, and `outside` tells of rows beyond. -inf elements count as masked:
    they are left out of n and the cumulants, and give 0; large negative finite masks widen the row instead.
    Rows of -inf alone, with NaN or with +inf give NaN, as Softmax does.
    """

    order: int = 2
    spread: float = 2.0

    name: ClassVar[str] = "cgf"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "CGF-Softmax: A Cumulant-Based Softmax Reformulation for Efficient Inference under Homomorphic "
        "Encryption (arXiv 2602.01621, 2026); remainder bounded here"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "one exponential per element, two passes for the cumulants; one logarithm per length, no division",
        "gpu": "as on a cpu; sums in place of a maximum and a sum",
        "fpga": "`order` multiply-accumulators for the cumulants; neither comparators nor a divider",
        "he": "depth of the cumulants (1 for `order` 2) and of one polynomial exponential; 1 / n is a constant",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": CumulantSoftmax}

    def __post_init__(self) -> None:
        if self.order not in CUMULANT or not isinstance(self.order, int):
            raise ValueError(f"order must be 2, 3 or 4, not {self.order!r}")
        if (
            isinstance(self.spread, bool)
            or not isinstance(self.spread, (int, float))
            or not 0 < self.spread <= 16
        ):
            raise ValueError(f"spread must be a number above 0 and at most 16, not {self.spread!r}")

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> Cgf:
        """`spread` from the widest calibrated row, as far as the bound is below 1."""
        method = cls(**options)
        if "spread" in options or stats is None or not stats.row_spread[1] > 0:
            return method
        return replace(method, spread=min(stats.row_spread[1], method.widest()))

    def remainder(self) -> float:
        """e: the bound of |K(1) - its approximation| for rows of width `spread`."""
        j = self.order + 1
        return CUMULANT[self.order] * float(self.spread) ** j / math.factorial(j)

    def widest(self) -> float:
        """The width of row for which the bound is 1."""
        j = self.order + 1
        return float((math.log(2) * math.factorial(j) / CUMULANT[self.order]) ** (1 / j))

    def bound(self) -> Bound:
        """exp(e) - 1."""
        domain = f"rows with max - min <= {self.spread:g}, and -inf elements"
        return Bound(math.expm1(self.remainder()), "relative", domain, Evidence.PROVED)

    def outside(self, stats: TensorStats) -> str | None:
        """Rows wider than `spread`."""
        if stats.count and stats.row_spread[1] > self.spread:
            return f"rows are up to {stats.row_spread[1]:.3g} wide, and the bound holds up to {self.spread:g}"
        return None

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis` and `order`."""
        return {**super().attributes(node), "order": self.order}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            masked = x == -np.inf
            n = (~masked).sum(axis=-1, keepdims=True)
            mean = np.where(masked, 0.0, x / n).sum(axis=-1, keepdims=True)
            d = np.where(masked, 0.0, x - mean)
            k2, k3, fourth = ((d**j).sum(axis=-1, keepdims=True) / n for j in (2, 3, 4))
            log_sum = k2 / 2 + np.log(n)
            if self.order >= 3:
                log_sum = log_sum + k3 / 6
            if self.order >= 4:
                log_sum = log_sum + (fourth - 3 * k2**2) / 24
            result: np.ndarray = np.exp(x - mean - log_sum)
        return result
