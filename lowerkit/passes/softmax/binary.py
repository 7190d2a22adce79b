"""Attention weights of one bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.rows import softmax_rows, softmax_values
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.base import Contract
from lowerkit.passes.softmax.base import RANK, PerHead, SoftmaxMethod, broadcast, refuses_heads


@script(LOWERKIT, default_opset=op)
def BinarySoftmax(X, threshold, scale, axis: int = -1):  # type: ignore[no-untyped-def]
    """scale where softmax >= threshold, else 0; both of shape () or (heads, 1, 1)."""
    p = op.Softmax(X, axis=axis)
    w = op.Where(p < threshold, op.CastLike(0.0, X), scale)
    # A comparison with NaN is false, and would make a number of it.
    return op.Where(op.IsNaN(p), p, w)


@dataclass(frozen=True)
class Binary(SoftmaxMethod):
    """Softmax as one bit per element and one scale per tensor, or per head: w = a [p >= t].

    Softmax values have a long tail: most are near 0, a few are large, so that a threshold at their mean or at
    half wastes the bit. Given the threshold, the squared error over N values p is

        sum_{p >= t} (p - a)^2 + sum_{p < t} p^2 = sum p^2 - 2 a S + a^2 k,   S = sum_{p >= t} p, k their number,

    least at a = S / k, the mean of those above, where it is sum p^2 - S^2 / k. `fit` sorts the softmax values of
    the calibrated rows (the softmax axis of `examples`) and takes the k with the largest S^2 / k from prefix sums:
    the best threshold of all, not of a grid. The threshold lies halfway between the last value above and the
    first below; equal values are never parted.

    With `per_head` there is a threshold and a scale for each head, for attention weights of shape (batch, heads,
    queries, keys): heads differ in how flat they are, and the error is the least of each. A head's scale goes
    into its product with the values, which is one per head anyway.

    This is another function than softmax, for networks trained or tuned with it. The result is 0 or a; it keeps
    the order of the logits; a row sums to a times its number of ones, which may be 0. -inf gives 0 unless t = 0;
    rows of -inf alone, with NaN or with +inf give NaN, as Softmax does. The defaults are for use without
    calibration: at most ten elements of a row reach a tenth.
    """

    threshold: float | Sequence[float] = 0.1
    scale: float | Sequence[float] = 0.25
    per_head: bool = False

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
        if not isinstance(self.per_head, bool):
            raise ValueError(f"per_head must be true or false, not {self.per_head!r}")
        for key in ("threshold", "scale"):
            value = getattr(self, key)
            if isinstance(value, (list, tuple)):
                if not self.per_head:
                    raise ValueError(f"{key} must be one number, not a list, unless per_head is true")
                object.__setattr__(self, key, tuple(value))  # plan files give lists
            for number in value if isinstance(value, (list, tuple)) and value else [value]:
                if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= 1:
                    raise ValueError(f"{key} must be a number from 0 to 1, not {number!r}")

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> Binary:
        """Threshold and scale of least squared error on the examples; a given one is kept."""
        return cls(**options)._fitted(stats.examples if stats else [], options)

    @classmethod
    def fit_node(cls, node: ir.Node, stats: TensorStats | None, options: Mapping[str, Any]) -> Binary:
        """`fit` with rows along the node's axis."""
        method = cls(**options)
        axis = int(method.attributes(node)["axis"])
        examples = [np.moveaxis(x, axis, -1) for x in stats.examples if x.ndim] if stats else []
        return method if method.refuses(node) else method._fitted(examples, options)

    def _fitted(self, examples: Iterable[np.ndarray], options: Mapping[str, Any]) -> Binary:
        if not self.per_head:
            threshold, scale = self._best(examples, options, self.threshold, self.scale)
            return replace(self, threshold=threshold, scale=scale)
        examples = [x for x in examples if x.ndim == RANK]
        heads = min((x.shape[1] for x in examples), default=0)
        if not heads:
            return self
        thresholds, scales = (np.broadcast_to(np.array(v), (heads,)) for v in (self.threshold, self.scale))
        best = [
            self._best([x[:, head] for x in examples], options, float(thresholds[head]), float(scales[head]))
            for head in range(heads)
        ]
        return replace(self, threshold=tuple(t for t, _ in best), scale=tuple(a for _, a in best))

    @staticmethod
    def _best(
        examples: Iterable[np.ndarray], options: Mapping[str, Any], threshold: Any, scale: Any
    ) -> tuple[float, float]:
        """The threshold and the scale for the values of one head or all; rows that give NaN are left out."""
        p = np.sort(softmax_values(examples))[::-1]
        if p.size == 0:
            return threshold, scale
        if "threshold" not in options:
            threshold = best_threshold(p)
        above = p[p >= threshold]
        if "scale" not in options and above.size:
            scale = float(np.float32(above.mean()))
        return threshold, scale

    def refuses(self, node: ir.Node) -> str | None:
        """Per head: what has no axis of heads, or another number of them."""
        if not self.per_head:
            return None
        return refuses_heads(
            node,
            int(self.attributes(node)["axis"]),
            "is binarised",
            _numbers(self.threshold),
            _numbers(self.scale),
        )

    def bound(self) -> None:
        """None: another function."""

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Both numbers, which broadcast over all but heads; float32."""
        return {
            "threshold": broadcast(_numbers(self.threshold)).astype(np.float32),
            "scale": broadcast(_numbers(self.scale)).astype(np.float32),
        }

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        p = softmax_rows(x)
        above = p >= broadcast(_numbers(self.threshold))
        result: np.ndarray = np.where(np.isnan(p), p, np.where(above, broadcast(_numbers(self.scale)), 0.0))
        return result


def _numbers(value: float | Sequence[float]) -> PerHead:
    return tuple(value) if isinstance(value, Sequence) else value


def best_threshold(p: np.ndarray) -> float:
    """The threshold of least squared error for values `p`, which fall; a float32 where one lies between."""
    last = np.append(p[:-1] > p[1:], True)
    gain = np.where(last, np.cumsum(p) ** 2 / np.arange(1, p.size + 1), -np.inf)
    k = int(np.argmax(gain))
    if k == p.size - 1:
        return 0.0
    middle = float(np.float32((p[k] + p[k + 1]) / 2))
    return middle if p[k + 1] < middle <= p[k] else float(p[k])
