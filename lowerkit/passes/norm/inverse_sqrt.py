"""LayerNorm and RMSNorm with an inverse square root that neither divides nor takes roots."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.polynomial import Polynomial, minimax
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.norm.base import LARGEST, RowNorm

#: The mantissa's range [1, 4], and what rounding of a logarithm at its ends may add.
LOW, HIGH = 0.999, 4.004


#: Bodies and kernels evaluate this many coefficients of the start; those above the degree are zero.
TERMS = 4


@script(LOWERKIT, default_opset=op)
def InverseSqrtLayerNorm(X, Scale, Bias, start, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """(x - mean) y scale + bias; y is the inverse square root of the variance plus epsilon."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    deviation = X - op.ReduceMean(X, axes)
    v = op.ReduceMean(deviation * deviation, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    e = op.Floor(op.Log(v) * 0.7213475204444817)
    m = v * op.Pow(op.CastLike(4.0, X), op.Neg(e))
    s3, s2, s1, s0 = op.Split(start, num_outputs=4)
    y0 = ((s3 * m + s2) * m + s1) * m + s0
    y1 = y0 * (1.5 - 0.5 * m * y0 * y0)
    y2 = y1 * (1.5 - 0.5 * m * y1 * y1)
    y = op.Where(v > 3.4028234663852886e38, op.CastLike(0.0, X), y2 * op.Pow(op.CastLike(2.0, X), op.Neg(e)))
    return deviation * y * Scale + Bias


@script(LOWERKIT, default_opset=op)
def InverseSqrtRMSNorm(X, Scale, start, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """x y scale; y is the inverse square root of the mean square plus epsilon."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    v = op.ReduceMean(X * X, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    e = op.Floor(op.Log(v) * 0.7213475204444817)
    m = v * op.Pow(op.CastLike(4.0, X), op.Neg(e))
    s3, s2, s1, s0 = op.Split(start, num_outputs=4)
    y0 = ((s3 * m + s2) * m + s1) * m + s0
    y1 = y0 * (1.5 - 0.5 * m * y0 * y0)
    y2 = y1 * (1.5 - 0.5 * m * y1 * y1)
    y = op.Where(v > 3.4028234663852886e38, op.CastLike(0.0, X), y2 * op.Pow(op.CastLike(2.0, X), op.Neg(e)))
    return X * y * Scale


@dataclass(frozen=True)
class InverseSqrt(RowNorm):
    """Normalisation with v^(-1/2) by range reduction, a polynomial start and two Newton steps.

    v = variance + epsilon = m 4^e with e = floor(log2(v) / 2), the halved exponent bits, and m in [1, 4).
    Then v^(-1/2) = m^(-1/2) 2^(-e). A minimax polynomial of degree `degree` starts with relative error eps0,
    and each Newton step y <- y (3 - m y^2) / 2 turns y = (1 + eps) m^(-1/2) into

        (1 + eps) (3 - (1 + eps)^2) / 2 = 1 - (3 eps^2 + eps^3) / 2,

    so that after two steps the relative error is at most f(f(eps0)), f(t) = (3 t^2 + t^3) / 2. The
    normalised value before the bias has exactly that relative error.

    epsilon must be at least 2^-126, so that v is a normal number also for a constant row, whose result is
    the bias. Where v overflows float32 the inverse square root is 0, as it is in the standard operators;
    NaN and infinite elements give NaN as there, and rows so large that their sum overflows may too.
    """

    degree: int = 2

    name: ClassVar[str] = "inverse-sqrt"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Newton's iteration for the inverse square root: Muller, Elementary Functions (3rd ed.), "
        "section 5.4; start by Remez exchange, certified here"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "per row: an exponent shift and `degree` + 7 multiplications for a root and a division",
        "gpu": "no gain: the hardware has an inverse square root",
        "fpga": "per row: a leading-zero count, a shifter and one multiplier reused `degree` + 7 times",
        "he": "the polynomial and Newton part is what runs there, on a calibrated range instead of shifts",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {
        "LayerNormalization": InverseSqrtLayerNorm,
        "RMSNormalization": InverseSqrtRMSNorm,
    }

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or not 1 <= self.degree < TERMS:
            raise ValueError(f"degree must be an integer from 1 to {TERMS - 1}, not {self.degree!r}")

    def start(self) -> Polynomial:
        """The polynomial that Newton's iteration starts from."""
        return _start_polynomial(self.degree)

    def bound(self) -> Bound:
        """f(f(eps0)); see the class."""
        error = self.start().error
        for _ in range(2):
            error = (3 * error**2 + error**3) / 2
        domain = "rows whose sum of squares is below 2^128; relative to the result without bias"
        return Bound(error, "relative", domain, Evidence.PROVED)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Four coefficients, highest power first."""
        array = self.start().array()
        return {"start": np.concatenate([np.zeros(TERMS - len(array), np.float32), array])}

    def inverse_root(self, v: np.ndarray) -> np.ndarray:
        """See `RowNorm.inverse_root`."""
        e = np.floor(np.log2(v) / 2)
        m = v * np.exp2(-2 * e)
        y = self.start()(m)
        for _ in range(2):
            y = y * (1.5 - 0.5 * m * y * y)
        result: np.ndarray = np.where(v > LARGEST, 0.0, y * np.exp2(-e))
        return result


@functools.cache
def _start_polynomial(degree: int) -> Polynomial:
    return minimax(lambda m: m**-0.5, LOW, HIGH, degree, curvature=0.75 * LOW**-2.5, relative=True)
