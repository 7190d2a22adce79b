"""Softmax replaced by normalised even powers."""

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

#: Logits at or below this are masked.
MASKED = -1e4
FORMS = ("plain", "stable", "length-agnostic")


@script(LOWERKIT, default_opset=op)
def PowerSoftmax(  # type: ignore[no-untyped-def]
    X, axis: int = -1, power: float = 2.0, scale: float = 1.0, epsilon: float = 0.0, mean: float = 0.0
):
    """q / (epsilon + sum q) with q = (x / scale)^power, divided by the length n where `mean` is 1."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    n = op.CastLike(op.Gather(op.Shape(X), axes), X)
    powers = op.Pow(op.Abs(X / scale), power)
    q = op.Where(X <= -10000.0, op.CastLike(0.0, X), powers) / (1.0 + mean * (n - 1.0))
    # Finite powers may add up to infinity, and their half mean may not.
    shrink = op.Where(op.IsInf(op.ReduceSum(q, axes)), 0.5 / n, op.CastLike(1.0, X))
    small = q * shrink
    total = op.ReduceSum(small, axes) + epsilon * shrink
    return small / op.Where(total == 0.0, op.CastLike(1.0, X), total)


@dataclass(frozen=True)
class Power(SoftmaxMethod):
    """Another function: x^p / sum x^p with p even, in one of the forms

    - plain: x_i^p / sum_j x_j^p;
    - stable: q_i / (epsilon + sum_j q_j) with q = (x / scale)^p;
    - length-agnostic: (q_i / n) / (epsilon + (1/n) sum_j q_j): the number whose reciprocal is taken is a mean,
      so that its range does not grow with the row length n. It is `stable` with n epsilon for epsilon.

    `plain` ignores `scale` and `epsilon`. `fit` takes the largest unmasked |x| as the scale: then q <= 1.

    Weights are non-negative and no row sums to more than 1: it is exactly 1 in the plain form, and otherwise
    S / (S + epsilon) with S the sum (mean) of q. A weight grows with |x_i| (so it is *not* monotone in x_i, and
    x and -x weigh the same), nothing is invariant to shifts, and the plain form is invariant to scaling.

    The power of a mask's huge negative number would be huge, so that what lies at or below -1e4 has q = 0:
    -inf and additive masks weigh 0. A row whose q are all zero (masked, all zeros, or so small that q underflows)
    gives zeros, in the plain form too. NaN makes its row NaN; +inf, or any x whose q leaves float32, gives NaN at
    its own element and 0 at the others. Where only the sum of q leaves float32, both parts of the quotient are
    divided by 2 n first.
    """

    power: int = 2
    form: str = "stable"
    scale: float = 4.0
    epsilon: float = 1e-3

    name: ClassVar[str] = "power"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Zimerman et al., Power-Softmax: Towards Secure LLM Inference over Encrypted Data (2024)"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "log2(power) multiplications per element and one division; no exponential and no maximum",
        "gpu": "as on a cpu; one reduction in place of two",
        "fpga": "log2(power) multipliers, an adder tree and one divider per row",
        "he": "depth log2(power) and one reciprocal: see power-polynomial",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": PowerSoftmax}

    def __post_init__(self) -> None:
        check_power(self.power, self.scale, self.epsilon)
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not {self.form!r}")

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> Power:
        """The scale is the largest unmasked |x| that was seen."""
        return cls(**{**calibrated_scale(stats), **options})

    def bound(self) -> None:
        """None: another function."""

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, and the form in numbers."""
        plain = self.form == "plain"
        return {
            **super().attributes(node),
            "power": float(self.power),
            "scale": 1.0 if plain else float(self.scale),
            "epsilon": 0.0 if plain else float(self.epsilon),
            "mean": float(self.form == "length-agnostic"),
        }

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        plain = self.form == "plain"
        q = powers(x, self.power, 1.0 if plain else self.scale)
        if self.form == "length-agnostic":
            q = q / q.shape[-1]
        total = q.sum(axis=-1, keepdims=True) + (0.0 if plain else self.epsilon)
        with np.errstate(invalid="ignore"):
            result: np.ndarray = q / np.where(total == 0, 1.0, total)
        return result


def check_power(power: int, scale: float, epsilon: float) -> None:
    """Raises ValueError on what no power method takes."""
    if not isinstance(power, int) or not 2 <= power <= 16 or power % 2:
        why = "an odd power of a negative logit would be a negative weight"
        raise ValueError(f"power must be an even integer from 2 to 16, not {power!r}: {why}")
    if not isinstance(scale, (int, float)) or not 1e-6 <= scale <= 1e6:
        raise ValueError(f"scale must be a number from 1e-6 to 1e6, not {scale!r}")
    if not isinstance(epsilon, (int, float)) or not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be a number from 0 to 1, not {epsilon!r}")


def powers(x: np.ndarray, power: int, scale: float) -> np.ndarray:
    """(x / scale)^power in float64, 0 where x is masked."""
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        result: np.ndarray = np.where(x <= MASKED, 0.0, np.abs(x / scale) ** power)
    return result


def calibrated_scale(stats: TensorStats | None) -> dict[str, float]:
    """`scale`, the largest unmasked |x|; nothing when there was none."""
    if stats is None:
        return {}
    peaks = [float(np.abs(good).max()) for x in stats.examples if (good := _unmasked(x)).size]
    # Beyond the examples only the range is known, of which the lower end may be a mask.
    peaks += [abs(v) for v in (stats.minimum, stats.maximum) if math.isfinite(v) and v > MASKED]
    return {"scale": min(max(peaks), 1e6)} if peaks and max(peaks) >= 1e-6 else {}


def _unmasked(x: np.ndarray) -> np.ndarray:
    good: np.ndarray = x[np.isfinite(x) & (x > MASKED)]
    return good
