"""Attention weights that are rectified logits."""

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
def ReluAttention(X, axis: int = -1):  # type: ignore[no-untyped-def]
    """max(x, 0) / n, n the length of the row."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    n = op.CastLike(op.Gather(op.Shape(X), axes), X)
    # A maximum would lose NaN on hardware where max(NaN, 0) is 0.
    return op.Where(X < 0.0, op.CastLike(0.0, X), X) / n


@dataclass(frozen=True)
class ReluWeights(SoftmaxMethod):
    """max(x_i, 0) / n with n the length of the row.

    The cheapest weights there are: a comparison and a constant factor, which the next product can absorb. The
    division by the length keeps a row's sum of the order of 1 for logits of the order of 1, which is what makes
    training as stable as softmax's; rectified linear attention (ReLA) uses a normalisation of the output instead.

    This is another function than softmax, for networks trained with it. Weights are non-negative and sparse and
    keep the order of the logits; a positive factor on the logits is one on the weights; sums are free. -inf gives
    0, +inf gives +inf, NaN gives NaN, each in its own element alone.
    """

    name: ClassVar[str] = "relu"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Zhang, Titov and Sennrich, Sparse Attention with Linear Units (EMNLP 2021); the factor 1 / n: Wortsman et "
        "al., Replacing softmax with ReLU in Vision Transformers (2023), section 3"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "a maximum and a multiplication per element, one pass over memory",
        "gpu": "as on a cpu; tiles need not talk to each other",
        "fpga": "a sign test per element; 1 / n is a shift where n is a power of two",
        "he": "one sign polynomial per element; no reciprocal",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": ReluAttention}

    def bound(self) -> None:
        """None: another function."""

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        result: np.ndarray = np.where(x < 0, 0.0, x) / x.shape[-1]
        return result
