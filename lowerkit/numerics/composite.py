"""Odd functions that level off, as a polynomial of a polynomial: many turns at little depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.polynomial import chebyshev, polynomial

from lowerkit.numerics.certify import CELLS, certified
from lowerkit.numerics.functions import ScalarFunction
from lowerkit.numerics.polynomial import remez

_POINTS, _ROUNDS = 1001, 12


@dataclass(frozen=True)
class Composite:
    """outer(inner(t)) on [-1, 1], both odd polynomials.

    Attributes:
        inner, outer: coefficients, lowest power first, each a float32; those of even powers are 0.
        error: proven bound of |outer(inner(t)) - f(t)|.
    """

    inner: tuple[float, ...]
    outer: tuple[float, ...]
    error: float

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """In float64."""
        result: np.ndarray = polynomial.polyval(polynomial.polyval(t, self.inner), self.outer)
        return result


def fit_composite(function: ScalarFunction, inner: int, outer: int) -> Composite:
    """Odd polynomials of degrees `inner` and `outer` whose composition is near the odd `function` on [-1, 1].

    A polynomial of degree d has depth ceil(log2(d + 1)), and of all of depth k the compositions need the fewest
    products: 7 of 7 has the turns of degree 49, at depth 6 and with 8 products of ciphertexts. The inner one
    starts as the minimax polynomial of f; both are then improved together by least squares whose weights grow
    where the error is large (Lawson, 1961), and the outer one is last made the best for the inner one by linear
    programming. The bound is that of the rounded result.

    Source:
        composition for functions that level off: E. Lee, J.-W. Lee, J.-S. No and Y.-S. Kim, Minimax approximation
        of sign function by composite polynomial for homomorphic comparison, IEEE TDSC 19 (2022).
    """
    t = np.cos(np.linspace(np.pi / 2, 0, _POINTS))
    f = function(t)
    p = remez(function.value, -1.0, 1.0, inner, parity=1)[1::2]
    basis = _odd(t, inner)
    q = np.linalg.lstsq(_odd(basis @ p, outer), f, rcond=None)[0]
    split = len(p)
    weights, best, least = np.full(_POINTS, 1 / _POINTS), p, np.inf
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)

        def residual(both: np.ndarray, root: np.ndarray = root) -> np.ndarray:
            found: np.ndarray = root * (_odd(basis @ both[:split], outer) @ both[split:] - f)
            return found

        both = scipy.optimize.least_squares(residual, np.concatenate([p, q]), method="lm", max_nfev=200).x
        p, q = both[:split], both[split:]
        error = np.abs(_odd(basis @ p, outer) @ q - f)
        if (largest := float(error.max())) < least:
            best, least = p, largest
        weights = weights * (error / largest + 1e-3)
        weights = weights / weights.sum()
    first = _rounded(_spread(best, inner))
    middle = polynomial.polyval(t, first)
    second = _rounded(_spread(_best_outer(_odd(middle, outer), f, least), outer))
    return Composite(tuple(map(float, first)), tuple(map(float, second)), _bound(first, second, function))


def _odd(x: np.ndarray, degree: int) -> np.ndarray:
    """T_1, T_3, ... at x; [x, functions]."""
    basis: np.ndarray = chebyshev.chebvander(x, degree)[:, 1::2]
    return basis


def _spread(odd: np.ndarray, degree: int) -> np.ndarray:
    """Coefficients of T_1, T_3, ... as those of powers, lowest first."""
    series = np.zeros(degree + 1)
    series[1::2] = odd
    result: np.ndarray = chebyshev.cheb2poly(series)
    result[0::2] = 0
    return result


def _rounded(coefficients: np.ndarray) -> np.ndarray:
    return np.asarray(coefficients, np.float32).astype(np.float64)


def _best_outer(basis: np.ndarray, f: np.ndarray, unit: float) -> np.ndarray:
    """The combination of the basis with the least largest error, from its least-squares fit on."""
    start: np.ndarray = np.linalg.lstsq(basis, f, rcond=None)[0]
    rest = (f - basis @ start) / unit
    ones = np.ones((len(f), 1))
    rows = np.block([[basis, -ones], [-basis, -ones]])
    count = basis.shape[1]
    solution = scipy.optimize.linprog(
        np.concatenate([np.zeros(count), [1.0]]),
        rows,
        np.concatenate([rest, -rest]),
        bounds=[(None, None)] * count + [(0, None)],
        method="highs",
    )
    return start + unit * solution.x[:-1] if solution.success else start


def _bound(inner: np.ndarray, outer: np.ndarray, function: ScalarFunction) -> float:
    """(outer o inner)'' = outer''(inner) inner'^2 + outer'(inner) inner'', each bounded by sums of |coefficients|.

    The inner polynomial stays within its largest value on the cells, so that the outer one's derivatives are
    bounded there.
    """
    x = np.linspace(0.0, 1.0, CELLS + 1)
    middle = polynomial.polyval(x, inner)
    steep, bent = (float(np.abs(polynomial.polyder(inner, order)).sum()) for order in (1, 2))
    reach = float(np.abs(middle).max()) + steep / CELLS

    def outside(order: int) -> float:
        return float(polynomial.polyval(reach, np.abs(polynomial.polyder(outer, order))))

    values = function(x)
    second = outside(2) * steep**2 + outside(1) * bent
    # The inner value is off by some roundings, which the outer slope may enlarge.
    rounding = 8 * (len(inner) + len(outer)) * np.finfo(np.float64).eps
    rounding = rounding * (outside(0) + outside(1) * float(np.abs(inner).sum()) + float(np.abs(values).max()))
    error = polynomial.polyval(middle, outer) - values
    return certified(x, error, second + function.curvature(x[:-1], x[1:]), rounding=rounding)
