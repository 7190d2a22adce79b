"""Rational functions without poles, P / (1 + |Q|), and their certified bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.polynomial import chebyshev, polynomial

from lowerkit.numerics.certify import CELLS
from lowerkit.numerics.functions import ScalarFunction

_ROUNDS, _POINTS = 8, 501


@dataclass(frozen=True)
class Rational:
    """P(x) / (1 + |Q(x)|) on [0, 1], with P of powers from 0 and Q of powers from 1.

    Attributes:
        numerator, denominator: coefficients of P and Q, lowest power first, each a float32; Q's first is 0.
        error: proven bound of |P / (1 + |Q|) - f|, or of the relative error where it was asked for.
    """

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]
    error: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """In float64."""
        result: np.ndarray = polynomial.polyval(x, self.numerator) / (
            1 + np.abs(polynomial.polyval(x, self.denominator))
        )
        return result


def fit_rational(
    function: ScalarFunction,
    numerator: int,
    denominator: int,
    *,
    relative: bool = False,
) -> Rational:
    """P of degree `numerator` and Q of degree `denominator` with a small largest error on [0, 1].

    Each round finds, by linear programming, the P and Q >= 0 for which |P - f (1 + Q)| / D is least, with D the
    denominator 1 + Q of the round before; the round with the least true error is kept. The bound is computed
    from what is kept, and rests on none of this.

    Source:
        the rounds: C. K. Sanathanan and J. Koerner, IEEE Trans. Automatic Control 8 (1963); the denominator
        1 + |Q|: X. Yang and X. Wang, Kolmogorov-Arnold Transformer (ICLR 2025), section 3.
    """
    x = (1 - np.cos(np.linspace(0, np.pi, _POINTS))) / 2
    f = function(x)
    scale = np.abs(f) if relative else np.ones_like(f)
    top = chebyshev.chebvander(2 * x - 1, numerator)
    bottom = x[:, None] * chebyshev.chebvander(2 * x - 1, denominator - 1)
    divisor = np.ones_like(x)
    best, least = (np.zeros(numerator + 1), np.zeros(denominator + 1)), np.inf
    unit = float((np.abs(f) / scale).max())
    for _ in range(_ROUNDS):
        solved = _round(top, bottom, f, divisor * scale, unit)
        if solved is None:
            break
        p, q = solved[: numerator + 1], solved[numerator + 1 :]
        divisor = 1 + np.abs(bottom @ q)
        largest = float((np.abs(top @ p / divisor - f) / scale).max())
        if largest < least:
            coefficients = _monomial(p, numerator), np.concatenate([[0.0], _monomial(q, denominator - 1)])
            best, least = coefficients, largest
        # The error is what the next round resolves best.
        unit = min(unit, 10 * largest)
    p, q = (np.asarray(c, np.float32).astype(np.float64) for c in best)
    return Rational(tuple(map(float, p)), tuple(map(float, q)), _bound(p, q, function, relative))


def _round(
    top: np.ndarray, bottom: np.ndarray, f: np.ndarray, scale: np.ndarray, unit: float
) -> np.ndarray | None:
    """The coefficients of least largest |P - f (1 + Q)| / scale with Q >= 0 at all points, or None."""
    system = np.column_stack([top, -bottom * f[:, None]]) / scale[:, None]
    target = f / scale
    size = np.abs(system).max(axis=0)
    ones = np.full((len(f), 1), unit)
    rows = np.block(
        [
            [system / size, -ones],
            [-system / size, -ones],
            [np.zeros_like(top), -bottom / size[top.shape[1] :], np.zeros((len(f), 1))],
        ]
    )
    limits = np.concatenate([target, -target, np.zeros(len(f))])
    count = system.shape[1]
    cost = np.concatenate([np.zeros(count), [1.0]])
    solution = scipy.optimize.linprog(
        cost, rows, limits, bounds=[(None, None)] * count + [(0, None)], method="highs-ds"
    )
    return solution.x[:-1] / size if solution.success else None


def _monomial(series: np.ndarray, degree: int) -> np.ndarray:
    """Coefficients in T_k(2 x - 1) as those of powers of x, lowest first."""
    result = np.zeros(1)
    for coefficient in chebyshev.cheb2poly(series)[::-1]:
        result = polynomial.polyadd(polynomial.polymul(result, [-1.0, 2.0]), [coefficient])
    padded: np.ndarray = np.zeros(degree + 1)
    padded[: len(result)] = result[: degree + 1]
    return padded


def _bound(p: np.ndarray, q: np.ndarray, function: ScalarFunction, relative: bool) -> float:
    """The bound of |P / (1 + |Q|) - f| on [0, 1].

    Times 1 + |Q| that is |P - f (1 + |Q|)|. Where Q >= 0 it equals |P - f (1 + Q)|, which is smooth, and elsewhere it
    is at most that and 2 |f| |Q|: over a cell, at most the larger of its ends, h^2/8 of the second derivative and
    2 |f| times the most that Q is below 0. The same holds with 1 - Q, and the smaller counts. It is divided by 1
    plus the least |Q| of the cell.
    """
    x = np.linspace(0.0, 1.0, CELLS + 1)
    h = 1 / CELLS
    f, top, bottom = function(x), polynomial.polyval(x, p), polynomial.polyval(x, q)
    bend = function.curvature(x[:-1], x[1:])
    slope = np.abs(np.diff(f)) / h + h * bend
    size = _larger(np.abs(f)) + h * slope
    second = (
        _largest(p, 2, x)
        + bend * (1 + _largest(q, 0, x))
        + 2 * slope * _largest(q, 1, x)
        + size * _largest(q, 2, x)
    )
    rounding = 8 * (len(p) + len(q)) * np.finfo(np.float64).eps
    rounding = rounding * (np.abs(p).sum() + float(np.abs(f).max()) * (1 + np.abs(q).sum()))
    # Where Q is monotone, its ends are its least and its greatest.
    falls = polynomial.polyval(x, polynomial.polyder(q))
    monotone = (falls[:-1] * falls[1:] > 0) & (
        np.minimum(np.abs(falls[:-1]), np.abs(falls[1:])) > h * _largest(q, 2, x)
    )
    beyond = np.where(monotone, 0.0, h * _largest(q, 1, x))
    lowest = np.minimum(bottom[:-1], bottom[1:]) - beyond
    highest = np.maximum(bottom[:-1], bottom[1:]) + beyond
    slack = h**2 / 8 * second + rounding
    with_plus = _larger(np.abs(top - f * (1 + bottom))) + slack + 2 * size * np.maximum(-lowest, 0)
    with_minus = _larger(np.abs(top - f * (1 - bottom))) + slack + 2 * size * np.maximum(highest, 0)
    least = np.maximum(np.maximum(lowest, -highest), 0)
    worst = np.minimum(with_plus, with_minus) / (1 + least)
    if relative:
        worst = worst / np.minimum(np.abs(f[:-1]), np.abs(f[1:]))
    return float(worst.max())


def _larger(values: np.ndarray) -> np.ndarray:
    """The larger of the two ends of each cell."""
    larger: np.ndarray = np.maximum(values[:-1], values[1:])
    return larger


def _largest(coefficients: np.ndarray, order: int, x: np.ndarray) -> np.ndarray:
    """A bound of the derivative of `order` of a polynomial on each cell of [0, 1]."""
    derivative = polynomial.polyder(coefficients, order)
    next_one = float(np.abs(polynomial.polyder(coefficients, order + 1)).sum())
    largest: np.ndarray = _larger(np.abs(polynomial.polyval(x, derivative))) + (x[1] - x[0]) / 2 * next_one
    return largest
