"""The functions of one variable that activation methods approximate, with bounds of their second derivatives.

Bounds of approximations are computed between points from |f''|: the tests check every bound here by
differentiation in 60 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

Function = Callable[[np.ndarray], np.ndarray]
#: |f''| <= curvature(low, high) on each interval [low_i, high_i]; arrays of one shape, or numbers.
Curvature = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ScalarFunction:
    """A function of one variable.

    Attributes:
        value: float64 array to float64 array of the same shape, right to a few roundings.
        curvature: a bound of |f''| on intervals, which must lie where the function is defined.
    """

    name: str
    value: Function
    curvature: Curvature

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The function, in float64."""
        return self.value(np.asarray(x, np.float64))


def at_most(bound: float) -> Curvature:
    """The same bound everywhere."""
    return lambda low, high: np.full(np.shape(low), bound)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = special.expit(x)
    return result


def _gelu_tail(a: np.ndarray, tanh: bool) -> np.ndarray:
    """P(-a): the share of a that GELU(-a) keeps, with its sign turned."""
    if tanh:
        u = math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)
        return _sigmoid(-2 * u)
    tail: np.ndarray = 0.5 * special.erfc(a / math.sqrt(2))
    return tail


#: GELU, with P the normal distribution function or its tanh form. For the erf form f'' = phi(x) (2 - x^2),
#: largest at 0: sqrt(2 / pi), which is 0.7979; the tanh form has the same value there and nowhere a larger one.
GELU = ScalarFunction("gelu", lambda x: x * _gelu_tail(-x, False), at_most(0.798))
TANH_GELU = ScalarFunction("tanh-gelu", lambda x: x * _gelu_tail(-x, True), at_most(0.798))
#: f'' = s' (2 + x (1 - 2 s)) with s the sigmoid: largest at 0.
SILU = ScalarFunction("silu", lambda x: x * _sigmoid(x), at_most(0.5))
#: f'' = s' = s (1 - s).
SOFTPLUS = ScalarFunction("softplus", lambda x: np.logaddexp(x, 0), at_most(0.25))


def _mish(x: np.ndarray) -> np.ndarray:
    # tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2), without cancellation for small e.
    e = np.exp(np.minimum(x, 40.0))
    n = e * (e + 2)
    result: np.ndarray = x * (n / (n + 2))
    return result


MISH = ScalarFunction("mish", _mish, at_most(0.645))
#: f'' = -2 tanh sech^2: largest where tanh^2 = 1/3, 4 / (3 sqrt 3).
TANH = ScalarFunction("tanh", np.tanh, at_most(0.77))
#: A quarter of tanh's slope at half its scale: 1 / (6 sqrt 3).
SIGMOID = ScalarFunction("sigmoid", _sigmoid, at_most(0.0963))
#: f'' = -4 x exp(-x^2) / sqrt(pi): largest at 1 / sqrt 2.
ERF = ScalarFunction("erf", lambda x: np.asarray(special.erf(x)), at_most(0.968))
EXP = ScalarFunction("exp", np.exp, lambda low, high: np.exp(high))
#: Of one sign: both of low and high are above 0.
RECIPROCAL = ScalarFunction("reciprocal", lambda x: 1 / x, lambda low, high: 2 / np.asarray(low) ** 3)
RSQRT = ScalarFunction("rsqrt", lambda x: x**-0.5, lambda low, high: 0.75 * np.asarray(low) ** -2.5)
#: A slope that jumps by 1 within a cell of width h bends its chord by h / 4, as f'' = 2 / h would.
RELU = ScalarFunction(
    "relu",
    lambda x: np.maximum(x, 0.0),
    lambda low, high: np.where((low < 0) & (high > 0), 2 / (np.asarray(high) - low), 0.0),
)

#: ReLU less the function, at -|x|: even bumps that vanish far from 0. f = max(x, 0) - bump(|x|).
GELU_BUMP = ScalarFunction("gelu-bump", lambda a: a * _gelu_tail(a, False), GELU.curvature)
TANH_GELU_BUMP = ScalarFunction("tanh-gelu-bump", lambda a: a * _gelu_tail(a, True), GELU.curvature)
SILU_BUMP = ScalarFunction("silu-bump", lambda a: a * _sigmoid(-a), SILU.curvature)
SOFTPLUS_BUMP = ScalarFunction("softplus-bump", lambda a: -np.log1p(np.exp(-a)), SOFTPLUS.curvature)
#: What is odd in the sigmoid: s(x) = 1/2 + this, and this is tanh(x / 2) / 2.
HALF_SIGMOID = ScalarFunction("half-sigmoid", lambda x: np.tanh(x / 2) / 2, SIGMOID.curvature)


def scaled(function: ScalarFunction, low: float, high: float) -> ScalarFunction:
    """The function on [low, high] as a function on [-1, 1]: t -> f(low + (t + 1) (high - low) / 2)."""
    half, middle = (high - low) / 2, (high + low) / 2
    return ScalarFunction(
        function.name,
        lambda t: function.value(middle + half * t),
        lambda a, b: half**2 * function.curvature(middle + half * a, middle + half * b),
    )
