"""Softmax that may attend to nothing."""

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
def PlusOneSoftmax(X, axis: int = -1):  # type: ignore[no-untyped-def]
    """exp(x - m) / (exp(-m) + sum exp(x - m)), m = max(0, max x)."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    m = op.Relu(op.ReduceMax(X, axes))
    e = op.Exp(X - m)
    return e / (op.Exp(op.Neg(m)) + op.ReduceSum(e, axes))


@dataclass(frozen=True)
class PlusOne(SoftmaxMethod):
    """exp(x_i) / (1 + sum_j exp(x_j)): softmax with one more logit, 0, whose weight is dropped.

    A head with nothing to say gives small weights to everything, where softmax forces it to give 1 to
    something: networks trained with it have no outliers to quantise. Multiplying both parts by exp(-m) with
    m = max(0, max x) keeps every exponential at most 1.

    This is another function than softmax, for networks trained with it. Weights are non-negative, keep the order
    of the logits, and sum to less than 1. It is not invariant to a shift: as all logits grow together it tends
    to softmax. -inf gives 0, and a row of -inf alone gives zeros. NaN or +inf gives NaN, as Softmax does.
    """

    name: ClassVar[str] = "plus-one"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = "Hu et al., Outlier-Efficient Hopfield Layers (ICML 2024), softmax_1"
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "as softmax, with one exponential more per row",
        "gpu": "as softmax, with one exponential more per row",
        "fpga": "as softmax, with one table read more per row",
        "he": "not applicable: needs a maximum",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": PlusOneSoftmax}

    def bound(self) -> None:
        """None: another function."""

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore"):
            m = np.maximum(x.max(axis=-1, keepdims=True), 0)
            e = np.exp(x - m)
            result: np.ndarray = e / (np.exp(-m) + e.sum(axis=-1, keepdims=True))
        return result
