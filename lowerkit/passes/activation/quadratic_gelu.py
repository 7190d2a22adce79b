"""A quadratic in GELU's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.base import Contract, Method


@script(LOWERKIT, default_opset=op)
def QuadraticGelu(X):  # type: ignore[no-untyped-def]
    """x^2 / 8 + x / 4 + 1 / 2 = ((x / 2 + 1) x + 2) / 4."""
    return ((X * 0.5 + 1.0) * X + 2.0) * 0.25


@dataclass(frozen=True)
class QuadraticForGelu(Method):
    """x^2 / 8 + x / 4 + 1 / 2: one multiplication of data by data, and so the cheapest under encryption.

    It resembles GELU between -2 and 2 alone (0.5 instead of 0 at 0, 0.875 instead of 0.84 at 1) and grows as x^2
    beyond: another function, for networks distilled or trained with it. It is positive, at least 3/8, with its
    minimum at x = -1. NaN gives NaN, infinities +inf or NaN.
    """

    family: ClassVar[str] = "gelu"
    name: ClassVar[str] = "quadratic"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = "Li et al., MPCFormer (ICLR 2023, preprint 2022), section 3.1: Quad"
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "two multiply-adds per element",
        "gpu": "two multiply-adds per element",
        "fpga": "one multiplier per element; the constants are shifts",
        "he": "depth 1",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Gelu": QuadraticGelu}

    def bound(self) -> None:
        """None: another function."""

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        result: np.ndarray = ((x * 0.5 + 1) * x + 2) * 0.25
        return result
