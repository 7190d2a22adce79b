"""Softmax quantised to a fixed number of bits, with the lost mean given back."""

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
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import RANK, SoftmaxMethod, broadcast, refuses_heads


@script(LOWERKIT, default_opset=op)
def QuantisedSoftmax(X, correction, axis: int = -1, levels: float = 255.0):  # type: ignore[no-untyped-def]
    """round(softmax levels) / levels + correction, of shape () or (heads, 1, 1)."""
    steps = op.CastLike(op.Constant(value_float=levels), X)
    q = op.Round(op.Softmax(X, axis=axis) * steps)
    return q / steps + correction


@dataclass(frozen=True)
class Quantised(SoftmaxMethod):
    """Softmax whose result is an unsigned integer of `bits` bits, times a scale, plus a correction.

    q = round(p L) with L = 2^bits - 1 levels, ties to even, and the result is q / L + c. The scale is 1 / L and
    not 2^-bits because a probability of 1 is common (one element, or a row with one peak) and would otherwise
    be clipped by a whole step; 0 and 1 are both exact here and nothing is ever clipped.

    Long rows are biased by this: a flat row of more than 2 L elements has every p below half a step, so that
    all of it rounds to 0. The correction c gives back the mean of p - q / L, measured offline over calibrated
    rows (the softmax axis of `examples`), one number per tensor. Hardware pays nothing for it: q / L + c is an
    affine code whose zero point is -c L. With `correct` off, c counts as 0.

    With `per_head`, c is one number per head, the mean over its weights, for attention weights of shape (batch,
    heads, queries, keys) and rows along queries or keys. Heads differ in how flat they are, and one mean over all
    gives a peaked head back what a flat one lost; the mean error of each head becomes 0 on the calibrated rows.
    The next product is one per head, so that its zero point still costs nothing.

    Error: |p - q / L| <= 1 / (2 L), so that |p - q / L - c| <= 1 / (2 L) + |c|, and |c| itself is a mean of
    rounding errors, at most half a step. Per head, |c| is the largest.

    The result keeps the order of the logits (equal ones stay equal, different ones may become equal) and is at
    least c. A row of n sums to 1 within n (1 / (2 L) + |c|). Masked elements (-inf) are c, not 0. Rows of -inf
    alone, with NaN or with +inf give NaN, as Softmax does.
    """

    bits: int = 8
    correct: bool = True
    correction: float | Sequence[float] = 0.0
    per_head: bool = False

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
        for key in ("correct", "per_head"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"{key} must be true or false, not {getattr(self, key)!r}")
        if isinstance(self.correction, (list, tuple)):
            if not self.per_head:
                raise ValueError("correction must be one number, not a list, unless per_head is true")
            if not self.correction or not all(self._is_step(number) for number in self.correction):
                raise ValueError(
                    f"correction must be of numbers of at most one step, not {self.correction!r}"
                )
            # Plan files give lists.
            object.__setattr__(self, "correction", tuple(float(number) for number in self.correction))
        elif not self._is_step(self.correction):
            raise ValueError(f"correction must be a number of at most one step, not {self.correction!r}")

    def _is_step(self, number: object) -> bool:
        return isinstance(number, (int, float)) and abs(number) * self.levels <= 1

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> Quantised:
        """`correction` from the examples, rows along the last axis; float32."""
        return cls(**options)._fitted(stats.examples if stats else [], options)

    @classmethod
    def fit_node(cls, node: ir.Node, stats: TensorStats | None, options: Mapping[str, Any]) -> Quantised:
        """`fit` with rows along the node's axis."""
        method = cls(**options)
        axis = int(method.attributes(node)["axis"])
        examples = [np.moveaxis(x, axis, -1) for x in stats.examples if x.ndim] if stats else []
        return method if method.refuses(node) else method._fitted(examples, options)

    def _fitted(self, examples: Iterable[np.ndarray], options: Mapping[str, Any]) -> Quantised:
        """The means of what rounding takes away; rows that give NaN are left out."""
        if "correction" in options or not self.correct:
            return self
        if not self.per_head:
            lost = self._lost(examples)
            return self if lost is None else replace(self, correction=lost)
        examples = [x for x in examples if x.ndim == RANK]
        heads = min((x.shape[1] for x in examples), default=0)
        if not heads:
            return self
        # A head without usable rows has lost nothing that is known.
        each = tuple(self._lost([x[:, head] for x in examples]) or 0.0 for head in range(heads))
        return replace(self, correction=each)

    def _lost(self, examples: Iterable[np.ndarray]) -> float | None:
        p = softmax_values(examples)
        if p.size == 0:
            return None
        return float(np.float32(np.mean(p - np.round(p * self.levels) / self.levels)))

    @property
    def levels(self) -> int:
        """L, the integer that stands for 1."""
        return (1 << self.bits) - 1

    @property
    def added(self) -> np.ndarray:
        """The correction in force: a number, or of shape (heads, 1, 1)."""
        if not self.correct:
            return broadcast(0.0)
        return broadcast(tuple(self.correction) if isinstance(self.correction, Sequence) else self.correction)

    def bound(self) -> Bound:
        """Half a step and the correction, the largest of all heads."""
        value = 0.5 / self.levels + float(np.abs(self.added).max())
        return Bound(value, "absolute", "every finite row, and -inf elements", Evidence.PROVED)

    def refuses(self, node: ir.Node) -> str | None:
        """Per head: what has no axis of heads, or another number of them."""
        if not self.per_head:
            return None
        given = tuple(self.correction) if isinstance(self.correction, Sequence) else self.correction
        return refuses_heads(node, int(self.attributes(node)["axis"]), "corrects", given)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """The correction, which broadcasts over all but heads."""
        return {"correction": self.added.astype(np.float32)}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis` and `levels`."""
        return {**super().attributes(node), "levels": float(self.levels)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        result: np.ndarray = np.round(softmax_rows(x) * self.levels) / self.levels + self.added
        return result
