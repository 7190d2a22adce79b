"""Weights of -1, 0 and 1 with a scale per output channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowerkit.passes.activation.bodies import Body
from lowerkit.passes.base import Contract
from lowerkit.passes.quantize.base import SMALLEST, IntegerLinear, outputs_last
from lowerkit.passes.quantize.bodies import CONV_INT8, MATMUL_INT8


@dataclass(frozen=True)
class Ternary(IntegerLinear):
    """Weights -a, 0 or a with one a per output channel; activations in 8 bits, as method `int8` has them.

    The Euclidean distance of a channel w to a v, v in {-1, 0, 1}, is least for v = sign(w) where |w| is above a
    threshold D and 0 elsewhere, a being the mean of |w| over what is above. The D that makes it least has no closed
    form; for normal and uniform weights it is close to

        D = 0.7 mean|w|,    a = mean of |w| where |w| > D.

    A channel of equal magnitudes is exact, one of zeros stays so. Others lose most of what they know: for normal
    weights the distance is 0.44 |w|. Networks are trained with it, and one that was not should not be trusted; the
    report says what the outputs lost.
    """

    name: ClassVar[str] = "ternary"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = "Li, Zhang and Liu, Ternary weight networks (2016), section 2.2, equation 5"
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "as int8; the weights could be packed to a quarter of that",
        "gpu": "as int8",
        "fpga": "not applicable: that target has its own integers",
        "he": "not applicable: needs rounding",
    }
    functions: ClassVar[Mapping[str, Body]] = {"MatMul": MATMUL_INT8, "Conv": CONV_INT8}

    def bound(self) -> None:
        """None: another function."""

    def integers(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signs and their scale per output channel."""
        return ternary(weight)


def ternary(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(-1, 0 and 1 in int8, scales in float32) of each output channel of `weight`."""
    rows = np.abs(outputs_last(weight))
    threshold = 0.7 * rows.mean(axis=0)
    above = rows > threshold
    count = above.sum(axis=0)
    scale = np.where(count, (rows * above).sum(axis=0) / np.maximum(count, 1), 1.0)
    by_channel = threshold if weight.ndim == 2 else threshold[:, None, None, None]
    signs = (np.sign(weight) * (np.abs(weight) > by_channel)).astype(np.int8)
    return signs, np.maximum(scale, SMALLEST).astype(np.float32)
