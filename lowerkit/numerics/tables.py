"""Tables with linear interpolation and certified bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Table:
    """A function on [low, high] by `len(entries) - 1` equal segments, held constant outside.

    Attributes:
        entries: every one a float32.
        error: proven bound of |table - f| on the interval, in real arithmetic.
    """

    entries: tuple[float, ...]
    low: float
    high: float
    error: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Linear interpolation in float64; NaN gives NaN."""
        points = np.linspace(self.low, self.high, len(self.entries))
        result: np.ndarray = np.where(np.isnan(x), np.nan, np.interp(x, points, self.entries))
        return result

    def array(self) -> np.ndarray:
        """The entries as float32."""
        return np.array(self.entries, np.float32)


def uniform_table(
    function: Callable[[np.ndarray], np.ndarray], low: float, high: float, segments: int, *, curvature: float
) -> Table:
    """A table of `function`, a float64 array function with |f''| <= `curvature` on [low, high].

    Between two points x_i and x_i + h linear interpolation errs by at most h^2/8 max|f''|; entries are
    rounded to float32, which adds at most the largest rounding.
    """
    exact = function(np.linspace(low, high, segments + 1))
    entries = exact.astype(np.float32)
    rounding = float(np.abs(entries.astype(np.float64) - exact).max())
    step = (high - low) / segments
    error = step**2 / 8 * curvature + rounding
    return Table(tuple(float(entry) for entry in entries), low, high, error)
