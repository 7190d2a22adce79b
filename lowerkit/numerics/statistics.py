"""Statistics of tensors in one streaming pass, for calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

#: Histograms have this many bins over [-2**k, 2**k); k grows as larger values arrive.
BINS = 2048
#: Larger values (float64 alone has them) count as non-finite: their squares would leave float64.
LARGEST = 1e150
#: No histogram is narrower than 2**this, which is below every float32.
SMALLEST_EXPONENT = -200
#: Batches are kept whole as examples until they hold this many elements.
EXAMPLE_ELEMENTS = 1 << 18


@dataclass
class TensorStats:
    """Running statistics of one tensor over many batches.

    Channels and rows are along the last axis: `channel_min[c]` is over all positions of channel c, while
    `row_variance` and `row_spread` (max - min) hold the smallest and largest value over all rows.
    Non-finite values are counted and left out of everything else. `histogram_limit` is the 2**k of the
    histogram, the smallest above every |value|, and 0 while there was nothing but zeros. `examples` are the
    first batches as they came, in float32, for methods that fit themselves to whole rows.
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
    examples: list[np.ndarray] = field(default_factory=list)

    @property
    def std(self) -> float:
        """Population standard deviation of all finite values."""
        return float(np.sqrt(self.m2 / self.count)) if self.count else 0.0

    def update(self, array: np.ndarray) -> None:
        """Add one batch; any shape, any real dtype. Sums are kept in float64.

        Raises ValueError when batches disagree on the number of channels.
        """
        x = np.asarray(array, np.float64)
        if x.size == 0:
            return
        if sum(example.size for example in self.examples) + x.size <= EXAMPLE_ELEMENTS or not self.examples:
            with np.errstate(over="ignore"):
                self.examples.append(np.asarray(array, np.float32))
        finite = np.abs(x) <= LARGEST
        good = x.ravel() if finite.all() else x[finite]
        self.nonfinite += x.size - good.size
        if good.size == 0:
            return
        self._update_moments(good)
        self._update_histogram(good)
        if x.ndim:
            kept = x if good.size == x.size else np.where(finite, x, np.nan)
            self._update_rows(kept.reshape(-1, x.shape[-1]))

    def _update_moments(self, x: np.ndarray) -> None:
        # Chan, Golub & LeVeque (1979): merging means and sums of squared deviations.
        mean, delta = float(x.mean()), float(x.mean()) - self.mean
        total = self.count + x.size
        self.m2 += float(((x - mean) ** 2).sum()) + delta**2 * self.count * x.size / total
        self.mean += delta * x.size / total
        self.count = total
        self.minimum, self.maximum = min(self.minimum, float(x.min())), max(self.maximum, float(x.max()))

    def _update_histogram(self, x: np.ndarray) -> None:
        # Limits are powers of two above every value, so edges are exact, old bins merge pairwise, and the
        # result does not depend on the order of batches. Zero is in the same bin whatever the limit.
        peak = float(np.abs(x).max())
        if peak == 0:
            self.histogram[BINS // 2] += x.size
            return
        limit = max(self.histogram_limit, math.ldexp(1.0, max(math.frexp(peak)[1], SMALLEST_EXPONENT)))
        grown = self.histogram_limit or limit
        while grown < limit:
            self.histogram = np.pad(self.histogram.reshape(-1, 2).sum(axis=1), BINS // 4)
            grown *= 2
        self.histogram_limit = limit
        # The factor is a power of two, and no |value| is the limit: numbers fall where np.histogram has them.
        bins = np.floor(x * (BINS / 2 / limit)).astype(np.int64) + BINS // 2
        self.histogram += np.bincount(bins, minlength=BINS)

    def _update_rows(self, rows: np.ndarray) -> None:
        holes = np.isnan(rows)
        least: np.ufunc = np.minimum
        most: np.ufunc = np.maximum
        variance_of = np.var
        if holes.any():  # functions that leave them out are slower
            rows, least, most, variance_of = rows[~holes.all(axis=1)], np.fmin, np.fmax, np.nanvar
        low, high = least.reduce(rows, axis=1), most.reduce(rows, axis=1)
        variance, spread = variance_of(rows, axis=1), high - low
        self.row_variance = _widen(self.row_variance, variance)
        self.row_spread = _widen(self.row_spread, spread)
        channel_min, channel_max = least.reduce(rows, axis=0), most.reduce(rows, axis=0)
        if self.channel_min is not None and self.channel_max is not None:
            if self.channel_min.shape != channel_min.shape:
                raise ValueError(f"{channel_min.size} channels after {self.channel_min.size}")
            channel_min = np.fmin(self.channel_min, channel_min)
            channel_max = np.fmax(self.channel_max, channel_max)
        self.channel_min, self.channel_max = channel_min, channel_max


def _widen(interval: tuple[float, float], values: np.ndarray) -> tuple[float, float]:
    return min(interval[0], float(values.min())), max(interval[1], float(values.max()))
