"""Statistics of a stream are those of everything at once, whatever the batches."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowerkit.numerics.statistics import BINS, LARGEST, TensorStats

FLOAT32 = np.finfo(np.float32)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
anything = st.floats(width=32)
#: Values at bin edges and limits, of every scale, and zeros: where histograms go wrong.
edges = st.builds(lambda m, e: np.float32(m * 2.0**e), st.integers(-4, 4), st.integers(-140, 120))


def batches(elements: st.SearchStrategy[float]) -> st.SearchStrategy[list[np.ndarray]]:
    """A few float32 arrays [rows, channels] of one number of channels."""
    return st.integers(1, 5).flatmap(
        lambda channels: st.lists(
            st.integers(1, 4).flatmap(
                lambda rows: hnp.arrays(np.float32, (rows, channels), elements=elements)
            ),
            min_size=1,
            max_size=5,
        )
    )


def stats_of(arrays: list[np.ndarray]) -> TensorStats:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # not one overflow, empty mean or NaN comparison on the way
        stats = TensorStats()
        for array in arrays:
            stats.update(array)
    return stats


@given(batches(st.one_of(anything, edges)))
def test_batches_give_what_the_whole_gives(arrays: list[np.ndarray]) -> None:
    parts, whole = stats_of(arrays), stats_of([np.concatenate(arrays)])
    for name in ("count", "nonfinite", "minimum", "maximum", "row_variance", "row_spread", "histogram_limit"):
        assert getattr(parts, name) == getattr(whole, name), name
    np.testing.assert_array_equal(parts.histogram, whole.histogram)
    if whole.count:
        np.testing.assert_array_equal(parts.channel_min, whole.channel_min)
        np.testing.assert_array_equal(parts.channel_max, whole.channel_max)
        scale = max(abs(whole.minimum), abs(whole.maximum))
        assert parts.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-13 * scale)
        assert parts.std == pytest.approx(whole.std, rel=1e-12, abs=1e-7 * scale)


@given(batches(st.one_of(anything, edges)))
def test_agrees_with_numpy(arrays: list[np.ndarray]) -> None:
    stats = stats_of(arrays)
    rows = np.concatenate(arrays).astype(np.float64)
    good = rows[np.isfinite(rows)]
    assert (stats.count, stats.nonfinite) == (good.size, rows.size - good.size)
    if good.size == 0:
        assert (stats.minimum, stats.maximum, stats.std) == (np.inf, -np.inf, 0.0)
        assert stats.channel_min is None
        return
    scale = float(np.abs(good).max())
    assert (stats.minimum, stats.maximum) == (good.min(), good.max())
    assert stats.mean == pytest.approx(good.mean(), rel=1e-12, abs=1e-13 * scale)
    assert stats.std == pytest.approx(good.std(), rel=1e-12, abs=1e-7 * scale)
    kept = [row[np.isfinite(row)] for row in rows if np.isfinite(row).any()]
    spreads = [float(np.ptp(row)) for row in kept]
    variances = [float(row.var()) for row in kept]
    assert stats.row_spread == (min(spreads), max(spreads))
    assert stats.row_variance == pytest.approx((min(variances), max(variances)), rel=1e-9)
    for channel, low, high in zip(rows.T, stats.channel_min, stats.channel_max, strict=True):
        column = channel[np.isfinite(channel)]
        expected = (column.min(), column.max()) if column.size else (np.nan, np.nan)
        np.testing.assert_array_equal((low, high), expected)


@given(batches(st.one_of(anything, edges)))
def test_histogram_counts_every_finite_value_in_its_bin(arrays: list[np.ndarray]) -> None:
    stats = stats_of(arrays)
    values = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
    values = values[np.isfinite(values)]
    assert stats.histogram.shape == (BINS,)
    assert stats.histogram.sum() == stats.count == values.size
    peak, limit = np.abs(values).max(initial=0.0), stats.histogram_limit
    if peak == 0:
        assert limit == 0
        assert stats.histogram[BINS // 2] == values.size
        return
    assert limit / 2 <= peak < limit
    # Limits are powers of two, so these quotients are exact but for what lies below a bin's width anyway.
    bins = np.floor((values / limit + 1) * (BINS / 2)).astype(int)
    near = np.abs(values) < limit * float(FLOAT32.eps) / BINS
    bins[near] = np.where(values[near] < 0, BINS // 2 - 1, BINS // 2)
    np.testing.assert_array_equal(stats.histogram, np.bincount(bins, minlength=BINS))


def test_zeros_keep_later_small_values_apart() -> None:
    stats = stats_of([np.zeros((2, 3)), np.array([[1e-6, -1e-6, 3e-7]])])
    assert stats.histogram_limit < 2e-6
    assert np.count_nonzero(stats.histogram) == 4
    assert stats.histogram[BINS // 2] == 6


@given(finite)
def test_single_value(value: float) -> None:
    stats = stats_of([np.float32(value)])
    assert (stats.count, stats.minimum, stats.maximum, stats.mean) == (1, value, value, value)
    assert (stats.std, stats.row_variance, stats.channel_min) == (0.0, (np.inf, -np.inf), None)
    row = stats_of([np.array([value], np.float32)])
    assert (row.row_variance, row.row_spread) == ((0.0, 0.0), (0.0, 0.0))
    np.testing.assert_array_equal(row.channel_min, [np.float32(value)])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty_batches_change_nothing(shape: tuple[int, ...]) -> None:
    stats = stats_of([np.ones((2, 4)), np.zeros(shape)])
    assert (stats.count, stats.nonfinite, stats.minimum) == (8, 0, 1.0)


def test_nothing_finite() -> None:
    stats = stats_of([np.array([[np.nan, np.inf], [-np.inf, np.nan]])])
    assert (stats.count, stats.nonfinite, stats.std, stats.histogram.sum()) == (0, 4, 0.0, 0)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float16, np.float64])
def test_any_real_dtype(dtype: type[np.generic]) -> None:
    stats = stats_of([np.array([[0, 1], [1, 1]]).astype(dtype)])
    assert (stats.count, stats.minimum, stats.maximum, stats.mean) == (4, 0.0, 1.0, 0.75)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    values = np.random.default_rng(0).normal(1e6, 1.0, (50, 64))
    assert stats_of(list(values[:, None])).std == pytest.approx(values.std(), rel=1e-9)


def test_whole_range_of_float32() -> None:
    extremes = np.array([FLOAT32.max, -FLOAT32.max, FLOAT32.smallest_subnormal, 0.0], np.float32)
    stats = stats_of([extremes[::-1] * np.float32([1, 1, 0, 0]), extremes])
    assert (stats.minimum, stats.maximum) == (-FLOAT32.max, FLOAT32.max)
    assert stats.row_spread[1] == 2 * float(FLOAT32.max)
    assert np.isfinite(stats.m2)
    assert stats.histogram.sum() == 8


def test_beyond_float32_nothing_overflows() -> None:
    stats = stats_of([np.array([1e308, -1e308, LARGEST, 5e-324, 1.0])])
    assert (stats.count, stats.nonfinite, stats.maximum) == (3, 2, LARGEST)
    assert np.isfinite([stats.m2, *stats.row_variance]).all()
    assert stats_of([np.array([5e-324])]).histogram.sum() == 1


def test_channels_must_agree() -> None:
    stats = stats_of([np.ones((2, 3))])
    with pytest.raises(ValueError, match="4 channels after 3"):
        stats.update(np.ones((2, 4)))
