"""Tables, read with linear interpolation or at the nearest entry, and their certified bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowerkit.numerics.functions import Curvature, Function, at_most


@dataclass(frozen=True)
class Table:
    """A function on [low, high] by `len(entries) - 1` equal segments, held constant outside.

    Attributes:
        entries: every one a float32.
        error: proven bound of |table - f|, or of |table / f - 1| where it was asked for, on the interval, in
            real arithmetic.
        interpolate: linear between entries; otherwise the entry that is nearest.
    """

    entries: tuple[float, ...]
    low: float
    high: float
    error: float
    interpolate: bool = True

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The table in float64; NaN gives NaN, and half-way between entries ties go to the even index."""
        points = np.linspace(self.low, self.high, len(self.entries))
        if self.interpolate:
            found = np.interp(x, points, self.entries)
        else:
            position = (x - self.low) * ((len(self.entries) - 1) / (self.high - self.low))
            index = np.clip(np.round(np.nan_to_num(position)), 0, len(self.entries) - 1)
            found = np.asarray(self.entries)[index.astype(np.int64)]
        result: np.ndarray = np.where(np.isnan(x), np.nan, found)
        return result

    def array(self) -> np.ndarray:
        """The entries as float32."""
        return np.array(self.entries, np.float32)


def uniform_table(
    function: Function,
    low: float,
    high: float,
    segments: int,
    *,
    curvature: float | Curvature,
    relative: bool = False,
    interpolate: bool = True,
) -> Table:
    """A table of `function`, a float64 array function with |f''| <= `curvature` on [low, high].

    Between two points x_i and x_i + h linear interpolation errs by at most h^2/8 max|f''|. The entry at x_i alone
    errs, up to h/2 away, by no more than the change of f over that half step, whose chord from x_i it is within
    (h/2)^2/8 max|f''| of. Entries are rounded to float32, which adds at most the largest rounding.

    Args:
        relative: bound |table / f - 1|; f is of one sign and monotone.
    """
    points = np.linspace(low, high, segments + 1)
    exact = function(points)
    entries = exact.astype(np.float32)
    rounding = np.abs(entries.astype(np.float64) - exact)
    step = (high - low) / segments
    bend = at_most(curvature) if isinstance(curvature, (int, float)) else curvature
    cells = step**2 / 8 * bend(points[:-1], points[1:])
    if not interpolate:
        middles = function((points[:-1] + points[1:]) / 2)
        moved = np.maximum(np.abs(exact[:-1] - middles), np.abs(exact[1:] - middles))
        cells = moved + cells / 4
    cells = cells + float(rounding.max())
    if relative:
        cells = cells / np.minimum(np.abs(exact[:-1]), np.abs(exact[1:]))
    return Table(tuple(float(entry) for entry in entries), low, high, float(cells.max()), interpolate)
