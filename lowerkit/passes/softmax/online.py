"""Online softmax: maximum and sum in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod


@script(LOWERKIT, default_opset=op)
def OnlineSoftmax(X, axis: int = -1):  # type: ignore[no-untyped-def]
    """exp(x - max) / sum exp(x - max)."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    exp = op.Exp(X - op.ReduceMax(X, axes))
    return exp / op.ReduceSum(exp, axes)


@dataclass(frozen=True)
class Online(SoftmaxMethod):
    """Softmax whose maximum and sum are found together, in one pass over the row.

    With m the maximum of the elements so far and d the sum of exp(x_j - m) over them, an element x gives

        m' = max(m, x)
        d' = d exp(m - m') + exp(x - m')

    so that after the last one y_i = exp(x_i - m) / d. By induction d is the sum of exp(x_j - m) over all
    elements, which is softmax's denominator: the methods are equal in real arithmetic, and one pass over
    memory is saved.

    Rounding: of the n terms each is off by at most the rounding of its exponential and of at most n
    additions and rescalings, so the relative error of d is at most about (2n + 2) u, u = 2^-24 in
    float32; in practice it is that of ordinary summation.

    Elements at -inf before the first finite one leave (m, d) = (-inf, 0) as it is; a row of -inf alone
    gives 0/0 = NaN, and +inf or NaN anywhere gives NaN, as Softmax in onnxruntime does.
    """

    name: ClassVar[str] = "online"
    contract: ClassVar[Contract] = Contract.EXACT
    source: ClassVar[str] = "Milakov and Gimelshein, Online normalizer calculation for softmax (2018), Alg. 3"
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "2 passes over memory instead of 3; 2 exponentials per element, 1 when vectorised by blocks",
        "gpu": "2 passes instead of 3; merges across threads by the same recurrence",
        "fpga": "II 1 per element; maximum and sum in one pass, whose clock the product around the sum limits",
        "he": "not applicable: needs a maximum",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": OnlineSoftmax}

    def bound(self) -> Bound:
        """Zero: equal in real arithmetic."""
        return Bound(0.0, "absolute", "every finite row, and -inf elements", Evidence.PROVED)

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: the recurrence, vectorised over rows."""
        x = np.asarray(x, np.float64)
        maximum, total = np.full(x.shape[:-1], -np.inf), np.zeros(x.shape[:-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            for j in range(x.shape[-1]):
                larger = np.maximum(maximum, x[..., j])
                rescaled = np.where(maximum == -np.inf, 0.0, total * np.exp(maximum - larger))
                term = np.where(x[..., j] == -np.inf, 0.0, np.exp(x[..., j] - larger))
                maximum, total = larger, rescaled + term
            result: np.ndarray = np.exp(x - maximum[..., None]) / total[..., None]
        return result
