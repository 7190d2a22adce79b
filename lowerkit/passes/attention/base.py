"""What the attention methods share: linear cost in the tokens, and what they cannot replace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.shapes import static_shape
from lowerkit.passes.base import Bound, Contract, Method

#: Attributes that change what Attention computes, and the values that leave it as it is.
_NEUTRAL: Mapping[str, float] = {
    "is_causal": 0,
    "softcap": 0.0,
    "softmax_precision": 0,
    "qk_matmul_output_mode": 0,
}


@dataclass(frozen=True)
class LinearAttention(Method):
    """Another function of Q, K and V, [batch, heads, tokens, size], whose cost is linear in the tokens.

    There is no matrix of weights for a mask to act on, so that masked and causal attention is refused.
    `evaluate(q, k=k, v=v, scale=s)` is the model of the whole operator.
    """

    family: ClassVar[str] = "attention"
    contract: ClassVar[Contract] = Contract.REPLACE

    def bound(self) -> Bound | None:
        """None: another function."""
        return None

    def refuses(self, node: ir.Node) -> str | None:
        """Masks, caches, other forms of attention, and shapes other than the one above."""
        if any(value is not None for value in node.inputs[3:4]):
            return "cannot apply a mask: it computes no weights"
        if any(value is not None for value in node.inputs[4:]):
            return "has no key-value cache and no padding lengths"
        if node.attributes.get_int("is_causal", 0):
            return "cannot be causal: it computes no weights"
        for name, neutral in _NEUTRAL.items():
            attribute = node.attributes.get(name)
            if attribute is not None and attribute.value != neutral:
                return f"has no attribute {name}"
        shapes = [static_shape(value) for value in node.inputs[:3]]
        if any(shape is None or len(shape) != 4 for shape in shapes):
            return "needs queries, keys and values of static shape [batch, heads, tokens, size]"
        if len({shape[1] for shape in shapes if shape is not None}) != 1:
            return "needs as many heads of keys and values as of queries"
        return None

    def inputs(self, model: ir.Model, node: ir.Node) -> list[ir.Value | None]:
        """Q, K and V."""
        return list(node.inputs[:3])


def shapes_of(node: ir.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of Q and K of a node that is not refused."""
    q, k = (static_shape(value) for value in node.inputs[:2])
    assert q is not None
    assert k is not None
    return q, k


def scale_of(node: ir.Node) -> float:
    """The scale of the node's scores."""
    return node.attributes.get_float("scale", 1 / math.sqrt(shapes_of(node)[0][-1]))


def arguments(q: np.ndarray, given: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Q, K, V in float64 and the scale, from the arguments of `evaluate`; K and V are Q where not given."""
    q = np.asarray(q, np.float64)
    k, v = (np.asarray(given.get(name, q), np.float64) for name in "kv")
    return q, k, v, float(given.get("scale", 1 / math.sqrt(q.shape[-1])))
