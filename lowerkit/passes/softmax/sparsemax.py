"""The projection of the logits onto the simplex."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.base import Contract
from lowerkit.passes.softmax.base import SoftmaxMethod


@script(LOWERKIT, default_opset=op)
def Sparsemax(X, axis: int = -1):  # type: ignore[no-untyped-def]
    """max(z - tau, 0) with tau from the sorted row; z = max(x - max x, -2)."""
    along = op.Constant(value_int=axis)
    axes = op.Unsqueeze(along, op.Constant(value_ints=[0]))
    zero, one, low = op.CastLike(0.0, X), op.CastLike(1.0, X), op.CastLike(-2.0, X)
    shifted = X - op.ReduceMax(X, axes)
    z = op.Where(shifted < low, low, shifted)
    s, _order = op.TopK(z, op.Gather(op.Shape(X), axes), axis=axis)
    k = op.CumSum(op.CastLike(s <= one, X), along)
    inside = one + k * s > op.CumSum(s, along)
    count = op.ReduceSum(op.CastLike(inside, X), axes)
    tau = (op.ReduceSum(op.Where(inside, s, zero), axes) - one) / count
    # A maximum would lose NaN on hardware where max(NaN, 0) is 0.
    y = op.Where(z < tau, zero, z - tau)
    # Maxima and sorts need not pass NaN on.
    return y + op.ReduceSum(op.Where(op.IsNaN(shifted), shifted, zero), axes)


@dataclass(frozen=True)
class SparsemaxWeights(SoftmaxMethod):
    """argmin over the simplex of |p - x|^2 = max(x_i - tau, 0), with tau such that the weights sum to 1.

    With the row sorted, s_1 >= s_2 >= ..., element k has a positive weight iff 1 + k s_k > s_1 + ... + s_k; these
    are the first K, and tau = (s_1 + ... + s_K - 1) / K. The largest weight is at most 1, so tau >= max - 1, and
    elements further below the maximum than that never count: they are raised to max - 2, which changes nothing
    and makes -inf a number.

    This is another function than softmax, for networks trained with it. Weights are non-negative, mostly exactly
    0, sum to 1, and keep the order of the logits; the method is invariant to a shift and linear where its support
    does not change. -inf gives 0; rows of -inf alone, with NaN or with +inf give NaN, as Softmax does.
    """

    name: ClassVar[str] = "sparsemax"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = "Martins and Astudillo, From Softmax to Sparsemax (ICML 2016), Alg. 1"
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "a sort per row and two passes; no exponential",
        "gpu": "a sort per row; no exponential",
        "fpga": "a sorting network or an iteration for tau; no table and one divider per row",
        "he": "not applicable: needs a sort",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": Sparsemax}

    def bound(self) -> None:
        """None: another function."""

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            shifted = x - x.max(axis=-1, keepdims=True)
            z = np.where(shifted < -2, -2.0, shifted)
            s = -np.sort(-z, axis=-1)
            k = np.arange(1, x.shape[-1] + 1)
            inside = 1 + k * s > np.cumsum(s, axis=-1)
            total = np.where(inside, s, 0).sum(axis=-1, keepdims=True)
            tau = (total - 1) / inside.sum(axis=-1, keepdims=True)
            y = np.where(z < tau, 0.0, z - tau)
            result: np.ndarray = y + np.where(np.isnan(shifted), shifted, 0).sum(axis=-1, keepdims=True)
        return result
