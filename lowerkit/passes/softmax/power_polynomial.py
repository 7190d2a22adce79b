"""Softmax replaced by even powers and a polynomial reciprocal: what encrypted computation runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.base import Contract
from lowerkit.passes.softmax.base import SoftmaxMethod
from lowerkit.passes.softmax.power import calibrated_scale, check_power, powers

FORMS = ("stable", "length-agnostic")
#: Bodies take this many steps; those above `steps` are multiplied by zero.
STEPS = 20
#: What `fit` takes steps for.
GOAL = 2.0**-20


@script(LOWERKIT, default_opset=op)
def PolynomialPowerSoftmax(  # type: ignore[no-untyped-def]
    X,
    start,
    gates,
    axis: int = -1,
    power: float = 2.0,
    scale: float = 1.0,
    epsilon: float = 0.0,
    mean: float = 0.0,
):
    """q y with q = (x / scale)^power and y the Newton iteration for 1 / (epsilon + sum q); 20 gated steps."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    n = op.CastLike(op.Gather(op.Shape(X), axes), X)
    powers = op.Pow(op.Abs(X / scale), power)
    q = op.Where(X <= -10000.0, op.CastLike(0.0, X), powers) / (1.0 + mean * (n - 1.0))
    d = op.ReduceSum(q, axes) + epsilon
    a, b = op.Split(start, num_outputs=2)
    g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11, g12, g13, g14, g15, g16, g17, g18, g19 = op.Split(
        gates, num_outputs=20
    )
    y = a - b * d
    y = y + g0 * (y * (1.0 - d * y))
    y = y + g1 * (y * (1.0 - d * y))
    y = y + g2 * (y * (1.0 - d * y))
    y = y + g3 * (y * (1.0 - d * y))
    y = y + g4 * (y * (1.0 - d * y))
    y = y + g5 * (y * (1.0 - d * y))
    y = y + g6 * (y * (1.0 - d * y))
    y = y + g7 * (y * (1.0 - d * y))
    y = y + g8 * (y * (1.0 - d * y))
    y = y + g9 * (y * (1.0 - d * y))
    y = y + g10 * (y * (1.0 - d * y))
    y = y + g11 * (y * (1.0 - d * y))
    y = y + g12 * (y * (1.0 - d * y))
    y = y + g13 * (y * (1.0 - d * y))
    y = y + g14 * (y * (1.0 - d * y))
    y = y + g15 * (y * (1.0 - d * y))
    y = y + g16 * (y * (1.0 - d * y))
    y = y + g17 * (y * (1.0 - d * y))
    y = y + g18 * (y * (1.0 - d * y))
    y = y + g19 * (y * (1.0 - d * y))
    return q * y


@dataclass(frozen=True)
class PowerPolynomial(SoftmaxMethod):
    """Another function: `power`, its reciprocal by additions and multiplications alone.

    With q = (x / scale)^power (divided by n in the form length-agnostic) and d = epsilon + sum q, the weights
    are q_i y_k(d), k = `steps`, for d in [low, high]:

        y_0 = a - b d,    y_{k+1} = y_k + y_k (1 - d y_k).

    Error of the reciprocal: the residual r_k = 1 - d y_k satisfies r_{k+1} = r_k^2. The first,
    1 - a d + b d^2, is a quadratic with value 1 at d = 0; the least possible on [low, high] is
    T_2(t) / T_2(s) with t = (2 d - high - low) / (high - low), s = (high + low) / (high - low) and T_2(s) =
    2 s^2 - 1, which gives a and b. Hence |d y_k - 1| <= (2 s^2 - 1)^(-2^k), `reciprocal_error()`, and every
    weight is within that relative error of what `power` gives in the same form. For k >= 1 the residual is
    non-negative, thus y_k <= 1 / d: weights are non-negative and a row sums to at most 1.

    Below `low`, r_0 is between its bound and 1, so that y_k is too small but sound; above the point
    high + low, where r_0 = 1, the iteration diverges. A weight grows with |x_i|: not monotone in x_i; no
    invariance to shifts. Masks (x <= -1e4) have q = 0, so that a fully masked row gives zeros; encrypted, the
    mask is a multiplication by known zeros and ones. NaN makes its row NaN; +inf, and x whose q leaves float32,
    leave no finite number in their row.

    `fit` sees whole examples: it takes the scale from the largest |x|, the range of d over their rows (last
    axis) widened by the factor `margin` at both ends, and steps for an error of 2^-20.
    """

    power: int = 2
    form: str = "stable"
    scale: float = 4.0
    epsilon: float = 1e-3
    low: float = 0.25
    high: float = 4096.0
    steps: int = 16
    margin: float = 2.0

    name: ClassVar[str] = "power-polynomial"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Zimerman et al. (2024), Power-Softmax; reciprocal: Newton's iteration as Goldschmidt (1964) uses it"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "the power per element; 2 `steps` multiplications per row, more than a division costs",
        "gpu": "as on a cpu",
        "fpga": "multipliers and adders alone; no divider",
        "he": "depth log2(power) + 2 `steps` + 2; no comparison, no maximum, no division",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": PolynomialPowerSoftmax}

    def __post_init__(self) -> None:
        check_power(self.power, self.scale, self.epsilon)
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not {self.form!r}")
        numbers = (self.low, self.high, self.margin)
        if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers):
            raise ValueError("low, high and margin must be finite numbers")
        if not 1e-9 <= self.low < self.high <= 1e9:
            raise ValueError(f"1e-9 <= low < high <= 1e9 must hold, not {self.low!r} and {self.high!r}")
        if not isinstance(self.steps, int) or not 1 <= self.steps <= STEPS:
            raise ValueError(f"steps must be an integer from 1 to {STEPS}, not {self.steps!r}")
        if not self.margin >= 1:
            raise ValueError(f"margin must be at least 1, not {self.margin!r}")

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> PowerPolynomial:
        """Scale, range and steps from the examples, where they are not given."""
        options = {**calibrated_scale(stats), **options}
        method = cls(**options)
        seen = method.denominators(stats)
        if seen is not None:
            fitted = {"low": max(seen[0] / method.margin, 1e-9), "high": min(seen[1] * method.margin, 1e9)}
            if fitted["high"] <= fitted["low"]:
                fitted["high"] = 2 * fitted["low"]
            options = {**fitted, **options}
        if "steps" not in options:
            trials = (cls(**{**options, "steps": k}) for k in range(1, STEPS + 1))
            return next(
                (m for m in trials if m.reciprocal_error() <= GOAL), cls(**{**options, "steps": STEPS})
            )
        return cls(**options)

    def bound(self) -> None:
        """None: another function. See `reciprocal_error`."""

    def first_error(self) -> float:
        """|1 - d y_0| on [low, high]."""
        s = (self.high + self.low) / (self.high - self.low)
        return 1 / (2 * s * s - 1)

    def reciprocal_error(self) -> float:
        """The proved bound on |d y - 1| for d in [low, high], in real arithmetic."""
        return float(self.first_error() ** (2**self.steps))

    def denominators(self, stats: TensorStats | None) -> tuple[float, float] | None:
        """The smallest and largest d over the examples' rows that are not fully masked."""
        found = [self._quotients(x) for x in (stats.examples if stats else ()) if x.ndim]
        totals = [q.sum(axis=-1) for q in found]
        good = [t[np.isfinite(t) & (t > 0)] for t in totals]
        flat = np.concatenate(good) if good else np.empty(0)
        return (float(flat.min()) + self.epsilon, float(flat.max()) + self.epsilon) if flat.size else None

    def outside(self, stats: TensorStats) -> str | None:
        """Denominators that leave [low, high]."""
        seen = self.denominators(stats)
        if seen is None or (self.low <= seen[0] and seen[1] <= self.high):
            return None
        return (
            f"denominators from {seen[0]:.4g} to {seen[1]:.4g} leave the reciprocal's range "
            f"from {self.low:.4g} to {self.high:.4g}"
        )

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """The first approximation's a and b; one gate for each step."""
        gates = np.arange(STEPS) < self.steps
        return {"start": np.array(self._start(), np.float32), "gates": gates.astype(np.float32)}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, and the form in numbers."""
        return {
            **super().attributes(node),
            "power": float(self.power),
            "scale": float(self.scale),
            "epsilon": float(self.epsilon),
            "mean": float(self.form == "length-agnostic"),
        }

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        q = self._quotients(x)
        a, b = self._start()
        with np.errstate(over="ignore", invalid="ignore"):
            d = q.sum(axis=-1, keepdims=True) + self.epsilon
            y = a - b * d
            for _ in range(self.steps):
                y = y + y * (1 - d * y)
            result: np.ndarray = q * y
        return result

    def _quotients(self, x: np.ndarray) -> np.ndarray:
        q = powers(x, self.power, self.scale)
        return q / q.shape[-1] if self.form == "length-agnostic" else q

    def _start(self) -> tuple[float, float]:
        s, slope = (self.high + self.low) / (self.high - self.low), 2 / (self.high - self.low)
        return 4 * slope * s * self.first_error(), 2 * slope * slope * self.first_error()
