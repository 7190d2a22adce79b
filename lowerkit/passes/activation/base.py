"""What the GELU methods share: GELU is ReLU minus an even bump."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from scipy.special import erfc

from lowerkit.passes.base import Method

#: A bound of |g''| for both bumps. For the erf form g'' = phi(a) (a^2 - 2), largest at 0: sqrt(2 / pi), which
#: is 0.7979; the tanh form has the same value there and nowhere a larger one.
BUMP_CURVATURE = 0.798


@dataclass(frozen=True)
class GeluMethod(Method):
    """A method that writes GELU(x) = max(x, 0) - g(|x|).

    g(a) = a P(-a), with P the normal distribution function or its tanh form: since P(x) + P(-x) = 1,
    x P(x) is x - x P(-x) for x > 0 and -|x| P(-|x|) for x < 0. The bump g is smooth, never above 0.17, and
    falls off faster than exp(-a^2/2), so that an approximation of it needs a short range alone.
    """

    family: ClassVar[str] = "gelu"

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """None: the form of the GELU is in the table or the coefficients."""
        return {}

    def refuses(self, node: ir.Node) -> str | None:
        """Scalars: tables and coefficients are vectors, which would give a scalar an axis."""
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return "needs an input with at least one axis" if shape is not None and len(shape) == 0 else None


def is_tanh(node: ir.Node) -> bool:
    """Whether a Gelu node is the tanh form."""
    return node.attributes.get_string("approximate", "none") == "tanh"


def bump(a: np.ndarray, tanh: bool) -> np.ndarray:
    """g(a) for a >= 0, float64."""
    a = np.asarray(a, np.float64)
    if tanh:
        u = math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)
        tail = 1 / (1 + np.exp(np.minimum(2 * u, 700.0)))
    else:
        tail = 0.5 * erfc(a / math.sqrt(2))
    result: np.ndarray = a * tail
    return result
