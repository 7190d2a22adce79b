"""Linear layers in bfloat16, summed in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lowerkit.passes.activation.bodies import Body
from lowerkit.passes.base import Bound, Evidence
from lowerkit.passes.quantize.base import LinearMethod, product, weight_of
from lowerkit.passes.quantize.bodies import CONV_BF16, MATMUL_BF16

#: Half the spacing of bfloat16 at 1: of eight bits of significand, one is before the point.
UNIT = 2.0**-8


@dataclass(frozen=True)
class Bf16(LinearMethod):
    """Both operands rounded to bfloat16 (nearest, ties to even); products are summed in float32.

    bfloat16 has the exponents of float32 and eight bits of significand, so that a normal number is rounded by at
    most u = 2^-8 of itself, and the product of two such is exact in float32. So

        |y - y'| <= ((1 + u)^2 - 1) sum_k |x_k| |w_k|

    and the sum is at most K max|x| max|w|. Nothing is calibrated. A weight above the largest bfloat16 (3.39e38)
    would become infinite and is refused; such an activation becomes infinite. Asked for all linear layers,
    convolutions by channel and those with sums of fewer than 32 products are kept: they gain nothing.
    """

    name: ClassVar[str] = "bf16"
    source: ClassVar[str] = (
        "Kalamkar et al., A study of BFLOAT16 for deep learning training (2019), section 3; "
        "Higham, Accuracy and stability of numerical algorithms (2002), section 3.1"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "half the weights' traffic; twice the products per instruction where there is vdpbf16ps",
        "gpu": "the matrix unit's usual operands",
        "fpga": "not applicable: fixed point there",
        "he": "not applicable: needs rounding",
    }
    functions: ClassVar[Mapping[str, Body]] = {"MatMul": MATMUL_BF16, "Conv": CONV_BF16}

    def bound(self) -> Bound:
        """From the rounding of either operand."""
        return Bound((1 + UNIT) ** 2 - 1, "operands", "every finite product", Evidence.PROVED)

    def refuses(self, node: ir.Node) -> str | None:
        """Weights that are not finite, or not in bfloat16."""
        reason = super().refuses(node)
        if reason is not None:
            return reason
        weight = weight_of(node)
        if not np.isfinite(rounded(weight)).all():
            return f"needs weights that bfloat16 holds, and one is {np.abs(weight).max():.3g}"
        return None

    def stored(self, node: ir.Node, weight: np.ndarray) -> dict[str, np.ndarray]:
        """The weight, rounded."""
        return {"w": weight.astype(np.float32).astype(ml_dtypes.bfloat16)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: x times `weight`, or convolved with it, with a Conv's attributes."""
        return product(rounded(x), rounded(np.asarray(attributes["weight"], np.float64)), attributes)


def rounded(x: np.ndarray) -> np.ndarray:
    """float32 numbers rounded to bfloat16, in float64."""
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
