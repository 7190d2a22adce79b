"""Attention weights of one bit."""

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
from lowerkit.passes.base import Contract
from lowerkit.passes.softmax.base import SoftmaxMethod


@script(LOWERKIT, default_opset=op)
def BinarySoftmax(X, axis: int = -1, threshold: float = 0.1, scale: float = 0.25):  # type: ignore[no-untyped-def]
    """scale where softmax >= threshold, else 0."""
    p = op.Softmax(X, axis=axis)
    t = op.CastLike(op.Constant(value_float=threshold), X)
    a = op.CastLike(op.Constant(value_float=scale), X)
    w = op.Where(p < t, op.CastLike(0.0, X), a)
    # A comparison with NaN is false, and would make a number of it.
    return op.Where(op.IsNaN(p), p, w)


@dataclass(frozen=True)
class Binary(SoftmaxMethod):
    """Softmax as one bit per element and one scale per tensor: w = a [p >= t].

    Softmax values have a long tail: most are near 0, a few are large, so that a threshold at their mean or at
    half wastes the bit. Given the threshold, the squared error over N values p is

        sum_{p >= t} (p - a)^2 + sum_{p < t} p^2 = sum p^2 - 2 a S + a^2 k,   S = sum_{p >= t} p, k their number,

    least at a = S / k, the mean of those above, where it is sum p^2 - S^2 / k. `fit` sorts the softmax values of
    the calibrated rows (the last axis of `examples`) and takes the k with the largest S^2 / k from prefix sums:
    the best threshold of all, not of a grid. The threshold lies halfway between the last value above and the
    first below; equal values are never parted.

    This is another function than softmax, for networks trained or tuned with it. The result is 0 or a; it keeps
    the order of the logits; a row sums to a times its number of ones, which may be 0. -inf gives 0 unless t = 0;
    rows of -inf alone, with NaN or with +inf give NaN, as Softmax does. The defaults are for use without
    calibration: at most ten elements of a row reach a tenth.
    """

    threshold: float = 0.1
    scale: float = 0.25

    name: ClassVar[str] = "binary"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "He et al., BiViT: Extremely Compressed Binary Vision Transformers (ICCV 2023), softmax-aware binarisation"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "softmax and a comparison per element; the next product needs additions alone",
        "gpu": "as on a cpu; one bit per weight to store",
        "fpga": "a comparator per element; the next product is a masked sum and one multiplier per output",
        "he": "not applicable: needs comparisons",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": BinarySoftmax}

    def __post_init__(self) -> None:
        for key in ("threshold", "scale"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{key} must be a number from 0 to 1, not {value!r}")

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> Binary:
        """Threshold and scale of least squared error on the examples; a given one is kept."""
        method = cls(**options)
        p = np.sort(softmax_values(stats.examples if stats is not None else []))[::-1]
        if p.size == 0:
            return method
        if "threshold" not in options:
            method = replace(method, threshold=best_threshold(p))
        above = p[p >= method.threshold]
        if "scale" not in options and above.size:
            method = replace(method, scale=float(np.float32(above.mean())))
        return method

    def bound(self) -> None:
        """None: another function."""

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, `threshold` and `scale`."""
        options = {"threshold": float(self.threshold), "scale": float(self.scale)}
        return {**super().attributes(node), **options}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        p = softmax_rows(x)
        result: np.ndarray = np.where(np.isnan(p), p, np.where(p < self.threshold, 0.0, float(self.scale)))
        return result


def best_threshold(p: np.ndarray) -> float:
    """The threshold of least squared error for values `p`, which fall; a float32 where one lies between."""
    last = np.append(p[:-1] > p[1:], True)
    gain = np.where(last, np.cumsum(p) ** 2 / np.arange(1, p.size + 1), -np.inf)
    k = int(np.argmax(gain))
    if k == p.size - 1:
        return 0.0
    middle = float(np.float32((p[k] + p[k + 1]) / 2))
    return middle if p[k + 1] < middle <= p[k] else float(p[k])
