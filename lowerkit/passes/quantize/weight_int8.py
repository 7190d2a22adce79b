"""Weights in 8 bits, activations in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowerkit.passes.activation.bodies import Body
from lowerkit.passes.base import Bound, Evidence
from lowerkit.passes.quantize.base import WEIGHT_STEPS, IntegerLinear
from lowerkit.passes.quantize.bodies import MATMUL_WEIGHT_INT8


@dataclass(frozen=True)
class WeightInt8(IntegerLinear):
    """A matrix in 8 bits per output channel; float32 products.

    w'_kn = t_n v_kn with t_n = max_k |w_kn| / 127 and v_kn = round(w_kn / t_n), and y'_n = t_n sum_k x_k v_kn. Each
    weight is off by at most t_n / 2, so

        |y - y'| <= (t_n / 2) sum_k |x_k| <= K max|x| max|w| / 254.

    It saves memory and traffic, which is what a matrix times few rows costs; nothing else. Convolutions are kept.
    """

    name: ClassVar[str] = "weight-int8"
    source: ClassVar[str] = "Dettmers et al., LLM.int8() (NeurIPS 2022), section 2.1, the weights alone"
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "a quarter of the weights' traffic; a conversion per weight and block of rows",
        "gpu": "a quarter of the weights' traffic",
        "fpga": "not applicable: that target has its own integers",
        "he": "not applicable: weights are encoded at the scale of their ciphertexts",
    }
    functions: ClassVar[Mapping[str, Body]] = {"MatMul": MATMUL_WEIGHT_INT8}

    def bound(self) -> Bound:
        """From half a step of the weights."""
        return Bound(0.5 / WEIGHT_STEPS, "operands", "every finite product", Evidence.PROVED)

    def steps(self, x: np.ndarray, axes: int) -> tuple[np.ndarray, np.ndarray | float]:
        """x as it is."""
        return np.asarray(x, np.float64), 1.0
