"""Softmax with a polynomial exponential and a reciprocal by Newton's iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.poly_exp import PolyExp

#: The start a - b m for 1/m, a = 24/17 and b = 8/17 as float32.
START, SLOPE = float(np.float32(24 / 17)), float(np.float32(8 / 17))
#: The mantissa's range [1, 2), and what rounding of a logarithm at its ends may add.
LOW, HIGH = 0.999, 2.002
#: The body has this many steps.
STEPS = 4


@script(LOWERKIT, default_opset=op)
def PolySoftmaxNewton(X, coefficients, axis: int = -1, steps: int = 3):  # type: ignore[no-untyped-def]
    """e y with e as in PolySoftmax and y for 1 / sum e: sum = m 2^k, 24/17 - 8/17 m, `steps` Newton steps."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    z = X - op.ReduceMax(X, axes)
    n = op.Round(z * 1.4426950408889634)
    r = z - n * 0.693359375 + n * 2.12194440054690583e-4
    c7, c6, c5, c4, c3, c2, c1, c0 = op.Split(coefficients, num_outputs=8)
    p = ((((((c7 * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r + c1) * r + c0
    e = op.Where(z < -87.33654475055310, op.CastLike(0.0, X), p * op.Pow(op.CastLike(2.0, X), n))
    total = op.ReduceSum(e, axes)
    k = op.Floor(op.Log(total) * 1.4426950408889634)
    scale = op.Pow(op.CastLike(2.0, X), op.Neg(k))
    m = total * scale
    count = op.Constant(value_int=steps)
    y0 = 1.4117647409439087 - 0.47058823704719543 * m
    y1 = y0 * (2.0 - m * y0)
    y2 = op.Where(count < 2, y1, y1 * (2.0 - m * y1))
    y3 = op.Where(count < 3, y2, y2 * (2.0 - m * y2))
    y4 = op.Where(count < 4, y3, y3 * (2.0 - m * y3))
    return e * (y4 * scale)


@dataclass(frozen=True)
class PolyExpNewton(PolyExp):
    """Softmax as `poly-exp` computes it, with the one division per row replaced by multiplications.

    The denominator D = sum e_j = m 2^k with k = floor(log2 D), a leading-zero count, and m in [1, 2). The
    line y = 24/17 - 8/17 m starts with error t = 1 - m y in [-1/17, 1/17]: t(m) = 1 - (24 m - 8 m^2) / 17 is a
    parabola with t(1) = t(2) = 1/17 and t(3/2) = -1/17, the smallest maximum that a line can have. A Newton step
    y <- y (2 - m y) squares it, 1 - m y (2 - m y) = (1 - m y)^2, so that after `steps` steps

        1/D (1 - E) <= y 2^-k <= 1/D,   E = t0^(2^steps).

    t0 is the largest |t| for the coefficients as float32 and m in [0.999, 2.002], since a rounded logarithm
    may give the k of the neighbouring octave next to a power of two; at its ends and its vertex, as t is a
    parabola. As t(1) = t(2), either k gives the same result there in real arithmetic.

    Error: the result is p'_i (1 - h), 0 <= h <= E, with p' that of `poly-exp`, which is in [0, 1] and itself
    within eps / (2 (1 - eps)) + 2^-95 of the softmax. The two add up, and E counts whole.

    The result is non-negative and a row sums to between 1 - E and 1. The order of the logits, masks, rows of -inf
    alone, NaN and +inf are as in `poly-exp`.
    """

    steps: int = 3

    name: ClassVar[str] = "poly-exp-newton"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Newton's iteration for the reciprocal: Muller, Elementary Functions (3rd ed. 2016), section 5.4; "
        "exponential as in poly-exp"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "poly-exp with 2 `steps` + 3 multiplications per row for its division; no gain where division is fast",
        "gpu": "as on a cpu; no gain, the hardware has a reciprocal",
        "fpga": "no divider: per row a leading-zero count, shifters and one multiplier reused 2 `steps` + 1 times",
        "he": "the Newton part, depth 2 `steps` + 1, runs there; range reduction and maximum are not polynomial",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": PolySoftmaxNewton}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or not 1 <= self.steps <= STEPS:
            raise ValueError(f"steps must be an integer from 1 to {STEPS}, not {self.steps!r}")

    def reciprocal_error(self) -> float:
        """E: bound of 1 - D y."""
        vertex = START / (2 * SLOPE)
        worst = max(abs(1 - m * (START - SLOPE * m)) for m in (LOW, vertex, HIGH))
        return float((worst + 2.0**-50) ** (1 << self.steps))

    def bound(self) -> Bound:
        """That of `poly-exp` and E."""
        base = super().bound()
        return Bound(base.value + self.reciprocal_error(), base.kind, base.domain, Evidence.PROVED)

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis` and `steps`."""
        return {**super().attributes(node), "steps": self.steps}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        e = self.exponentials(x)
        with np.errstate(invalid="ignore"):
            total = e.sum(axis=-1, keepdims=True)
            k = np.floor(np.log2(total))
            m = total * np.exp2(-k)
            y = START - SLOPE * m
            for _ in range(self.steps):
                y = y * (2 - m * y)
            result: np.ndarray = e * (y * np.exp2(-k))
        return result
