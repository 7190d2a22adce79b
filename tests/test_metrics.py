"""Metrics against their definitions, in exact or independent arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lowerkit.numerics import metrics
from lowerkit.numerics.metrics import ErrorStats, errors

NAN, INF = math.nan, math.inf
floats = st.floats(-1e6, 1e6, width=32)
anything = st.floats(width=32)


def pairs(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    """Two float32 arrays of one shape, as [2, n]."""
    return hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 40)), elements=elements)


def test_known_errors() -> None:
    found = errors(np.array([1.0, -4.0, 3.0]), np.array([1.5, -4.0, 2.0]))
    assert (found.count, found.mismatches) == (3, 0)
    assert (found.max_abs, found.mean_abs) == (1.0, 0.5)
    assert found.relative == 1 / 4
    assert found.mean_relative == pytest.approx(0.5 / (8 / 3))
    assert found.max_ratio == 0.5
    assert found.sqnr_db == pytest.approx(10 * math.log10(26 / 1.25))
    assert found.cosine == pytest.approx((1.5 + 16 + 6) / math.sqrt(26 * (2.25 + 16 + 4)))


@given(pairs(floats))
def test_against_definitions(both: np.ndarray) -> None:
    a, b = both.astype(np.float64)
    found, error = errors(*both), np.abs(b - a)
    assert found.max_abs == error.max()
    assert found.mean_abs == pytest.approx(error.mean())
    if a.any():
        assert found.relative == error.max() / np.abs(a).max()
        if error.any():
            assert found.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / (error**2).sum()), abs=1e-6)
    if a.any() and b.any():
        expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert found.cosine == pytest.approx(expected, abs=1e-9)


@given(pairs(anything), st.integers(0, 40))
def test_streaming_equals_whole(both: np.ndarray, cut: int) -> None:
    whole = ErrorStats()
    whole.update(*both)
    parts, second = ErrorStats(), ErrorStats()
    parts.update(both[0, :cut], both[1, :cut])
    second.update(both[0, cut:], both[1, cut:])
    parts.merge(second)
    one, other = whole.result(), parts.result()
    for name in ("count", "mismatches", "max_abs", "relative", "max_ratio"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("mean_abs", "mean_relative", "sqnr_db", "cosine"):
        expected, found = getattr(one, name), getattr(other, name)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=anything))
def test_equal_arrays_have_no_error(x: np.ndarray) -> None:
    found = errors(x, x.copy())
    assert (found.mismatches, found.max_abs, found.mean_abs, found.relative) == (0, 0, 0, 0)
    assert (found.sqnr_db, found.cosine) == (INF, 1.0)


@pytest.mark.parametrize(
    ("reference", "result"), [(1.0, NAN), (NAN, 1.0), (1.0, INF), (-INF, INF), (INF, NAN), (INF, 1.0)]
)
def test_mismatch_is_an_infinite_error(reference: float, result: float) -> None:
    found = errors(np.array([2.0, reference]), np.array([2.0, result]))
    assert found.mismatches == 1
    assert (found.max_abs, found.mean_abs, found.relative) == (INF, INF, INF)
    assert found.sqnr_db == -INF
    assert math.isnan(found.cosine)


def test_equal_nonfinite_elements_are_equal() -> None:
    x = np.array([NAN, INF, -INF, 2.0])
    found = errors(x, np.array([NAN, INF, -INF, 2.5]))
    assert (found.mismatches, found.max_abs, found.relative) == (0, 0.5, 0.25)


def test_zero_reference() -> None:
    found = errors(np.zeros(2), np.array([0.0, 0.1]))
    assert (found.relative, found.max_ratio, found.sqnr_db, found.cosine) == (INF, INF, -INF, 0.0)


def test_squares_out_of_range_are_undefined_not_wrong() -> None:
    for scale in (1e200, 1e-200):
        found = errors(np.array([scale]), np.array([1.25 * scale]))
        assert found.relative == pytest.approx(0.25)
        assert math.isnan(found.sqnr_db)
        assert math.isnan(found.cosine)


def test_integers_and_bools() -> None:
    assert errors(np.array([1, 2**40]), np.array([1, 2**40 + 1])).max_abs == 1
    assert errors(np.array([True, False]), np.array([True, True])).max_abs == 1


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        errors(np.zeros((2, 1)), np.zeros((1, 2)))


def test_top1() -> None:
    scores = np.array([[0.1, 0.9], [0.5, 0.5], [NAN, 1.0]])
    assert metrics.top1(scores).tolist() == [1, 0, -1]
    other = np.array([[0.2, 0.3], [0.4, 0.5], [0.0, 1.0]])
    assert metrics.top1_agreement(scores, other) == pytest.approx(1 / 3)
    assert metrics.accuracy(scores, np.array([1, 0, 1])) == pytest.approx(2 / 3)
    assert math.isnan(metrics.accuracy(np.zeros((0, 2)), np.zeros(0)))


@given(hnp.arrays(np.float64, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 5)), elements=floats))
def test_row_cosines(both: np.ndarray) -> None:
    for a, b, found in zip(*both, metrics.row_cosines(*both), strict=True):
        norm = np.linalg.norm(a / (np.abs(a).max() or 1)) * np.linalg.norm(b / (np.abs(b).max() or 1))
        scaled = (a / (np.abs(a).max() or 1)) @ (b / (np.abs(b).max() or 1))
        expected = scaled / norm if norm else float(not a.any() and not b.any())
        assert found == pytest.approx(expected, abs=1e-9)


def test_pairwise_cosines() -> None:
    vectors = np.array([[1.0, 0], [0, 2], [3, 3]])
    assert metrics.pairwise_cosines(vectors) == pytest.approx([0, math.sqrt(0.5), math.sqrt(0.5)])
    assert np.isnan(metrics.pairwise_cosines(np.array([[NAN, 1], [1, 1]]))).all()


def test_correlations_against_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, 50).astype(float)  # with ties
    b = a + rng.normal(size=50)
    assert metrics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert metrics.pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0])
    assert metrics.spearman(a, np.exp(a)) == pytest.approx(1)


@pytest.mark.parametrize("bad", [[1.0, 1.0, 1.0], [1.0, NAN, 2.0], [INF, 1.0, 2.0]])
def test_undefined_correlations_are_nan(bad: list[float]) -> None:
    good = np.array([1.0, 2.0, 3.0])
    assert math.isnan(metrics.spearman(good, np.array(bad)))
    assert math.isnan(metrics.pearson(np.array(bad), good))
    assert math.isnan(metrics.spearman(good[:1], good[:1]))
