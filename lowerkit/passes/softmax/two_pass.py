"""Two-pass softmax: no maximum, exponentials as (mantissa, exponent) pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod

LOG2E, LN2 = math.log2(math.e), math.log(2.0)
#: A float attribute would round ln 2 to float32, and thereby the base of every power of two.
LN2_TENSOR = onnx.helper.make_tensor("ln2", onnx.TensorProto.DOUBLE, [], [LN2])


@script(LOWERKIT, default_opset=op)
def TwoPassSoftmax(X, axis: int = -1):  # type: ignore[no-untyped-def]
    """m_i 2^(n_i - N) / sum_j m_j 2^(n_j - N), where exp(x) = m 2^n and N is the largest n."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    x = op.Cast(X, to=11)
    ln2 = op.Constant(value=LN2_TENSOR)
    n = op.Round(x / ln2)
    # A float so large that its remainder is lost is far from every other float: any remainder will do.
    r = op.Where(
        op.IsInf(n), op.CastLike(0.0, n), op.Clip(x - n * ln2, op.CastLike(-0.5, n), op.CastLike(0.5, n))
    )
    scale = op.Pow(op.CastLike(2.0, n), n - op.ReduceMax(n, axes))
    term = op.Exp(r) * scale
    return op.CastLike(term / op.ReduceSum(term, axes), X)


@dataclass(frozen=True)
class TwoPass(SoftmaxMethod):
    """Softmax without a pass for the maximum.

    exp(x) is kept as a pair (m, n), exp(x) = m 2^n with n = round(x log2 e) and m = exp(x - n ln 2) in
    [2^-1/2, 2^1/2]. Pairs do not overflow for any finite x, so nothing needs subtracting first, and pairs add
    exactly in the exponent:

        (M, N) + (m, n) = (M 2^(N - N') + m 2^(n - N'), N'),  N' = max(N, n).

    The first pass sums pairs, the second recomputes m_i 2^(n_i - N) / M. All identities hold in real
    arithmetic, so the method is exact. What is left is rounding: the argument x - n ln 2 needs more
    precision than x has, so that hardware splits ln 2 in two or three parts (Cody and Waite); here it is
    taken in float64.

    A row of -inf alone gives NaN, and so does a row with NaN or +inf, as Softmax in onnxruntime does.
    """

    name: ClassVar[str] = "two-pass"
    contract: ClassVar[Contract] = Contract.EXACT
    source: ClassVar[str] = "Dukhan and Ablavatski, The Two-Pass Softmax Algorithm (2020), section 4"
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "2 reads and 1 write per element instead of 3 and 1; 2 exponentials per element",
        "gpu": "as on a cpu; useful where memory and not arithmetic is the limit",
        "fpga": "exponent adders and shifters in place of a second pass; no maximum",
        "he": "not applicable: needs exponents",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": TwoPassSoftmax}

    def bound(self) -> Bound:
        """Zero: equal in real arithmetic."""
        return Bound(0.0, "absolute", "every finite row, and -inf elements", Evidence.PROVED)

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: pairs summed from left to right."""
        x = np.asarray(x, np.float64)
        n = np.round(x * LOG2E)
        with np.errstate(invalid="ignore", divide="ignore"):
            m = np.exp(np.where(np.isinf(n), 0.0, np.clip(x - n * LN2, -0.5, 0.5)))
            mantissa, exponent = np.zeros(x.shape[:-1]), np.full(x.shape[:-1], -np.inf)
            for j in range(x.shape[-1]):
                larger = np.maximum(exponent, n[..., j])
                old = np.where(exponent == -np.inf, 0.0, mantissa * np.exp2(exponent - larger))
                new = np.where(n[..., j] == -np.inf, 0.0, m[..., j] * np.exp2(n[..., j] - larger))
                mantissa, exponent = old + new, larger
            result: np.ndarray = m * np.exp2(n - exponent[..., None]) / mantissa[..., None]
        return result
