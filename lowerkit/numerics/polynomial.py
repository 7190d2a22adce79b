"""Minimax polynomials with certified bounds.

The Remez exchange finds the polynomial; its coefficients are then rounded to float32, and the error of the
*rounded* polynomial is bounded over the whole interval, so that the bound is about the numbers that ship.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev, polynomial

from lowerkit.numerics.certify import CELLS, certified
from lowerkit.numerics.functions import Curvature, Function, at_most

#: Points at which a fit looks at the function.
GRID = 4001


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
    function: Function,
    low: float,
    high: float,
    degree: int,
    *,
    curvature: float | Curvature,
    relative: bool = False,
) -> Polynomial:
    """The polynomial of `degree` nearest to `function` on [low, high] in the maximum norm.

    Args:
        function: float64 array to float64 array; for `relative` positive and monotone.
        curvature: a bound of |f''| on the interval, which makes the error bound rigorous between the points
            at which it is evaluated; for the whole interval, or as a function of intervals.
        relative: minimise |p / f - 1| rather than |p - f|.
    """
    series = remez(function, low, high, degree, relative=relative)
    scale, shift = 2 / (high - low), -(high + low) / (high - low)
    monomial = np.zeros(1)
    for coefficient in chebyshev.cheb2poly(series)[::-1]:
        monomial = polynomial.polyadd(polynomial.polymul(monomial, [shift, scale]), [coefficient])
    return certified_polynomial(
        monomial[: degree + 1], function, low, high, curvature=curvature, relative=relative
    )


def certified_polynomial(
    coefficients: np.ndarray,
    function: Function,
    low: float,
    high: float,
    *,
    curvature: float | Curvature,
    relative: bool = False,
) -> Polynomial:
    """The polynomial with `coefficients`, lowest power first, rounded to float32, and its bound against f."""
    rounded = np.asarray(coefficients, np.float32).astype(np.float64)
    x = np.linspace(low, high, CELLS + 1)
    values = function(x)
    error = polynomial.polyval(x, rounded) - values
    reach = max(abs(low), abs(high))
    second = float(polynomial.polyval(reach, polynomial.polyder(np.abs(rounded), 2)))
    bend = at_most(curvature) if isinstance(curvature, (int, float)) else curvature
    # Of this very evaluation, in float64.
    size = float(polynomial.polyval(reach, np.abs(rounded)) + np.abs(values).max())
    rounding = 4 * len(rounded) * np.finfo(np.float64).eps * size
    bound = certified(
        x,
        error,
        second + bend(x[:-1], x[1:]),
        rounding=rounding,
        values=values if relative else None,
    )
    return Polynomial(tuple(float(c) for c in rounded), low, high, bound)


def remez(
    function: Function,
    low: float,
    high: float,
    degree: int,
    *,
    relative: bool = False,
    parity: int | None = None,
) -> np.ndarray:
    """The minimax polynomial as coefficients of the Chebyshev polynomials on [low, high]; [degree + 1].

    Args:
        relative: minimise |p / f - 1| rather than |p - f|.
        parity: 0 or 1 for an even or an odd function on [-high, high]: the others' coefficients are 0.

    Source:
        E. Ya. Remez, 1934; N. Pachón and L. N. Trefethen, "Barycentric-Remez algorithms for best polynomial
        approximation in the chebfun system", BIT 49 (2009), section 2.
    """
    # Dense at the ends, where the error turns fastest; 0 is no end of a function with a parity.
    angles = np.linspace(0 if parity is None else np.pi / 2, np.pi, GRID)
    grid = (low + high) / 2 - (high - low) / 2 * np.cos(angles)
    # At 0 odd functions agree whatever they are.
    grid = grid[1:] if parity == 1 else grid
    values = function(grid)
    weights = 1 / values if relative else np.ones_like(values)
    basis = chebyshev_basis(grid, low, high, degree, parity) * weights[:, None]
    target = values * weights
    count = basis.shape[1]
    reference = np.round(np.linspace(0, len(grid) - 1, count + 1)).astype(int)
    signs = (-1.0) ** np.arange(count + 1)
    best, smallest = np.zeros(count), np.inf
    for _ in range(100):
        system = np.column_stack([basis[reference], signs])
        # The least-squares solution where rounding has made the system singular.
        solution = np.linalg.lstsq(system, target[reference], rcond=None)[0]
        error = basis @ solution[:-1] - target
        # Once rounding is all that is left of the error, exchanges only add to it.
        if (largest := float(np.abs(error).max())) < smallest:
            best, smallest = solution[:-1], largest
        exchanged = _alternating_extrema(error, count + 1)
        if exchanged is None or np.array_equal(exchanged, reference):
            break
        reference = exchanged
    return spread(best, degree, parity)


def chebyshev_basis(x: np.ndarray, low: float, high: float, degree: int, parity: int | None) -> np.ndarray:
    """Chebyshev polynomials on [low, high] at x, those of one parity alone where it is given; [x, functions]."""
    unit = 2 * (x - low) / (high - low) - 1
    start, step = (0, 1) if parity is None else (parity, 2)
    basis: np.ndarray = chebyshev.chebvander(unit, degree)[:, start::step]
    return basis


def spread(solution: np.ndarray, degree: int, parity: int | None) -> np.ndarray:
    """Coefficients of `chebyshev_basis`'s functions as those of T_0 to T_degree."""
    start, step = (0, 1) if parity is None else (parity, 2)
    series = np.zeros(degree + 1)
    series[start::step] = solution
    return series


def _alternating_extrema(error: np.ndarray, count: int) -> np.ndarray | None:
    """Indices of `count` extrema of alternating sign, the largest such window; None when there are fewer."""
    changes = np.flatnonzero(np.diff(error > 0)) + 1
    runs = np.split(np.arange(len(error)), changes)
    extrema = np.array([run[np.argmax(np.abs(error[run]))] for run in runs])
    if len(extrema) < count:
        return None
    # The exchange converges as long as the largest error is among the points.
    peak = int(np.argmax(np.abs(error[extrema])))
    starts = range(max(peak - count + 1, 0), min(peak, len(extrema) - count) + 1)
    best = max(starts, key=lambda i: float(np.abs(error[extrema[i : i + count]]).min()))
    return extrema[best : best + count]
