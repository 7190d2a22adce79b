"""Linear attention with ReLU features, reweighted by the distance of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.attention.base import LinearAttention, arguments, shapes_of

#: The least divisor, for queries whose features meet no key's; the authors' code has the same.
LEAST = 1e-6


@script(LOWERKIT, default_opset=op)
def CosineAttention(Q, K, V, query_waves, key_waves):  # type: ignore[no-untyped-def]
    """F(Q) (F(K)' V) / F(Q) (F(K)' 1), F(X) = [relu(X) cos, relu(X) sin]; waves [2, tokens, 1]: cos, sin."""
    query_cos, query_sin = op.Split(query_waves, num_outputs=2)
    key_cos, key_sin = op.Split(key_waves, num_outputs=2)
    positive_q = op.Relu(Q)
    positive_k = op.Relu(K)
    q = op.Concat(positive_q * query_cos, positive_q * query_sin, axis=-1)
    k = op.Concat(positive_k * key_cos, positive_k * key_sin, axis=-1)
    tokens = op.Constant(value_ints=[2])
    total = op.MatMul(q, op.Transpose(op.ReduceSum(k, tokens), perm=[0, 1, 3, 2]))
    return op.MatMul(q, op.MatMul(op.Transpose(k, perm=[0, 1, 3, 2]), V)) / op.Max(
        total, op.CastLike(1e-6, Q)
    )


@dataclass(frozen=True)
class CosineAttentionMethod(LinearAttention):
    """cosFormer: weights relu(q_i) . relu(k_j) cos(pi (i - j) / 2 M) over their sum, M the number of tokens.

    cos(a - b) = cos a cos b + sin a sin b splits the weight into a product of features of i and of j,

        F(x)_i = [relu(x) cos(pi i / 2 M), relu(x) sin(pi i / 2 M)],

    so that sum_j w_ij v_j = F(q_i) (sum_j F(k_j) v_j'), with a sum over the keys that is the same for every
    query: the cost is linear in the tokens. i and j count from 1, and M is the greater number of tokens.

    |i - j| < M makes every cosine, and so every weight, non-negative: outputs are convex combinations of the
    values, up to rounding, and rows of weights sum to 1. Scaling a query scales its weights and their sum,
    so that the operator's scale does not matter. A query whose weights sum to less than 1e-6, for instance
    one without a positive element, gets less, down to 0, for the divisor is at least 1e-6.

    The function is another one than softmax attention, and a model must be trained with it. NaN in a query
    stays in its token; NaN or infinities in a key or value reach every query of the head.
    """

    name: ClassVar[str] = "cosine"
    source: ClassVar[str] = "Qin et al., cosFormer: Rethinking softmax in attention (ICLR 2022), section 3"
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "4 tokens x size x size multiply-adds per head against 2 tokens x tokens x size; no exponential",
        "gpu": "two matrix products with an inner size of twice the head's; nothing of tokens x tokens is stored",
        "fpga": "one accumulator of 2 size x size words per head; keys and values stream once; a divider per row",
        "he": "one comparison with 0 per element of Q and K, then depth 3 and a division per row",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Attention": CosineAttention}

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Cosines and sines of the positions of queries and keys, [2, tokens, 1]."""
        q, k = shapes_of(node)
        longest = max(q[2], k[2])
        return {
            "query_waves": _waves(q[2], longest).astype(np.float32),
            "key_waves": _waves(k[2], longest).astype(np.float32),
        }

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `LinearAttention`."""
        q, k, v, _ = arguments(x, attributes)
        longest = max(q.shape[2], k.shape[2])
        with np.errstate(invalid="ignore"):
            q, k = (
                np.concatenate([np.maximum(y, 0) * wave for wave in _waves(y.shape[2], longest)], axis=-1)
                for y in (q, k)
            )
            total = q @ k.sum(axis=2, keepdims=True).swapaxes(2, 3)
            result: np.ndarray = q @ (k.swapaxes(2, 3) @ v) / np.maximum(total, LEAST)
        return result


def _waves(tokens: int, longest: int) -> np.ndarray:
    angles = np.pi / 2 * np.arange(1, tokens + 1)[:, None] / longest
    return np.stack([np.cos(angles), np.sin(angles)])
