"""Chebyshev series with certified bounds: polynomials of any degree, stable in float32.

Powers of x lose all digits beyond degree 15 or so, where their coefficients grow and cancel; Chebyshev polynomials
stay within [-1, 1], and their coefficients fall.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev

from lowerkit.numerics.certify import CELLS, certified
from lowerkit.numerics.functions import ScalarFunction
from lowerkit.numerics.polynomial import GRID, chebyshev_basis, remez, spread


@dataclass(frozen=True)
class Series:
    """sum coefficients[k] T_k(t), t = (2 x - low - high) / (high - low) in [-1, 1].

    Attributes:
        coefficients: from T_0 on, every one a float32.
        error: proven bound of |sum - f|, or of |sum / f - 1| where it was asked for, on [low, high].
    """

    coefficients: tuple[float, ...]
    low: float
    high: float
    error: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Clenshaw's recurrence in float64."""
        t = (2 * np.asarray(x, np.float64) - (self.low + self.high)) / (self.high - self.low)
        result: np.ndarray = chebyshev.chebval(t, self.coefficients)
        return result


def minimax_series(
    function: ScalarFunction,
    low: float,
    high: float,
    degree: int,
    *,
    relative: bool = False,
    parity: int | None = None,
) -> Series:
    """The polynomial of `degree` with the least largest error; arguments as for `polynomial.remez`."""
    series = remez(function.value, low, high, degree, relative=relative, parity=parity)
    return certified_series(series, function, low, high, relative=relative)


def least_squares_series(
    function: ScalarFunction,
    low: float,
    high: float,
    degree: int,
    density: np.ndarray,
    *,
    relative: bool = False,
    parity: int | None = None,
) -> Series:
    """The polynomial of `degree` with the least mean square error where x is distributed as `density` says.

    Args:
        density: weights, not all zero, of equal parts of [low, high].
        relative, parity: as for `polynomial.remez`.

    A hundredth of the weight is spread evenly, so that rare values are not left to chance.
    """
    # Chebyshev points would count the ends more; the middles of equal parts leave the weight to the density.
    x = low + (high - low) * (np.arange(GRID) + 0.5) / GRID
    bins = np.minimum((np.arange(GRID) * len(density)) // GRID, len(density) - 1)
    share = density[bins] / density[bins].sum() + 0.01 / GRID
    values = function(x)
    weights = np.sqrt(share) / (np.abs(values) if relative else 1.0)
    basis = chebyshev_basis(x, low, high, degree, parity) * weights[:, None]
    solution = np.linalg.lstsq(basis, values * weights, rcond=None)[0]
    return certified_series(spread(solution, degree, parity), function, low, high, relative=relative)


def certified_series(
    coefficients: np.ndarray, function: ScalarFunction, low: float, high: float, *, relative: bool = False
) -> Series:
    """The series with `coefficients` rounded to float32, and its bound against `function`.

    |T_k''| <= k^2 (k^2 - 1) / 3 on [-1, 1], attained at its ends.
    """
    rounded = np.asarray(coefficients, np.float32).astype(np.float64)
    x = np.linspace(low, high, CELLS + 1)
    values = function(x)
    t = np.linspace(-1.0, 1.0, CELLS + 1)
    error = chebyshev.chebval(t, rounded) - values
    k = np.arange(len(rounded))
    second = float((np.abs(rounded) * k**2 * np.maximum(k**2 - 1, 0) / 3).sum()) * (2 / (high - low)) ** 2
    rounding = (
        4 * len(rounded) * np.finfo(np.float64).eps * float(np.abs(rounded).sum() + np.abs(values).max())
    )
    bound = certified(
        x,
        error,
        second + function.curvature(x[:-1], x[1:]),
        rounding=rounding,
        values=values if relative else None,
    )
    return Series(tuple(map(float, rounded)), low, high, bound)
