"""Softmax with a maximum that is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.rows import softmax_rows
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod

#: How far a row's maximum may be from the preset one: exp(60) summed 2^27 times still fits float32, and next to
#: exp(-60) what is lost to underflow is less than exp(-27) of it.
REACH = 60.0


@script(LOWERKIT, default_opset=op)
def UnifiedMaxSoftmax(X, axis: int = -1, center: float = 0.0):  # type: ignore[no-untyped-def]
    """exp(x - center) over its sum where the row's maximum is within 60 of the center, else Softmax."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    z = X - op.CastLike(op.Constant(value_float=center), X)
    top = op.ReduceMax(z, axes)
    e = op.Exp(z)
    near = op.Abs(top) <= op.CastLike(60.0, X)
    return op.Where(near, e / op.ReduceSum(e, axes), op.Softmax(X, axis=axis))


@dataclass(frozen=True)
class UnifiedMax(SoftmaxMethod):
    """exp(x_i - c) / sum_j exp(x_j - c) with one c for all rows, and a guard.

    Softmax does not change when a constant is subtracted from a row, so that any c does what the row's maximum
    does, as long as nothing overflows and the sum does not underflow. With c known beforehand, from calibration,
    the parts of a long row are summed without telling each other their maxima. The guard is the maximum, which is
    found on the way: a row whose maximum is further from c than 60 takes the safe form instead. Thus the method is
    exact for every input: inside the range by the identity, outside by the fall-back.

    `fit` puts c halfway between the smallest and the largest row maximum that calibration saw (rows along the
    last axis). Elements 27 and more below a row's maximum lose digits to underflow when the maximum is at c - 60:
    they are below 2e-12 of it. Rows of -inf alone, with NaN or with +inf give what Softmax gives.
    """

    center: float = 0.0

    name: ClassVar[str] = "unified-max"
    contract: ClassVar[Contract] = Contract.EXACT
    source: ClassVar[str] = (
        "Hong et al., FlashDecoding++: Faster Large Language Model Inference with Asynchronization, Flat GEMM "
        "Optimization, and Heuristics (MLSys 2024), section 3"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "one pass to the normaliser, without a maximum; the rare block of a row is summed again",
        "gpu": "partial sums of blocks need no rescaling and no synchronisation",
        "fpga": "no row buffer before the exponentials; the guard raises a flag for the rare row",
        "he": "the constant c replaces the maximum, where calibration vouches for the range",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": UnifiedMaxSoftmax}

    def __post_init__(self) -> None:
        value = self.center
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e6:
            raise ValueError(f"center must be a number from -1e6 to 1e6, not {value!r}")

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> UnifiedMax:
        """The center between the row maxima of the examples; a given one is kept."""
        tops = [example.max(axis=-1).ravel() for example in (stats.examples if stats else ()) if example.size]
        flat = np.concatenate([np.zeros(0, np.float32), *tops])
        flat = flat[np.isfinite(flat) & (np.abs(flat) <= 1e6)]
        if flat.size and "center" not in options:
            middle = (float(flat.min()) + float(flat.max())) / 2
            return cls(**{**options, "center": float(np.float32(middle))})
        return cls(**options)

    def bound(self) -> Bound:
        """Zero: equal in real arithmetic."""
        return Bound(0.0, "absolute", "every finite row, and -inf elements", Evidence.PROVED)

    def outside(self, stats: TensorStats) -> str | None:
        """Rows that take the slow way."""
        tops = [np.abs(x.max(axis=-1) - self.center) for x in stats.examples if x.size]
        far = max((float(np.max(t, initial=0, where=np.isfinite(t))) for t in tops), default=0.0)
        return f"rows peak {far:.3g} from the center, and fall back to the safe form" if far > REACH else None

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis` and `center`."""
        return {**super().attributes(node), "center": float(self.center)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            z = x - self.center
            e = np.exp(z)
            near = np.abs(z.max(axis=-1, keepdims=True)) <= REACH
            result: np.ndarray = np.where(near, e / e.sum(axis=-1, keepdims=True), softmax_rows(x))
        return result
