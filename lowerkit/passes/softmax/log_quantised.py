"""Softmax quantised to powers of 2 or of its root, so that the next product is a shift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.rows import softmax_rows
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod

#: Base -> codes per factor of two.
PER_OCTAVE = {"2": 1, "sqrt2": 2}


@script(LOWERKIT, default_opset=op)
def LogSoftmaxCode(X, axis: int = -1, per_octave: float = 1.0, last: float = 15.0):  # type: ignore[no-untyped-def]
    """2^(-k / per_octave) with k = round(-per_octave log2 softmax); 0 where k > last."""
    codes = op.CastLike(op.Constant(value_float=per_octave), X)
    k = op.Round(op.Log(op.Softmax(X, axis=axis)) * (codes * -1.4426950408889634))
    end = op.CastLike(op.Constant(value_float=last), X)
    return op.Where(k > end, op.CastLike(0.0, X), op.Pow(op.CastLike(2.0, X), op.Neg(k / codes)))


@dataclass(frozen=True)
class LogQuantised(SoftmaxMethod):
    """Softmax rounded to b^-k, k an integer of `bits` bits, b = 2 or sqrt(2) (`base` "2" or "sqrt2").

    k = round(-log_b p), and the result is b^-k for k <= K = 2^bits - 1 and 0 beyond. For b = 2 a product with it
    is a shift; for b = sqrt(2) it is a shift and, for odd k, one constant factor that goes into the scale of the
    next product (RepQuant's reparameterisation).

    Error: k rounds, so p = b^-(k + d) with |d| <= 1/2, and b^-k / p = b^d is in [b^-1/2, b^1/2]:

        |b^-k - p| <= (b^1/2 - 1) p        (relative, wherever k <= K; 0.415 for b = 2, 0.190 for sqrt(2)).

    Absolute: above p the error b^-k - p = b^-k (1 - b^-d) is at most 1 - b^-1/2, reached at k = 0; below p it is
    b^-k (b^-d - 1) <= b^-1 (b^1/2 - 1) = b^-1/2 (1 - b^-1/2), smaller, because p <= 1 leaves nothing above k = 0.
    Where k > K, p <= b^-(K + 1/2) is lost whole. So |result - p| <= max(1 - b^-1/2, b^-(K + 1/2)).

    The result is non-negative and keeps the order of the logits (equal ones stay equal). A row sums to between
    b^-1/2 (1 - lost) and b^1/2. Between two codes lies b^-(k + 1/2), which is irrational: there are no ties.
    -inf gives 0; rows of -inf alone, with NaN or with +inf give NaN, as Softmax does.
    """

    bits: int = 4
    base: str = "2"

    name: ClassVar[str] = "log"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Li et al., RepQuant (2024), log-sqrt2 quantiser; log2 as in Lin et al., FQ-ViT (2022)"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "softmax, a logarithm, a rounding and a power of two per element; no gain by itself",
        "gpu": "as on a cpu; `bits` bits per weight to store",
        "fpga": "a leading-one detector per element, and shifters for the multipliers of the next product",
        "he": "not applicable: needs rounding",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": LogSoftmaxCode}

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 2 <= self.bits <= 6:
            raise ValueError(f"bits must be an integer from 2 to 6, not {self.bits!r}")
        if self.base not in PER_OCTAVE:
            raise ValueError(f"base must be '2' or 'sqrt2', not {self.base!r}")

    @property
    def last(self) -> int:
        """K, the largest code."""
        return (1 << self.bits) - 1

    @property
    def factor(self) -> float:
        """b."""
        return float(2.0 ** (1 / PER_OCTAVE[self.base]))

    def bound(self) -> Bound:
        """max(1 - b^-1/2, b^-(K + 1/2))."""
        value = max(1 - self.factor**-0.5, self.factor ** -(self.last + 0.5))
        return Bound(value, "absolute", "every finite row, and -inf elements", Evidence.PROVED)

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, `per_octave` and `last`."""
        codes = {"per_octave": float(PER_OCTAVE[self.base]), "last": float(self.last)}
        return {**super().attributes(node), **codes}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        codes = PER_OCTAVE[self.base]
        with np.errstate(divide="ignore"):
            k = np.round(-np.log2(softmax_rows(x)) * codes)
        result: np.ndarray = np.where(k > self.last, 0.0, np.exp2(-k / codes))
        return result
