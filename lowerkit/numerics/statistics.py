"""Statistics of tensors in one streaming pass, for calibration."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: Histograms have this many bins over [-2**k, 2**k]; k grows as larger values arrive.
BINS = 2048


@dataclass
class TensorStats:
    """Running statistics of one tensor over many batches.

    Channels and rows are along the last axis: `channel_min[c]` is over all positions of channel c, while
    `row_variance` and `row_spread` (max - min) hold the smallest and largest value over all rows.
    Non-finite values are counted and left out of everything else.
    """

    count: int = 0
    nonfinite: int = 0
    minimum: float = np.inf
    maximum: float = -np.inf
    mean: float = 0.0
    m2: float = 0.0
    channel_min: np.ndarray | None = None
    channel_max: np.ndarray | None = None
    row_variance: tuple[float, float] = (np.inf, -np.inf)
    row_spread: tuple[float, float] = (np.inf, -np.inf)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    histogram_limit: float = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation of all finite values."""
        return float(np.sqrt(self.m2 / self.count)) if self.count else 0.0

    def update(self, array: np.ndarray) -> None:
        """Add one batch; any shape, any real dtype. Sums are kept in float64."""
        x = np.asarray(array, np.float64)
        if x.size == 0:
            return
        finite = np.isfinite(x)
        good = x[finite]
        self.nonfinite += x.size - good.size
        if good.size == 0:
            return
        self._update_moments(good)
        self._update_histogram(good)
        if x.ndim:
            self._update_rows(np.where(finite, x, np.nan).reshape(-1, x.shape[-1]))

    def _update_moments(self, x: np.ndarray) -> None:
        # Chan, Golub & LeVeque (1979): merging means and sums of squared deviations.
        mean, delta = float(x.mean()), float(x.mean()) - self.mean
        total = self.count + x.size
        self.m2 += float(((x - mean) ** 2).sum()) + delta**2 * self.count * x.size / total
        self.mean += delta * x.size / total
        self.count = total
        self.minimum, self.maximum = min(self.minimum, float(x.min())), max(self.maximum, float(x.max()))

    def _update_histogram(self, x: np.ndarray) -> None:
        # The range only ever doubles, so that old counts merge pairwise and stay exact.
        peak = float(np.abs(x).max())
        limit = self.histogram_limit or 2.0 ** np.ceil(np.log2(peak)) if peak else self.histogram_limit or 1.0
        while self.histogram_limit and limit < peak:
            quarter = BINS // 4
            merged = self.histogram.reshape(-1, 2).sum(axis=1)
            self.histogram = np.pad(merged, (quarter, quarter))
            limit *= 2
        self.histogram_limit = float(limit)
        self.histogram += np.histogram(x, BINS, (-limit, limit))[0]

    def _update_rows(self, rows: np.ndarray) -> None:
        rows = rows[~np.isnan(rows).all(axis=1)]
        low, high = np.nanmin(rows, axis=1), np.nanmax(rows, axis=1)
        variance, spread = np.nanvar(rows, axis=1), high - low
        self.row_variance = _widen(self.row_variance, variance)
        self.row_spread = _widen(self.row_spread, spread)
        channel_min, channel_max = np.fmin.reduce(rows, axis=0), np.fmax.reduce(rows, axis=0)
        if self.channel_min is not None and self.channel_min.shape == channel_min.shape:
            assert self.channel_max is not None
            channel_min = np.fmin(self.channel_min, channel_min)
            channel_max = np.fmax(self.channel_max, channel_max)
        self.channel_min, self.channel_max = channel_min, channel_max


def _widen(interval: tuple[float, float], values: np.ndarray) -> tuple[float, float]:
    return min(interval[0], float(values.min())), max(interval[1], float(values.max()))
