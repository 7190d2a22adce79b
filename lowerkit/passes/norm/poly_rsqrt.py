"""LayerNorm and RMSNorm with one polynomial for the inverse square root."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.polynomial import Polynomial, minimax
from lowerkit.passes.base import Bound, Evidence
from lowerkit.passes.norm.base import CalibratedNorm

#: Bodies evaluate this many coefficients; those above the degree are zero.
TERMS = 16
#: The greatest high / low for which t, in float32, still tells `low` from 0.
WIDEST = 1e5


@script(LOWERKIT, default_opset=op)
def PolyRsqrtLayerNorm(X, Scale, Bias, coefficients, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """(x - mean) p(v) scale + bias; slope, shift and 16 coefficients, highest power first."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    deviation = X - op.ReduceMean(X, axes)
    v = op.ReduceMean(deviation * deviation, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    a, b, c15, c14, c13, c12, c11, c10, c9, c8, c7, c6, c5, c4, c3, c2, c1, c0 = op.Split(
        coefficients, num_outputs=18
    )
    t = a * v + b
    high = ((((((c15 * t + c14) * t + c13) * t + c12) * t + c11) * t + c10) * t + c9) * t + c8
    y = (((((((high * t + c7) * t + c6) * t + c5) * t + c4) * t + c3) * t + c2) * t + c1) * t + c0
    return deviation * y * Scale + Bias


@script(LOWERKIT, default_opset=op)
def PolyRsqrtRMSNorm(X, Scale, coefficients, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """x p(v) scale; slope, shift and 16 coefficients, highest power first."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    v = op.ReduceMean(X * X, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    a, b, c15, c14, c13, c12, c11, c10, c9, c8, c7, c6, c5, c4, c3, c2, c1, c0 = op.Split(
        coefficients, num_outputs=18
    )
    t = a * v + b
    high = ((((((c15 * t + c14) * t + c13) * t + c12) * t + c11) * t + c10) * t + c9) * t + c8
    y = (((((((high * t + c7) * t + c6) * t + c5) * t + c4) * t + c3) * t + c2) * t + c1) * t + c0
    return X * y * Scale


@dataclass(frozen=True)
class PolyRsqrt(CalibratedNorm):
    """v^(-1/2) as one polynomial p(t) of degree `degree`, with additions and multiplications alone.

    t = (2 v - low - high) / (high - low) maps the calibrated range to [-1, 1], where the coefficients stay
    small. p minimises the greatest relative error |p v^(1/2) - 1|, which is certified for the coefficients
    as rounded to float32. The map is rounded too: its slope and shift are float32 numbers, and the certified
    polynomial is the one for exactly that map, on the interval it takes [low, high] to.

    The error falls by ((k + 1) / (k - 1)) per degree, k = (high / low)^(1/2), so that the range decides: at
    high / low = 64 degree 7 gives 8 %, degree 15 gives 0.8 %. The result is a smooth function of v and, with
    an error below 1, positive on the range. Beyond it p grows like v^degree and the result means nothing.
    NaN gives NaN.
    """

    low: float = 0.25
    high: float = 16.0
    degree: int = 7

    name: ClassVar[str] = "poly-rsqrt"
    size: ClassVar[str] = "degree"
    largest: ClassVar[int] = TERMS - 1
    enough: ClassVar[float] = 0.01
    source: ClassVar[str] = (
        "polynomial normalisation on a calibrated range for encrypted inference: Chen et al., THE-X "
        "(Findings of ACL 2022), section 3; Remez exchange, certified here"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "per row: 16 multiply-adds for a root and a division",
        "gpu": "no gain: the hardware has an inverse square root",
        "fpga": "per row: `degree` passes through one multiplier; no shifter, no divider, no table",
        "he": "per row: depth ceil(log2(degree + 1)) + 1 with products shared; no comparison",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {
        "LayerNormalization": PolyRsqrtLayerNorm,
        "RMSNormalization": PolyRsqrtRMSNorm,
    }

    def polynomial(self) -> Polynomial:
        """p, in t."""
        return _rsqrt_polynomial(float(self.low), float(self.high), self.degree)

    def bound(self) -> Bound:
        """The certified relative error of p; none is certified where high / low leaves float32 no room."""
        error = self.polynomial().error if self.high <= WIDEST * self.low else math.inf
        return Bound(error, "relative", self.domain, Evidence.PROVED)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Slope and shift of t, and 16 coefficients, highest power first."""
        array = self.polynomial().array()
        zeros = np.zeros(TERMS - len(array), np.float32)
        ends = np.array(_map(self.low, self.high), np.float32)
        return {"coefficients": np.concatenate([ends, zeros, array])}

    def inverse_root(self, v: np.ndarray) -> np.ndarray:
        """See `RowNorm.inverse_root`."""
        slope, shift = _map(self.low, self.high)
        return self.polynomial()(slope * v + shift)


def _map(low: float, high: float) -> tuple[float, float]:
    """Slope and shift of t as float32 numbers."""
    slope = float(np.float32(2 / (high - low)))
    return slope, float(np.float32(-slope * (low + high) / 2))


@functools.cache
def _rsqrt_polynomial(low: float, high: float, degree: int) -> Polynomial:
    slope, shift = _map(low, high)
    # What the rounded map makes of the range, and of v'' there: (d/dt)^2 ((t - shift) / slope)^(-1/2).
    first, last = slope * low + shift, slope * high + shift
    curvature = 0.75 / slope**2 * low**-2.5
    return minimax(
        lambda t: np.sqrt(slope / (t - shift)), first, last, degree, curvature=curvature, relative=True
    )
