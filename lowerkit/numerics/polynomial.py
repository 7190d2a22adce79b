"""Minimax polynomials with certified bounds.

The Remez exchange finds the polynomial; its coefficients are then rounded to float32, and the error of the
*rounded* polynomial is bounded over the whole interval, so that the bound is about the numbers that ship.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev, polynomial

#: Points at which the error is evaluated; between them it is bounded through its second derivative.
GRID = 1 << 17

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Polynomial:
    """sum coefficients[i] x^i on [low, high].

    Attributes:
        coefficients: lowest power first, every one a float32.
        error: proven bound of |p - f|, or of |p / f - 1| where the fit was relative, on the interval.
    """

    coefficients: tuple[float, ...]
    low: float
    high: float
    error: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Horner's scheme in the dtype of `x`."""
        result = np.full_like(x, self.coefficients[-1])
        for coefficient in reversed(self.coefficients[:-1]):
            result = result * x + x.dtype.type(coefficient)
        return result

    def array(self) -> np.ndarray:
        """The coefficients as float32, highest power first, the order in which Horner's scheme uses them."""
        return np.array(self.coefficients[::-1], np.float32)


def minimax(
    function: Function, low: float, high: float, degree: int, *, curvature: float, relative: bool = False
) -> Polynomial:
    """The polynomial of `degree` nearest to `function` on [low, high] in the maximum norm.

    Args:
        function: float64 array to float64 array; for `relative` positive and monotone.
        curvature: a bound of |f''| on the interval, which makes the error bound rigorous between the points
            at which it is evaluated.
        relative: minimise |p / f - 1| rather than |p - f|.

    Source:
        E. Ya. Remez, 1934; N. Pachón and L. N. Trefethen, "Barycentric-Remez algorithms for best polynomial
        approximation in the chebfun system", BIT 49 (2009), section 2.
    """
    grid = low + (high - low) * (1 - np.cos(np.linspace(0, np.pi, 4001))) / 2
    values = function(grid)
    weights = 1 / values if relative else np.ones_like(values)
    unit = 2 * (grid - low) / (high - low) - 1
    basis = chebyshev.chebvander(unit, degree) * weights[:, None]
    target = values * weights
    reference = np.round(np.linspace(0, len(grid) - 1, degree + 2)).astype(int)
    signs = (-1.0) ** np.arange(degree + 2)
    best, smallest = np.zeros(degree + 1), np.inf
    for _ in range(100):
        system = np.column_stack([basis[reference], signs])
        solution = np.linalg.solve(system, target[reference])
        error = basis @ solution[:-1] - target
        # Once rounding is all that is left of the error, exchanges only add to it.
        if (largest := float(np.abs(error).max())) < smallest:
            best, smallest = solution[:-1], largest
        exchanged = _alternating_extrema(error, degree + 2)
        if exchanged is None or np.array_equal(exchanged, reference):
            break
        reference = exchanged
    in_unit = chebyshev.cheb2poly(best)
    scale, shift = 2 / (high - low), -(high + low) / (high - low)
    monomial = np.zeros(1)
    for coefficient in in_unit[::-1]:
        monomial = polynomial.polyadd(polynomial.polymul(monomial, [shift, scale]), [coefficient])
    rounded = tuple(float(np.float32(c)) for c in monomial[: degree + 1])
    return Polynomial(rounded, low, high, _certify(rounded, function, low, high, curvature, relative))


def _alternating_extrema(error: np.ndarray, count: int) -> np.ndarray | None:
    """Indices of `count` extrema of alternating sign, the largest such window; None when there are fewer."""
    changes = np.flatnonzero(np.diff(error > 0)) + 1
    runs = np.split(np.arange(len(error)), changes)
    extrema = np.array([run[np.argmax(np.abs(error[run]))] for run in runs])
    if len(extrema) < count:
        return None
    starts = range(len(extrema) - count + 1)
    best = max(starts, key=lambda i: float(np.abs(error[extrema[i : i + count]]).min()))
    return extrema[best : best + count]


def _certify(
    coefficients: tuple[float, ...],
    function: Function,
    low: float,
    high: float,
    curvature: float,
    relative: bool,
) -> float:
    """Bound the error on the interval: |e| between two points is at most their larger plus h^2/8 max|e''|."""
    x = np.linspace(low, high, GRID)
    values = function(x)
    error = np.abs(polynomial.polyval(x, coefficients) - values)
    reach = max(abs(low), abs(high))
    second = polynomial.polyder(np.abs(coefficients), 2)
    slack = (x[1] - x[0]) ** 2 / 8 * (float(polynomial.polyval(reach, second)) + curvature)
    # Rounding of this very evaluation, in float64.
    slack += (
        4
        * len(coefficients)
        * np.finfo(np.float64).eps
        * float(polynomial.polyval(reach, np.abs(coefficients)) + np.abs(values).max())
    )
    cells = np.maximum(error[:-1], error[1:]) + slack
    if relative:
        cells = cells / np.minimum(values[:-1], values[1:])
    return float(cells.max())
