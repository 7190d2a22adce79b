"""Softplus in the exponential's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.base import Contract
from lowerkit.passes.softmax.base import SoftmaxMethod


@script(LOWERKIT, default_opset=op)
def SoftplusAttention(X, axis: int = -1, epsilon: float = 1e-9):  # type: ignore[no-untyped-def]
    """s / (epsilon + sum s), s = log(1 + exp(x)) = max(x, 0) + log(1 + w), w = exp(-|x|)."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    e = op.CastLike(op.Constant(value_float=epsilon), X)
    w = op.Exp(op.Neg(op.Abs(X)))
    # log(1 + w) = 2 artanh(t), t = w / (2 + w) <= 1/3, by its series: a logarithm of 1 + w would lose a small w.
    t = w / (w + 2.0)
    q = t * t
    series = (
        (((((q / 13.0 + 1.0 / 11.0) * q + 1.0 / 9.0) * q + 1.0 / 7.0) * q + 0.2) * q) + 1.0 / 3.0
    ) * q + 1.0
    s = op.Where(X < 0.0, op.CastLike(0.0, X), X) + 2.0 * t * series
    # A row of large logits may add up to infinity, and its half mean may not.
    n = op.CastLike(op.Gather(op.Shape(X), axes), X)
    shrink = op.Where(op.IsInf(op.ReduceSum(s, axes)), 0.5 / n, op.CastLike(1.0, X))
    small = s * shrink
    return small / (e * shrink + op.ReduceSum(small, axes))


@dataclass(frozen=True)
class SoftplusWeights(SoftmaxMethod):
    """softplus(x_i) / (epsilon + sum_j softplus(x_j)): weights by their l1 norm.

    Softmax is exp followed by division by the l1 norm. With softplus, log(1 + exp(x)), in its place weights grow
    linearly with large logits rather than exponentially, which neither overflows nor needs a maximum, and which
    keeps its resolution over long rows. Where the sum of a row of finite logits leaves float32 both parts of the
    quotient are divided by 2 n first.

    This is another function than softmax, for networks trained with it. Weights are non-negative, keep the order
    of the logits and sum to 1 up to epsilon over the sum; nothing is invariant to a shift. -inf gives 0, a row of
    -inf alone zeros; NaN makes its row NaN; +inf gives NaN at its own element and 0 at the others.
    """

    epsilon: float = 1e-9

    name: ClassVar[str] = "softplus"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Gao and Spratling, Softplus Attention with Re-weighting Boosts Length Extrapolation (2025), section 3.1"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "an exponential, a division and 8 multiply-adds per element, two passes over memory, no maximum",
        "gpu": "as on a cpu",
        "fpga": "one table read per element, one accumulator and one divider per row, no maximum",
        "he": "one softplus polynomial per element and one reciprocal per row",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": SoftplusAttention}

    def __post_init__(self) -> None:
        value = self.epsilon
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-30 <= value <= 1:
            raise ValueError(f"epsilon must be a number from 1e-30 to 1, not {value!r}")

    def bound(self) -> None:
        """None: another function."""

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis` and `epsilon`."""
        return {**super().attributes(node), "epsilon": float(self.epsilon)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore"):
            s = np.where(x < 0, 0.0, x) + np.log1p(np.exp(-np.abs(x)))
            result: np.ndarray = s / (self.epsilon + s.sum(axis=-1, keepdims=True))
        return result
