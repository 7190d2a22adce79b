"""LayerNorm and RMSNorm with Newton's iteration on a calibrated range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.newton import STEPS, InverseRoot, inverse_root
from lowerkit.passes.base import Bound, Evidence
from lowerkit.passes.norm.base import CalibratedNorm


@script(LOWERKIT, default_opset=op)
def NewtonLayerNorm(X, Scale, Bias, coefficients, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """(x - mean) y scale + bias; slope and shift of the start, then (a, b) of 10 steps y (a - b v y y)."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    deviation = X - op.ReduceMean(X, axes)
    v = op.ReduceMean(deviation * deviation, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    s, t, a0, b0, a1, b1, a2, b2, a3, b3, a4, b4, a5, b5, a6, b6, a7, b7, a8, b8, a9, b9 = op.Split(
        coefficients, num_outputs=22
    )
    y0 = s * v + t
    y1 = y0 * (a0 - b0 * (v * y0 * y0))
    y2 = y1 * (a1 - b1 * (v * y1 * y1))
    y3 = y2 * (a2 - b2 * (v * y2 * y2))
    y4 = y3 * (a3 - b3 * (v * y3 * y3))
    y5 = y4 * (a4 - b4 * (v * y4 * y4))
    y6 = y5 * (a5 - b5 * (v * y5 * y5))
    y7 = y6 * (a6 - b6 * (v * y6 * y6))
    y8 = y7 * (a7 - b7 * (v * y7 * y7))
    y9 = y8 * (a8 - b8 * (v * y8 * y8))
    return deviation * (y9 * (a9 - b9 * (v * y9 * y9))) * Scale + Bias


@script(LOWERKIT, default_opset=op)
def NewtonRMSNorm(X, Scale, coefficients, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """x y scale; slope and shift of the start, then (a, b) of 10 steps y (a - b v y y)."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    v = op.ReduceMean(X * X, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    s, t, a0, b0, a1, b1, a2, b2, a3, b3, a4, b4, a5, b5, a6, b6, a7, b7, a8, b8, a9, b9 = op.Split(
        coefficients, num_outputs=22
    )
    y0 = s * v + t
    y1 = y0 * (a0 - b0 * (v * y0 * y0))
    y2 = y1 * (a1 - b1 * (v * y1 * y1))
    y3 = y2 * (a2 - b2 * (v * y2 * y2))
    y4 = y3 * (a3 - b3 * (v * y3 * y3))
    y5 = y4 * (a4 - b4 * (v * y4 * y4))
    y6 = y5 * (a5 - b5 * (v * y5 * y5))
    y7 = y6 * (a6 - b6 * (v * y6 * y6))
    y8 = y7 * (a7 - b7 * (v * y7 * y7))
    y9 = y8 * (a8 - b8 * (v * y8 * y8))
    return X * (y9 * (a9 - b9 * (v * y9 * y9))) * Scale


@dataclass(frozen=True)
class NewtonRsqrt(CalibratedNorm):
    """v^(-1/2) by a linear start and `steps` scaled Newton steps: no range reduction, no division.

    The iteration and the proof of its bound are in `lowerkit.numerics.newton`. Unused steps of the operator
    have a = 1 and b = 0, which leaves y as it is, exactly. The bound is of the coefficients as rounded to
    float32. A step forgets the rounding of those before it, as y nears the root: what is left in float32 is
    that of the last step.

    Below the range the result is too small, falling to a constant times the deviation as v falls; above it
    the start falls and the result with it, and where v exceeds low + (low high)^(1/2) + high it has the
    wrong sign and may grow without limit. On the range y is positive. NaN gives NaN.
    """

    steps: int = 7

    name: ClassVar[str] = "newton-rsqrt"
    size: ClassVar[str] = "steps"
    largest: ClassVar[int] = STEPS
    enough: ClassVar[float] = 2.0**-20
    source: ClassVar[str] = (
        "Newton's iteration: Muller, Elementary Functions (3rd ed.), section 5.4; its scaling: Chen and Chow, "
        "A stable scaling of Newton-Schulz (Argonne report ANL/MCS-P5059-0114, 2014)"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "per row: 4 multiplications and an addition per step, in a chain",
        "gpu": "no gain: the hardware has an inverse square root",
        "fpga": "per row: one multiply-add reused 4 `steps` + 1 times; no shifter, no table",
        "he": "per row: depth 2 `steps` + 1, 4 `steps` products of which `steps` are by plain constants",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {
        "LayerNormalization": NewtonLayerNorm,
        "RMSNormalization": NewtonRMSNorm,
    }

    def iteration(self) -> InverseRoot:
        """Start and steps."""
        return inverse_root(float(self.low), float(self.high), self.steps)

    def bound(self) -> Bound:
        """The iteration's relative error."""
        return Bound(self.iteration().error, "relative", self.domain, Evidence.PROVED)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Slope and shift of the start, and two numbers for each of 10 steps."""
        return {"coefficients": self.iteration().array()}

    def inverse_root(self, v: np.ndarray) -> np.ndarray:
        """See `RowNorm.inverse_root`."""
        iteration = self.iteration()
        y = iteration.start(v)
        for a, b in iteration.steps:
            y = y * (a - b * (v * y * y))
        return y
