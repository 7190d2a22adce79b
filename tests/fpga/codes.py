"""Codes of formats for tests: random ones with the formats' ends among them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lowerkit.targets.fpga.formats import ROUNDINGS, Fixed

formats = st.builds(Fixed, st.integers(1, 12), st.integers(-4, 14), st.booleans())
roundings = st.sampled_from(ROUNDINGS)


def codes(rng: np.random.Generator, shape: tuple[int, ...], found: Fixed, batch: int = 0) -> np.ndarray:
    """Codes [*shape] of a format, a quarter of them its ends; with `batch`, samples of which two are all ends."""
    low, high = found.range.low, found.range.high
    full = (batch, *shape) if batch else shape
    numbers = rng.integers(low, high, full, endpoint=True)
    ends = rng.choice([low, high], full)
    numbers = np.where(rng.random(full) < 0.25, ends, numbers)
    if batch > 1:
        numbers[0], numbers[1] = low, high
    return numbers
