"""Softmax whose weights can be exactly 0 and 1."""

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
def ClippedSoftmax(X, axis: int = -1, low: float = -0.03, high: float = 1.0):  # type: ignore[no-untyped-def]
    """clip((high - low) softmax + low, 0, 1)."""
    p = op.Softmax(X, axis=axis)
    a = op.CastLike(op.Constant(value_float=low), X)
    b = op.CastLike(op.Constant(value_float=high), X)
    y = p * (b - a) + a
    clipped = op.Clip(y, op.CastLike(0.0, X), op.CastLike(1.0, X))
    # On some hardware clipping makes a number of NaN.
    return op.Where(op.IsNaN(y), y, clipped)


@dataclass(frozen=True)
class Clipped(SoftmaxMethod):
    """clip((high - low) softmax(x) + low, 0, 1): softmax stretched beyond [0, 1] and cut to it.

    With `low` (gamma in the paper) below 0, weights below -low / (high - low) are exactly 0 at finite logits, so
    that a head need not drive its logits apart to do nothing; with `high` (zeta) above 1 the largest can be
    exactly 1. The paper finds low = -0.03, high = 1 or low = -alpha / n with alpha from 2 to 4 for n tokens.

    This is another function than softmax, for networks trained with it; with low = 0 and high = 1 it is softmax.
    Weights lie in [0, 1] and keep the order of the logits; the method is invariant to a shift; sums are free. -inf
    gives max(0, low); rows of -inf alone, with NaN or with +inf give NaN, as Softmax does.
    """

    low: float = -0.03
    high: float = 1.0

    name: ClassVar[str] = "clipped"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Bondarenko et al., Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing "
        "(NeurIPS 2023), section 4.1"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "softmax and a multiply-add, a maximum and a minimum per element",
        "gpu": "as on a cpu",
        "fpga": "softmax, one multiplier and two comparators per element; weights of 8 bits suffice",
        "he": "not applicable: needs comparisons",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": ClippedSoftmax}

    def __post_init__(self) -> None:
        for key, least, most in (("low", -1, 0), ("high", 1, 2)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise ValueError(f"{key} must be a number from {least} to {most}, not {value!r}")

    def bound(self) -> None:
        """None: another function."""

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, `low` and `high`."""
        return {**super().attributes(node), "low": float(self.low), "high": float(self.high)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        result: np.ndarray = np.clip((self.high - self.low) * softmax_rows(x) + self.low, 0, 1)
        return result
