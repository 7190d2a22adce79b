"""Formats narrower than the numbers' range, where that costs less than it gains.

A format with one integer bit less has half the step, and saturates what lies beyond. What is least is the mean square
of both errors together: clipped numbers' distance to the format's end, and step^2 / 12 for all others, as in Banner et
al., Post-training 4-bit Quantization of Convolution Networks for Rapid-Deployment (NeurIPS 2019), section 3, whose
distributions are here the histogram of what was observed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from lowerkit.targets.fpga.formats import Fixed

#: Bins of a histogram, half of them for negative numbers.
BINS = 2048
#: At most so many integer bits are given up.
DEPTH = 6


@dataclass
class Histogram:
    """Counts of numbers in equal bins over [-reach, reach], a power of two that doubles when it has to."""

    reach: float = 2.0**-20
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, numbers: np.ndarray) -> None:
        """Take in finite numbers."""
        if not numbers.size:
            return
        most = float(np.abs(numbers).max())
        while self.reach <= most:
            # Bins merge in pairs, towards the middle.
            self.reach *= 2
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate(
                [np.zeros(BINS // 4, np.int64), merged, np.zeros(BINS // 4, np.int64)]
            )
        self.counts += np.histogram(numbers, BINS, (-self.reach, self.reach))[0]

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin."""
        width = 2 * self.reach / BINS
        found: np.ndarray = (np.arange(BINS) + 0.5) * width - self.reach
        return found


def error(form: Fixed, seen: Histogram) -> float:
    """The sum of squared errors of the numbers seen."""
    x, counts = seen.centres, seen.counts
    beyond = np.maximum(np.maximum(x - form.high, form.low - x), 0.0)
    inside = beyond == 0
    return float((counts * np.square(beyond)).sum() + counts[inside].sum() * form.step**2 / 12)


def clipped(form: Fixed, seen: Histogram) -> Fixed:
    """`form`, which holds all numbers, or one with fewer integer bits whose error is less; the least of them."""
    least = max(form.integer - DEPTH, -64)
    candidates = [replace(form, integer=integer) for integer in range(form.integer, least - 1, -1)]
    return min(candidates, key=lambda candidate: error(candidate, seen))
