"""Softmax-free attention: a Gaussian kernel, approximated through a few landmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.attention.base import LinearAttention, arguments, scale_of, shapes_of

#: Newton steps for the pseudo-inverse, as in the paper.
STEPS = 20


@script(LOWERKIT, default_opset=op)
def SoftAttention(Q, K, V, pool, root: float = 1.0):  # type: ignore[no-untyped-def]
    """G(Q, P) X (G(P, K) V), G(A, B) = exp(-|a - b|^2/2), P = pool Q, X = G(P, P)'s inverse by 20 Newton steps."""
    size = op.Constant(value_ints=[-1])
    tokens = op.Constant(value_ints=[-2])
    both = op.Constant(value_ints=[-2, -1])
    factor = op.CastLike(op.Constant(value_float=root), Q)
    zero = op.CastLike(0.0, Q)
    q = Q * factor
    k = K * factor
    p = op.MatMul(pool, q)
    q_half = op.ReduceSum(q * q, size) * 0.5
    p_half = op.ReduceSum(p * p, size) * 0.5
    k_half = op.ReduceSum(k * k, size) * 0.5
    p_turned = op.Transpose(p, perm=[0, 1, 3, 2])
    p_row = op.Transpose(p_half, perm=[0, 1, 3, 2])
    k_row = op.Transpose(k_half, perm=[0, 1, 3, 2])
    # Rounding may leave a squared distance a little below 0.
    left = op.Exp(op.Min(op.MatMul(q, p_turned) - q_half - p_row, zero))
    a = op.Exp(op.Min(op.MatMul(p, p_turned) - p_half - p_row, zero))
    right = op.Exp(op.Min(op.MatMul(p, op.Transpose(k, perm=[0, 1, 3, 2])) - p_half - k_row, zero))
    norm = op.ReduceMax(op.ReduceSum(a, tokens), both)
    x0 = a / (norm * norm)
    x1 = 2.0 * x0 - op.MatMul(x0, op.MatMul(a, x0))
    x2 = 2.0 * x1 - op.MatMul(x1, op.MatMul(a, x1))
    x3 = 2.0 * x2 - op.MatMul(x2, op.MatMul(a, x2))
    x4 = 2.0 * x3 - op.MatMul(x3, op.MatMul(a, x3))
    x5 = 2.0 * x4 - op.MatMul(x4, op.MatMul(a, x4))
    x6 = 2.0 * x5 - op.MatMul(x5, op.MatMul(a, x5))
    x7 = 2.0 * x6 - op.MatMul(x6, op.MatMul(a, x6))
    x8 = 2.0 * x7 - op.MatMul(x7, op.MatMul(a, x7))
    x9 = 2.0 * x8 - op.MatMul(x8, op.MatMul(a, x8))
    x10 = 2.0 * x9 - op.MatMul(x9, op.MatMul(a, x9))
    x11 = 2.0 * x10 - op.MatMul(x10, op.MatMul(a, x10))
    x12 = 2.0 * x11 - op.MatMul(x11, op.MatMul(a, x11))
    x13 = 2.0 * x12 - op.MatMul(x12, op.MatMul(a, x12))
    x14 = 2.0 * x13 - op.MatMul(x13, op.MatMul(a, x13))
    x15 = 2.0 * x14 - op.MatMul(x14, op.MatMul(a, x14))
    x16 = 2.0 * x15 - op.MatMul(x15, op.MatMul(a, x15))
    x17 = 2.0 * x16 - op.MatMul(x16, op.MatMul(a, x16))
    x18 = 2.0 * x17 - op.MatMul(x17, op.MatMul(a, x17))
    x19 = 2.0 * x18 - op.MatMul(x18, op.MatMul(a, x18))
    x20 = 2.0 * x19 - op.MatMul(x19, op.MatMul(a, x19))
    return op.MatMul(left, op.MatMul(x20, op.MatMul(right, V)))


@dataclass(frozen=True)
class SoftAttentionMethod(LinearAttention):
    """SOFT: weights exp(-scale |q_i - k_j|^2 / 2), not normalised, through `landmarks` points.

    The Gaussian kernel G is positive definite, so that the matrix of weights is near one of low rank. With
    landmarks P, the means of as many runs of adjacent queries, Nystroem's approximation of it is

        G(Q, K) ~ G(Q, P) A^+ G(P, K),  A = G(P, P),

    whose cost is linear in the tokens. The pseudo-inverse A^+ comes from Newton's iteration alone,

        X <- 2 X - X A X,  X_0 = A / |A|_1^2,

    20 times. A is symmetric and positive semi-definite with eigenvalues a <= |A|_1, X keeps its eigenvectors,
    and the residual r = 1 - a x of each starts at 1 - a^2 / |A|_1^2, in [0, 1), and is squared by every step:
    X tends to A^+ from below, and an eigenvalue so small that 20 steps do not reach it is damped rather than
    inverted, by 1 - r^(2^20). The paper's start is twice as large, for which the residual of a = |A|_1 would
    be -1: with landmarks that are all alike the iteration would then end at 0.

    The paper has one projection for queries and keys, Q = K; for others the landmarks are those of the
    queries. The operator's scale takes the place of the paper's 1 / size^(1/2). Weights are not normalised and
    their approximations may be negative: it is another function than softmax attention, and a model must be
    trained with it. A NaN or an infinity in a query or key, or NaN in a value, reaches every query of the head.
    """

    landmarks: int = 49

    name: ClassVar[str] = "soft"
    source: ClassVar[str] = (
        "Lu et al., SOFT: Softmax-free transformer with linear complexity (NeurIPS 2021), section 3"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "2 tokens x `landmarks` exponentials per head, 40 products of `landmarks` cubed, no division by row",
        "gpu": "small matrix products in a chain of 40; nothing of tokens x tokens is stored",
        "fpga": "a systolic array of `landmarks` squared reused 40 times per head; exponentials from a table",
        "he": "no maximum; exponentials of negative numbers, one division per head, depth 40 for the inverse",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Attention": SoftAttention}

    def __post_init__(self) -> None:
        if not isinstance(self.landmarks, int) or not 1 <= self.landmarks <= 1024:
            raise ValueError(f"landmarks must be an integer from 1 to 1024, not {self.landmarks!r}")

    def refuses(self, node: ir.Node) -> str | None:
        """A negative scale, which has no root, besides what `LinearAttention` refuses."""
        reason = super().refuses(node)
        return reason if reason is not None or scale_of(node) >= 0 else "needs a scale that is not negative"

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """The means of runs of queries as a matrix: [landmarks, tokens], or [tokens, tokens] for fewer tokens."""
        return {"pool": _pool(shapes_of(node)[0][2], self.landmarks).astype(np.float32)}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`root`, that of the scale: it multiplies queries and keys alike."""
        return {"root": math.sqrt(scale_of(node))}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `LinearAttention`."""
        q, k, v, scale = arguments(x, attributes)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            q, k = q * math.sqrt(scale), k * math.sqrt(scale)
            p = _pool(q.shape[2], self.landmarks) @ q
            a = _gauss(p, p)
            norm = a.sum(axis=-2, keepdims=True).max(axis=(-2, -1), keepdims=True)
            inverse = a / (norm * norm)
            for _ in range(STEPS):
                inverse = 2 * inverse - inverse @ (a @ inverse)
            result: np.ndarray = _gauss(q, p) @ (inverse @ (_gauss(p, k) @ v))
        return result


def _gauss(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    halves = [(z * z).sum(axis=-1, keepdims=True) / 2 for z in (x, y)]
    result: np.ndarray = np.exp(np.minimum(x @ y.swapaxes(2, 3) - halves[0] - halves[1].swapaxes(2, 3), 0))
    return result


def _pool(tokens: int, landmarks: int) -> np.ndarray:
    """Rows of means over runs of adjacent tokens, as even as they can be."""
    runs = np.array_split(np.arange(tokens), min(tokens, landmarks))
    return np.stack([np.isin(np.arange(tokens), run) / len(run) for run in runs])
