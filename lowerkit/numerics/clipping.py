"""Ranges for quantisers, from the statistics of what they quantise."""

from __future__ import annotations

import numpy as np

from lowerkit.numerics.statistics import BINS, TensorStats

RULES = ("min-max", "percentile", "mse")
#: What `percentile` leaves out at either end, as a fraction of all values.
LEFT_OUT = 1e-4
#: Ranges that `mse` tries.
_TRIED = 100


def clipped_range(stats: TensorStats, rule: str, steps: int) -> tuple[float, float]:
    """[low, high], which contains 0, by one of `RULES`; `steps` are those of the quantiser.

    `percentile` and `mse` see a histogram, and are never wider than `min-max`.
    """
    low, high = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    if rule == "min-max" or stats.histogram_limit == 0:
        return low, high
    edges = np.linspace(-stats.histogram_limit, stats.histogram_limit, BINS + 1)
    if rule == "percentile":
        below = np.cumsum(stats.histogram) / stats.histogram.sum()
        first = edges[np.searchsorted(below, LEFT_OUT)]
        last = edges[np.searchsorted(below, 1 - LEFT_OUT) + 1]
        return max(low, min(float(first), 0.0)), min(high, max(float(last), 0.0))
    centres = np.clip((edges[:-1] + edges[1:]) / 2, low, high)
    best = (np.inf, 1.0)
    for part in np.arange(1, _TRIED + 1) / _TRIED:
        clipped = np.clip(centres, part * low, part * high) - centres
        inside = clipped == 0
        step = part * (high - low) / steps
        error = stats.histogram @ (clipped**2 + inside * step**2 / 12)
        best = min(best, (float(error), float(part)))
    return best[1] * low, best[1] * high
