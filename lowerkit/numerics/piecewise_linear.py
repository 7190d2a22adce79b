"""Piecewise-linear functions with breakpoints where the curvature is, and their certified bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from lowerkit.numerics.certify import certified
from lowerkit.numerics.functions import ScalarFunction

#: Points at which the fit looks at the function, and cells of each segment in the proof.
_GRID, _CELLS = 2001, 4096


@dataclass(frozen=True)
class PiecewiseLinear:
    """y = slopes[i] s + intercepts[i], s = x - low, for the number i of breakpoints that are at most s.

    Attributes:
        breakpoints: between the segments, ascending, as values of s; one fewer than slopes.
        slopes, intercepts: these and the breakpoints are float32.
        error: proven bound of |y - f|, or of |y / f - 1| where it was asked for, on [low, high].
    """

    breakpoints: tuple[float, ...]
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    low: float
    high: float
    error: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """In float64; NaN gives NaN."""
        s = np.asarray(x, np.float64) - self.low
        index = np.searchsorted(self.breakpoints, s, side="right")
        index = np.where(np.isnan(s), 0, index)
        result: np.ndarray = np.asarray(self.slopes)[index] * s + np.asarray(self.intercepts)[index]
        return result


def fit_piecewise_linear(
    function: ScalarFunction, low: float, high: float, segments: int, *, relative: bool = False
) -> PiecewiseLinear:
    """`segments` lines that join, with a largest error near the least there is.

    Where f'' changes little, a line over a segment of length h errs by h^2/16 |f''|: all segments err alike when
    each holds the same part of the integral of |f''|^(1/2). The values at the breakpoints are then those of the
    least largest error, by linear programming.

    Source:
        C. de Boor, A Practical Guide to Splines (1978), chapter XII, good knots.
    """
    x = np.linspace(low, high, _GRID)
    f = function(x)
    scale = np.abs(f) if relative else np.ones_like(f)
    bend = np.abs(np.gradient(np.gradient(f, x), x)) / scale
    # A floor keeps segments from growing without end where the function is a line.
    density = np.sqrt(bend) + 1e-3 * np.sqrt(bend).mean() + 1e-12
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    knots = np.interp(np.linspace(0, mass[-1], segments + 1), mass, x)
    knots[0], knots[-1] = low, high
    inner = np.asarray(knots[1:-1] - low, np.float32).astype(np.float64)
    knots = np.concatenate([[low], low + inner, [high]])
    at_knots = _best_values(knots, x, f, scale)
    slopes = (np.diff(at_knots) / np.diff(knots)).astype(np.float32).astype(np.float64)
    intercepts = (at_knots[:-1] - slopes * (knots[:-1] - low)).astype(np.float32).astype(np.float64)
    error = 0.0
    for i in range(segments):
        part = np.linspace(knots[i], knots[i + 1], _CELLS + 1)
        values = function(part)
        line = slopes[i] * (part - low) + intercepts[i]
        rounding = 8 * np.finfo(np.float64).eps * float(np.abs(values).max() + np.abs(line).max())
        curvature = function.curvature(part[:-1], part[1:])
        found = certified(
            part, line - values, curvature, rounding=rounding, values=values if relative else None
        )
        error = max(error, found)
    return PiecewiseLinear(
        tuple(map(float, inner)), tuple(map(float, slopes)), tuple(map(float, intercepts)), low, high, error
    )


def _best_values(knots: np.ndarray, x: np.ndarray, f: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The values at the knots for which max |line - f| / scale over x is least."""
    count = len(knots)
    segment = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, count - 2)
    share = (x - knots[segment]) / (knots[segment + 1] - knots[segment])
    hats = np.zeros((len(x), count))
    hats[np.arange(len(x)), segment] = 1 - share
    hats[np.arange(len(x)), segment + 1] = share
    # As differences from the function at the knots, in units of the interpolant's error: what is small is exact.
    start = np.interp(knots, x, f)
    residual = (hats @ start - f) / scale
    unit = float(np.abs(residual).max()) or 1.0
    hats, residual = hats / scale[:, None], residual / unit
    ones = np.ones((len(x), 1))
    rows = np.block([[hats, -ones], [-hats, -ones]])
    cost = np.concatenate([np.zeros(count), [1.0]])
    bounds = [(None, None)] * count + [(0, None)]
    solution = scipy.optimize.linprog(
        cost, rows, np.concatenate([-residual, residual]), bounds=bounds, method="highs"
    )
    # Without success the interpolant does as well, and is certified all the same.
    best: np.ndarray = start + (unit * solution.x[:-1] if solution.success else 0)
    return best
