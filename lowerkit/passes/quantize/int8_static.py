"""Linear layers in 8-bit integers, activations quantised by calibrated ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.channels import carried_from
from lowerkit.graph.weights import initializer
from lowerkit.numerics.clipping import RULES, clipped_range
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.activation.bodies import Body
from lowerkit.passes.base import Bound, Evidence, Method
from lowerkit.passes.quantize.base import ACTIVATION_STEPS, SMALLEST, IntegerLinear
from lowerkit.passes.quantize.bodies import CONV_INT8_STATIC, MATMUL_INT8_STATIC
from lowerkit.passes.quantize.int8 import ERROR


@dataclass(frozen=True)
class Int8Static(IntegerLinear):
    """Weights in 8 bits per output channel, activations in 8 bits with one calibrated step for the whole tensor.

    As method `int8`, for the same layers, but s and z are constants: `scale` and `zero_point`, from a range [lo, hi]
    that contains 0,

        s = (hi - lo) / 255,    z = clip(round(-lo / s), 0, 255),

    and q = clip(round(x / s) + z, 0, 255). What lies outside of the range is clipped. `range` says how it is chosen
    from the calibrated values:

    - `min-max`: the least and the greatest, so that nothing of the calibration data is clipped.
    - `percentile`: what leaves out the fraction 1e-4 of all values at either end, in a histogram of 2048 bins.
    - `mse`: of 100 ranges, from 1 % to 100 % of min-max, that with the least mean squared error over the histogram,
      rounding (s^2 / 12 in the range) and clipping together.

    Where x is a LayerNorm's output and that one was lowered by method `repquant` with 8 bits, x takes that one's
    scale and zero point, which fit every channel, instead of those in the plan.

    Error: inside of the range as for `int8`, with X the larger end of the range in the place of max|x|.
    """

    range: str = "min-max"
    scale: float = 0.0
    zero_point: int = 0

    name: ClassVar[str] = "int8-static"
    calibrated: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Jacob et al. (CVPR 2018), section 3; Nagel et al., A white paper on neural network quantization (2021), "
        "section 3.1, for the ranges; Li et al., RepQuant (2024), for LayerNorm"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "as int8, with one pass over x that can be part of what computes it",
        "gpu": "as int8, with one pass over x that can be part of what computes it",
        "fpga": "not applicable: that target has its own integers",
        "he": "not applicable: needs rounding",
    }
    functions: ClassVar[Mapping[str, Body]] = {"MatMul": MATMUL_INT8_STATIC, "Conv": CONV_INT8_STATIC}

    def __post_init__(self) -> None:
        if self.range not in RULES:
            raise ValueError(f"range must be one of {', '.join(RULES)}, not {self.range!r}")
        if not isinstance(self.scale, (int, float)) or not 0 <= self.scale < np.inf:
            raise ValueError(f"scale must be a positive number, or 0 to calibrate it, not {self.scale!r}")
        zero = self.zero_point
        if not isinstance(zero, int) or isinstance(zero, bool) or not 0 <= zero <= ACTIVATION_STEPS:
            raise ValueError(f"zero_point must be an integer from 0 to {ACTIVATION_STEPS}, not {zero!r}")

    @classmethod
    def fit(cls, stats: TensorStats | None, options: Mapping[str, Any]) -> Method:
        """`scale` and `zero_point` from the calibrated range."""
        method = cls(**options)
        if method.scale > 0 or stats is None or not stats.count:
            return method
        low, high = clipped_range(stats, method.range, ACTIVATION_STEPS)
        scale = float(np.float32((high - low) / ACTIVATION_STEPS))
        scale = max(scale, SMALLEST) if high > low else 1.0
        zero = int(np.clip(np.rint(-low / scale), 0, ACTIVATION_STEPS))
        return dataclasses.replace(method, scale=scale, zero_point=zero)

    def bound(self) -> Bound:
        """From half a step of either operand."""
        domain = "values inside of the calibrated range, whose larger end counts as max|x|"
        return Bound(ERROR, "operands", domain, Evidence.PROVED)

    def outside(self, stats: TensorStats) -> str | None:
        """Values a step beyond the range; ranges that clip by choice are never left."""
        low = -(self.zero_point + 1) * self.scale
        high = (ACTIVATION_STEPS - self.zero_point + 1) * self.scale
        if self.range != "min-max" or not stats.count or (low <= stats.minimum and stats.maximum <= high):
            return None
        return (
            f"values reach from {stats.minimum:.3g} to {stats.maximum:.3g}, "
            f"and the range is {low:.3g} to {high:.3g}"
        )

    def refuses(self, node: ir.Node) -> str | None:
        """Weights that are not finite, and an activation without a scale."""
        reason = super().refuses(node)
        if reason is None and self.scale == 0:
            return "needs the scale of its input: calibrate, or give `scale` and `zero_point` in the plan"
        return reason

    def inputs(self, model: ir.Model, node: ir.Node) -> list[ir.Value | None]:
        """X, its scale and zero point, and what is stored of the weight."""
        x, *weights = super().inputs(model, node)
        scale, zero = _reparameterised(node) or (self.scale, self.zero_point)
        assert x is not None
        made = [
            initializer(model.graph, f"{x.name}/x_scale", np.array(scale, np.float32)),
            initializer(model.graph, f"{x.name}/x_zero", np.array(zero, np.uint8)),
        ]
        return [x, *made, *weights]

    def steps(self, x: np.ndarray, axes: int) -> tuple[np.ndarray, np.ndarray | float]:
        """Whole steps of the calibrated scale."""
        q = np.rint(np.asarray(x, np.float64) / self.scale) + self.zero_point
        return np.clip(q, 0, ACTIVATION_STEPS) - self.zero_point, self.scale


def _reparameterised(node: ir.Node) -> tuple[float, int] | None:
    """Scale and zero point that a normalisation with equal channels has for what the node reads, or None."""
    value = node.inputs[0]
    assert value is not None
    norm = carried_from(value)
    if norm is None or norm.op_type not in ("ScaledLayerNorm", "ScaledRMSNorm"):
        return None
    if norm.attributes.get_int("bits", 8) != 8:
        return None
    return norm.attributes.get_float("output_scale", 1.0), norm.attributes.get_int("output_zero_point", 0)
