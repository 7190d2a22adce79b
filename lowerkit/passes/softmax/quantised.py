"""Softmax quantised to a fixed number of bits, with the lost mean given back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.rows import softmax_rows, softmax_values
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod


@script(LOWERKIT, default_opset=op)
def QuantisedSoftmax(X, axis: int = -1, levels: float = 255.0, correction: float = 0.0):  # type: ignore[no-untyped-def]
    """round(softmax levels) / levels + correction."""
    steps = op.CastLike(op.Constant(value_float=levels), X)
    q = op.Round(op.Softmax(X, axis=axis) * steps)
    return q / steps + op.CastLike(op.Constant(value_float=correction), X)


@dataclass(frozen=True)
class Quantised(SoftmaxMethod):
    """Softmax whose result is an unsigned integer of `bits` bits, times a scale, plus a correction.

    q = round(p L) with L = 2^bits - 1 levels, ties to even, and the result is q / L + c. The scale is 1 / L and
    not 2^-bits because a probability of 1 is common (one element, or a row with one peak) and would otherwise
    be clipped by a whole step; 0 and 1 are both exact here and nothing is ever clipped.

    Long rows are biased by this: a flat row of more than 2 L elements has every p below half a step, so that
    all of it rounds to 0. The correction c gives back the mean of p - q / L, measured offline over calibrated
    rows (the last axis of `examples`), one number per tensor. Hardware pays nothing for it: q / L + c is an
    affine code whose zero point is -c L. With `correct` off, c counts as 0.

    Error: |p - q / L| <= 1 / (2 L), so that |p - q / L - c| <= 1 / (2 L) + |c|, and |c| itself is a mean of
    rounding errors, at most half a step.

    The result keeps the order of the logits (equal ones stay equal, different ones may become equal) and is at
    least c. A row of n sums to 1 within n (1 / (2 L) + |c|). Masked elements (-inf) are c, not 0. Rows of -inf
    alone, with NaN or with +inf give NaN, as Softmax does.
    """

    bits: int = 8
    correct: bool = True
    correction: float = 0.0

    name: ClassVar[str] = "quantised"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Pandey et al., Softmax Bias Correction for Quantized Generative Models (ICCV workshops 2023)"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "softmax, and a multiply, a rounding and a multiply-add per element",
        "gpu": "as on a cpu; a quarter of the traffic where the next product reads integers",
        "fpga": "`bits` wires per element into the next product; the correction is its zero point",
        "he": "not applicable: needs rounding",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": QuantisedSoftmax}

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be an integer from 2 to 16, not {self.bits!r}")
        if not isinstance(self.correct, bool):
            raise ValueError(f"correct must be true or false, not {self.correct!r}")
        if not isinstance(self.correction, (int, float)) or not abs(self.correction) * self.levels <= 1:
            raise ValueError(f"correction must be a number of at most one step, not {self.correction!r}")

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> Quantised:
        """`correction` from the examples: the mean of what rounding takes away, a float32."""
        method = cls(**options)
        if "correction" in options or not method.correct or stats is None:
            return method
        p = softmax_values(stats.examples)
        if p.size == 0:
            return method
        lost = float(np.mean(p - np.round(p * method.levels) / method.levels))
        return replace(method, correction=float(np.float32(lost)))

    @property
    def levels(self) -> int:
        """L, the integer that stands for 1."""
        return (1 << self.bits) - 1

    @property
    def added(self) -> float:
        """The correction in force."""
        return float(self.correction) if self.correct else 0.0

    def bound(self) -> Bound:
        """Half a step and the correction."""
        value = 0.5 / self.levels + abs(self.added)
        return Bound(value, "absolute", "every finite row, and -inf elements", Evidence.PROVED)

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, `levels` and `correction`."""
        return {**super().attributes(node), "levels": float(self.levels), "correction": self.added}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        result: np.ndarray = np.round(softmax_rows(x) * self.levels) / self.levels + self.added
        return result
