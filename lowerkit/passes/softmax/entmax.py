"""Between softmax and sparsemax."""

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
def Entmax(X, axis: int = -1):  # type: ignore[no-untyped-def]
    """max(z - tau, 0)^2 with tau from the sorted row; z = max((x - max x) / 2, -2)."""
    along = op.Constant(value_int=axis)
    axes = op.Unsqueeze(along, op.Constant(value_ints=[0]))
    zero, one, low = op.CastLike(0.0, X), op.CastLike(1.0, X), op.CastLike(-2.0, X)
    shifted = (X - op.ReduceMax(X, axes)) * op.CastLike(0.5, X)
    z = op.Where(shifted < low, low, shifted)
    s, _order = op.TopK(z, op.Gather(op.Shape(X), axes), axis=axis)
    k = op.CumSum(op.CastLike(s <= one, X), along)
    mean = op.CumSum(s, along) / k
    spread = op.CumSum(s * s, along) - k * mean * mean
    rest = (one - spread) / k
    taus = mean - op.Sqrt(op.Where(rest < zero, zero, rest))
    count = op.ReduceSum(op.CastLike(taus <= s, X), axes)
    tau = op.ReduceSum(op.Where(k == count, taus, zero), axes)
    # A maximum would lose NaN on hardware where max(NaN, 0) is 0.
    y = op.Where(z < tau, zero, z - tau)
    # Maxima and sorts need not pass NaN on.
    return y * y + op.ReduceSum(op.Where(op.IsNaN(shifted), shifted, zero), axes)


@dataclass(frozen=True)
class EntmaxWeights(SoftmaxMethod):
    """The 1.5-entmax: max(x_i / 2 - tau, 0)^2 with tau such that the weights sum to 1.

    alpha-entmax maximises p . x + H_alpha(p), H_alpha Tsallis' entropy: alpha = 1 gives softmax, 2 sparsemax. At
    1.5 tau has a closed form. With z = x / 2 sorted, s_1 >= s_2 >= ..., and M_k, S_k the mean and the sum of
    squared deviations of the first k, the equation sum_{i <= k} (s_i - tau)^2 = 1 has the lower root

        tau_k = M_k - sqrt((1 - S_k) / k),

    and the support is the largest k with tau_k <= s_k. One weight is at most 1, so tau >= max - 1, and elements
    further below the maximum never count: they are raised to max - 2, which changes nothing and makes -inf a
    number.

    This is another function than softmax, for networks trained with it. Weights are non-negative, 0 far below the
    maximum, sum to 1, and keep the order of the logits; the method is invariant to a shift. -inf gives 0; rows of
    -inf alone, with NaN or with +inf give NaN, as Softmax does.
    """

    name: ClassVar[str] = "entmax"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models (ACL 2019), Alg. 2; Correia et al., "
        "Adaptively Sparse Transformers (EMNLP 2019)"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "a sort per row, a root per element of it, and two passes; no exponential",
        "gpu": "a sort per row; no exponential",
        "fpga": "a sorting network or an iteration for tau, then one multiplier per element",
        "he": "not applicable: needs a sort",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": Entmax}

    def bound(self) -> None:
        """None: another function."""

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            shifted = (x - x.max(axis=-1, keepdims=True)) / 2
            z = np.where(shifted < -2, -2.0, shifted)
            s = -np.sort(-z, axis=-1)
            k = np.arange(1, x.shape[-1] + 1)
            mean = np.cumsum(s, axis=-1) / k
            spread = np.cumsum(s * s, axis=-1) - k * mean * mean
            taus = mean - np.sqrt(np.maximum((1 - spread) / k, 0))
            count = (taus <= s).sum(axis=-1, keepdims=True)
            tau = np.where(k == count, taus, 0).sum(axis=-1, keepdims=True)
            y = np.where(z < tau, 0.0, z - tau)
            result: np.ndarray = y * y + np.where(np.isnan(shifted), shifted, 0).sum(axis=-1, keepdims=True)
        return result
