"""LayerNorm and RMSNorm with Goldschmidt's coupled iteration on a calibrated range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.norm.newton_rsqrt import NewtonRsqrt


@script(LOWERKIT, default_opset=op)
def GoldschmidtLayerNorm(X, Scale, Bias, coefficients, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """(x - mean) y scale + bias; slope and shift of the start, then (a, b) of 10 steps r = a - b g y."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    deviation = X - op.ReduceMean(X, axes)
    v = op.ReduceMean(deviation * deviation, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    s, t, a0, b0, a1, b1, a2, b2, a3, b3, a4, b4, a5, b5, a6, b6, a7, b7, a8, b8, a9, b9 = op.Split(
        coefficients, num_outputs=22
    )
    y0 = s * v + t
    g0 = v * y0
    r0 = a0 - b0 * (g0 * y0)
    g1, y1 = g0 * r0, y0 * r0
    r1 = a1 - b1 * (g1 * y1)
    g2, y2 = g1 * r1, y1 * r1
    r2 = a2 - b2 * (g2 * y2)
    g3, y3 = g2 * r2, y2 * r2
    r3 = a3 - b3 * (g3 * y3)
    g4, y4 = g3 * r3, y3 * r3
    r4 = a4 - b4 * (g4 * y4)
    g5, y5 = g4 * r4, y4 * r4
    r5 = a5 - b5 * (g5 * y5)
    g6, y6 = g5 * r5, y5 * r5
    r6 = a6 - b6 * (g6 * y6)
    g7, y7 = g6 * r6, y6 * r6
    r7 = a7 - b7 * (g7 * y7)
    g8, y8 = g7 * r7, y7 * r7
    r8 = a8 - b8 * (g8 * y8)
    g9, y9 = g8 * r8, y8 * r8
    return deviation * (y9 * (a9 - b9 * (g9 * y9))) * Scale + Bias


@script(LOWERKIT, default_opset=op)
def GoldschmidtRMSNorm(X, Scale, coefficients, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """x y scale; slope and shift of the start, then (a, b) of 10 steps r = a - b g y."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    v = op.ReduceMean(X * X, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    s, t, a0, b0, a1, b1, a2, b2, a3, b3, a4, b4, a5, b5, a6, b6, a7, b7, a8, b8, a9, b9 = op.Split(
        coefficients, num_outputs=22
    )
    y0 = s * v + t
    g0 = v * y0
    r0 = a0 - b0 * (g0 * y0)
    g1, y1 = g0 * r0, y0 * r0
    r1 = a1 - b1 * (g1 * y1)
    g2, y2 = g1 * r1, y1 * r1
    r2 = a2 - b2 * (g2 * y2)
    g3, y3 = g2 * r2, y2 * r2
    r3 = a3 - b3 * (g3 * y3)
    g4, y4 = g3 * r3, y3 * r3
    r4 = a4 - b4 * (g4 * y4)
    g5, y5 = g4 * r4, y4 * r4
    r5 = a5 - b5 * (g5 * y5)
    g6, y6 = g5 * r5, y5 * r5
    r6 = a6 - b6 * (g6 * y6)
    g7, y7 = g6 * r6, y6 * r6
    r7 = a7 - b7 * (g7 * y7)
    g8, y8 = g7 * r7, y7 * r7
    r8 = a8 - b8 * (g8 * y8)
    g9, y9 = g8 * r8, y8 * r8
    return X * (y9 * (a9 - b9 * (g9 * y9))) * Scale


@dataclass(frozen=True)
class GoldschmidtRsqrt(NewtonRsqrt):
    """v^(-1/2) by Goldschmidt's iteration: v y and y are multiplied by the same factor in every step.

    From y, the linear start, and g = v y,

        r = a - b g y,  g <- g r,  y <- y r.

    g = v y holds throughout, so that in real arithmetic y is Newton's, with its coefficients and its bound
    (`lowerkit.numerics.newton`). The two products of a step are independent: its latency is two products
    and a subtraction, against Newton's three. The price is rounding: no step looks at v again, so that
    every step leaves its own in g and y, some 2 units in the last place per step, and g y, which tends to
    1, does not show it.

    Outside the range, and for NaN, the result is Newton's.
    """

    name: ClassVar[str] = "goldschmidt-rsqrt"
    source: ClassVar[str] = (
        "Goldschmidt, Applications of division by convergence (MIT, 1964); for square roots: Markstein, "
        "Software division and square root using Goldschmidt's algorithms (2004), section 3"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "per row: 4 multiplications and an addition per step, two of them side by side",
        "gpu": "no gain: the hardware has an inverse square root",
        "fpga": "per row: two multipliers side by side, 3 `steps` + 2 cycles of them; no shifter, no table",
        "he": "per row: depth 2 `steps` + 2, 3 `steps` products of ciphertexts",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {
        "LayerNormalization": GoldschmidtLayerNorm,
        "RMSNormalization": GoldschmidtRMSNorm,
    }

    def inverse_root(self, v: np.ndarray) -> np.ndarray:
        """See `RowNorm.inverse_root`."""
        iteration = self.iteration()
        y = iteration.start(v)
        g = v * y
        for a, b in iteration.steps:
            r = a - b * (g * y)
            g, y = g * r, y * r
        return y
