"""Softmax that does not flatten out as rows grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.rows import softmax_rows
from lowerkit.passes.base import Contract
from lowerkit.passes.softmax.base import SoftmaxMethod


@script(LOWERKIT, default_opset=op)
def ScalableSoftmax(X, axis: int = -1, slope: float = 0.43):  # type: ignore[no-untyped-def]
    """softmax(slope log(n) x), n the length of the row."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    n = op.CastLike(op.Gather(op.Shape(X), axes), X)
    # Before the factor, which could make infinities of large logits.
    shifted = X - op.ReduceMax(X, axes)
    return op.Softmax(shifted * (op.CastLike(op.Constant(value_float=slope), X) * op.Log(n)), axis=axis)


@dataclass(frozen=True)
class Scalable(SoftmaxMethod):
    """softmax(s log(n) x) = n^(s x_i) / sum_j n^(s x_j) with n the length of the row and s = `slope`.

    The largest weight of softmax is at most 1 / (1 + (n - 1) exp(min - max)), which tends to 0 as rows get long:
    attention fades. With n^(s x) it tends to 1 wherever the largest logit leads by more than 1 / s, whatever n.
    The paper learns s per head; 0.43 is near the mean of what it finds. The maximum is subtracted before the factor
    is applied, so that no finite logit, such as a mask of the lowest float32, becomes infinite by it.

    This is another function than softmax, for networks trained with it; at n = e^(1/s) it is softmax. Weights are
    non-negative, keep the order of the logits and sum to 1; the method is invariant to a shift. -inf gives 0 if
    n > 1; a row of one finite element gives 1. Rows of -inf alone, with NaN or with +inf give NaN, as Softmax does,
    and so does one infinite element alone.
    """

    slope: float = 0.43

    name: ClassVar[str] = "scalable"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = "Nakanishi, Scalable-Softmax Is Superior for Attention (2025), section 2"
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "softmax; the factor is a constant that the scale of the product before absorbs",
        "gpu": "as on a cpu",
        "fpga": "as softmax; with base-2 exponentials a constant factor either way",
        "he": "as softmax",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": ScalableSoftmax}

    def __post_init__(self) -> None:
        value = self.slope
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 100:
            raise ValueError(f"slope must be a positive number up to 100, not {value!r}")

    def bound(self) -> None:
        """None: another function."""

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis` and `slope`."""
        return {**super().attributes(node), "slope": float(self.slope)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore"):
            return softmax_rows((x - x.max(axis=-1, keepdims=True)) * (self.slope * np.log(x.shape[-1])))
