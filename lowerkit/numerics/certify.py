"""From errors at points to a bound of the error between them: what every fit's bound rests on."""

from __future__ import annotations

import numpy as np

#: Cells into which an interval is divided.
CELLS = 1 << 17


def certified(
    x: np.ndarray,
    error: np.ndarray,
    curvature: np.ndarray | float,
    *,
    rounding: float = 0.0,
    values: np.ndarray | None = None,
) -> float:
    """A bound of |e| on [x[0], x[-1]].

    Between two points h apart, e differs from its chord by at most h^2/8 max|e''|, so that |e| is at most the
    larger of its ends and that.

    Args:
        x: ascending, shape [n].
        error: e at the points, shape [n].
        curvature: bounds of |e''|, one for each of the n - 1 cells, or for all.
        rounding: a bound of what rounding, in the computation of `error`, may hide.
        values: for a bound of |e / f|, f at the points, of one sign and monotone.
    """
    size = np.abs(error)
    cells = np.maximum(size[:-1], size[1:]) + np.diff(x) ** 2 / 8 * curvature + rounding
    if values is not None:
        cells = cells / np.minimum(np.abs(values[:-1]), np.abs(values[1:]))
    return float(cells.max())
