"""Attention weights that are sigmoids."""

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
def SigmoidAttention(X, axis: int = -1, bias: float = 0.0):  # type: ignore[no-untyped-def]
    """sigmoid(x + bias - log n), n the length of the row."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    n = op.CastLike(op.Gather(op.Shape(X), axes), X)
    return op.Sigmoid(X + (op.CastLike(op.Constant(value_float=bias), X) - op.Log(n)))


@dataclass(frozen=True)
class SigmoidWeights(SoftmaxMethod):
    """sigmoid(x_i + bias - log n) with n the length of the row: every weight by itself.

    No maximum, no sum, no division by it. Without the -log n a row of n zeros would sum to n / 2; with it the sum
    is n / (1 + n) < 1, near softmax's, which is what the paper finds to make training stable. `bias` is added to
    it.

    This is another function than softmax, for networks trained with it. Weights lie in [0, 1] and keep the order
    of the logits; sums are free, and nothing is invariant to a shift. -inf gives 0, +inf 1, NaN NaN, each in its
    own element alone.
    """

    bias: float = 0.0

    name: ClassVar[str] = "sigmoid"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Ramapuram et al., Theory, Analysis, and Best Practices for Sigmoid Self-Attention (2024), section 3"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "one exponential and one division per element, one pass over memory",
        "gpu": "as on a cpu; tiles need not talk to each other",
        "fpga": "one table read per element, II 1, no row buffer",
        "he": "one sigmoid polynomial per element; no comparison and no reciprocal of a sum",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": SigmoidAttention}

    def __post_init__(self) -> None:
        if (
            isinstance(self.bias, bool)
            or not isinstance(self.bias, (int, float))
            or not abs(self.bias) <= 100
        ):
            raise ValueError(f"bias must be a number from -100 to 100, not {self.bias!r}")

    def bound(self) -> None:
        """None: another function."""

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis` and `bias`."""
        return {**super().attributes(node), "bias": float(self.bias)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        with np.errstate(over="ignore"):
            result: np.ndarray = 1 / (1 + np.exp(-(x + self.bias - np.log(x.shape[-1]))))
        return result
