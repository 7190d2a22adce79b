"""ReLU in GELU's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.base import Contract, Method


@script(LOWERKIT, default_opset=op)
def ReluGelu(X):  # type: ignore[no-untyped-def]
    """max(x, 0)."""
    # A maximum would lose NaN on hardware where max(NaN, 0) is 0.
    return op.Where(X < 0.0, op.CastLike(0.0, X), X)


@dataclass(frozen=True)
class ReluForGelu(Method):
    """max(x, 0): what is left of GELU(x) = max(x, 0) - g(|x|) without the bump g.

    The two differ by at most max g = 0.17, at |x| = 0.75, and agree beyond |x| = 4. For a trained network that is
    another function, which fine-tuning repairs; trained with it from the start, networks lose little, and without
    LayerNorm gain. The result is non-negative and monotone, and half of it is exactly 0. -inf gives 0, +inf and
    NaN themselves.
    """

    family: ClassVar[str] = "gelu"
    name: ClassVar[str] = "relu"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Jha and Reagen, ReLU's Revival: On the Entropic Overload in Normalization-Free LLMs (2024), section 3"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "one maximum per element",
        "gpu": "one maximum per element",
        "fpga": "a sign test per element",
        "he": "one sign polynomial per element",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Gelu": ReluGelu}

    def bound(self) -> None:
        """None: another function."""

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        result: np.ndarray = np.where(x < 0, 0.0, x)
        return result
