"""Linear layers in 8-bit integers, activations quantised as they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lowerkit.passes.activation.bodies import Body
from lowerkit.passes.base import Bound, Evidence
from lowerkit.passes.quantize.base import ACTIVATION_STEPS, WEIGHT_STEPS, IntegerLinear
from lowerkit.passes.quantize.bodies import CONV_INT8, MATMUL_INT8

#: Half a step of a weight, of its channel's largest, and half a step of an activation, of twice the row's largest.
ERROR = 0.5 / WEIGHT_STEPS + 1 / ACTIVATION_STEPS


@dataclass(frozen=True)
class Int8(IntegerLinear):
    """Weights in 8 bits per output channel, activations in 8 bits per token; sums of integers.

    A weight of output channel n is w'_kn = t_n v_kn with t_n = max_k |w_kn| / 127 and the integer
    v_kn = round(w_kn / t_n). A row x of the last axis (a token), or for a Conv one sample, is quantised when it is
    there: with lo = min(x, 0), hi = max(x, 0),

        s = (hi - lo) / 255,    z = clip(round(-lo / s), 0, 255),    q = clip(round(x / s) + z, 0, 255),

    s = 1 where the row is zeros. Rounding is to nearest, ties to even. The result is

        y'_n = s t_n sum_k (q_k - z) v_kn,

    whose sum is exact in int32 for K up to 2^31 / (255 127) = 66,000. 0 is represented exactly, so that padding and
    ReLU's zeros cost nothing.

    Error: x'_k = s (q_k - z) is off by at most s / 2: where nothing is clipped by rounding, and as z is off by at most
    half, what is clipped was at most half a step beyond the end. |w - w'| is at most t / 2. With X = max|x| and
    W = max_k |w_kn|, s <= 2 X / 255 and t = W / 127, so

        |y - y'| <= sum_k |x_k| |w_k - w'_k| + |x_k - x'_k| |w'_k| <= K X W (1 / 254 + 1 / 255).

    Errors of different k have random signs: the usual error is smaller by about the square root of K. No data is
    needed. A row with a NaN or an infinity gives NaN throughout.

    Asked for all linear layers, convolutions by channel and those with sums of fewer than 32 products are kept: they
    gain nothing.
    """

    name: ClassVar[str] = "int8"
    source: ClassVar[str] = (
        "Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference "
        "(CVPR 2018), section 2; Yao et al., ZeroQuant (NeurIPS 2022), section 4.1, for one step per token"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "a quarter of the weights' traffic, four products per lane; two passes over each row of x",
        "gpu": "int8 matrix units; two passes over each row of x",
        "fpga": "not applicable: that target has its own integers",
        "he": "not applicable: needs rounding",
    }
    functions: ClassVar[Mapping[str, Body]] = {"MatMul": MATMUL_INT8, "Conv": CONV_INT8}

    def bound(self) -> Bound:
        """From half a step of either operand."""
        return Bound(ERROR, "operands", "every finite row", Evidence.PROVED)
