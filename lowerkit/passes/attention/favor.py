"""Linear attention with positive random features."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.attention.base import LinearAttention, arguments, scale_of, shapes_of

#: Added to every feature, as in the authors' code: no sum of weights is 0.
FLOOR = 1e-4


@script(LOWERKIT, default_opset=op)
def FavorAttention(Q, K, V, projection, root: float = 1.0):  # type: ignore[no-untyped-def]
    """F(Q) (F(K)' V) / F(Q) (F(K)' 1), F(X) = exp(root X W' - |root X|^2 / 2 - max) + 1e-4, W the projection."""
    size = op.Constant(value_ints=[-1])
    both = op.Constant(value_ints=[-2, -1])
    tokens = op.Constant(value_ints=[2])
    factor = op.CastLike(op.Constant(value_float=root), Q)
    scaled_q = Q * factor
    scaled_k = K * factor
    log_q = op.MatMul(scaled_q, projection)
    log_k = op.MatMul(scaled_k, projection) - op.ReduceSum(scaled_k * scaled_k, size) * 0.5
    q = op.Exp(log_q - op.ReduceMax(log_q, size)) + 1e-4
    k = op.Exp(log_k - op.ReduceMax(log_k, both)) + 1e-4
    total = op.MatMul(q, op.Transpose(op.ReduceSum(k, tokens), perm=[0, 1, 3, 2]))
    return op.MatMul(q, op.MatMul(op.Transpose(k, perm=[0, 1, 3, 2]), V)) / total


@dataclass(frozen=True)
class FavorAttentionMethod(LinearAttention):
    """FAVOR+: exp(scale q . k) as the mean over random w of exp(w . x - |x|^2/2) exp(w . y - |y|^2/2).

    With x = scale^(1/2) q, y = scale^(1/2) k and w normally distributed, the mean is exp(x . y) exactly,

        E exp(w . (x + y)) = exp(|x + y|^2 / 2),

    and a sample of it for `features` vectors w, the same for all tokens, is an inner product of features
    of x and of y: the sum over the keys is made once, and the cost is linear in the tokens. The features are
    positive, so that weights are positive and sum to 1, and outputs are convex combinations of the values
    up to rounding. The rows of w are orthogonal in blocks of the head's size, with the lengths of normally
    distributed rows, which lowers the variance (theorem 2 of the paper); they are drawn from `seed` once,
    and are a constant of the operator.

    A query's factor exp(-|x|^2/2), and the greatest of its exponentials, cancel in the ratio; the keys' are
    divided by the greatest of the head. To every feature 1e-4 is added, as in the authors' code, so that no
    sum is 0; keys whose features are small beside that get nearly equal weights.

    The error falls as features^(-1/2) but grows exponentially with |x| |y|: no useful bound holds for
    trained attention, hence the contract. NaN in a query stays in its token; NaN or infinities in a key or
    value reach every query of the head.
    """

    features: int = 128
    seed: int = 0

    name: ClassVar[str] = "favor"
    source: ClassVar[str] = (
        "Choromanski et al., Rethinking attention with Performers (ICLR 2021, preprint 2020), section 2"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "4 tokens x size x `features` multiply-adds and 2 tokens x `features` exponentials per head",
        "gpu": "four matrix products with an inner size of `features`; nothing of tokens x tokens is stored",
        "fpga": "an accumulator of size x `features` words per head; a maximum over all keys before the sums",
        "he": "not applicable as it is: needs maxima and exponentials",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Attention": FavorAttention}

    def __post_init__(self) -> None:
        if not isinstance(self.features, int) or not 1 <= self.features <= 4096:
            raise ValueError(f"features must be an integer from 1 to 4096, not {self.features!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must be an integer from 0 to 4294967295, not {self.seed!r}")

    def refuses(self, node: ir.Node) -> str | None:
        """A negative scale, which has no root, besides what `LinearAttention` refuses."""
        reason = super().refuses(node)
        return reason if reason is not None or scale_of(node) >= 0 else "needs a scale that is not negative"

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """The random vectors as columns: [size, features]."""
        return {"projection": _projection(shapes_of(node)[0][-1], self.features, self.seed)}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`root`, that of the scale: it multiplies queries and keys alike."""
        return {"root": math.sqrt(scale_of(node))}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `LinearAttention`."""
        q, k, v, scale = arguments(x, attributes)
        projection = _projection(q.shape[-1], self.features, self.seed).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            q, k = q * math.sqrt(scale), k * math.sqrt(scale)
            log_q, log_k = q @ projection, k @ projection - (k * k).sum(axis=-1, keepdims=True) / 2
            q = np.exp(log_q - log_q.max(axis=-1, keepdims=True)) + FLOOR
            k = np.exp(log_k - log_k.max(axis=(-2, -1), keepdims=True)) + FLOOR
            total = q @ k.sum(axis=2, keepdims=True).swapaxes(2, 3)
            result: np.ndarray = q @ (k.swapaxes(2, 3) @ v) / total
        return result


@functools.cache
def _projection(size: int, features: int, seed: int) -> np.ndarray:
    """[size, features]; columns orthogonal in blocks of `size`, with the lengths of normal vectors."""
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-features // size)):
        q, r = np.linalg.qr(rng.standard_normal((size, size)))
        # With these signs the rotation is distributed uniformly, and does not depend on the library's choice.
        blocks.append(q * np.sign(np.diag(r)))
    lengths = np.linalg.norm(rng.standard_normal((features, size)), axis=1)
    result: np.ndarray = (np.concatenate(blocks, axis=1)[:, :features] * lengths).astype(np.float32)
    return result
