"""Softmax with a polynomial exponential whose reciprocal is Newton's."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single import U, body, model_of, run
from test_softmax_methods import UGLY, arrays, rounding, softmax

from lowerkit.passes.softmax.poly_exp import PolyExp
from lowerkit.passes.softmax.poly_exp_newton import HIGH, LOW, SLOPE, START, PolyExpNewton

METHODS = [PolyExpNewton(), PolyExpNewton(degree=3, steps=1), PolyExpNewton(degree=6, steps=2)]
ids = str


@pytest.mark.parametrize("steps", range(1, 5))
def test_reciprocal_error_at_every_mantissa(steps: int) -> None:
    """Every float32 mantissa, and the reach around them: within E, and E is reached."""
    m = np.concatenate([1 + np.arange(1 << 23) / (1 << 23), [LOW, HIGH]])
    y = START - SLOPE * m
    for _ in range(steps):
        y = y * (2 - m * y)
    error = 1 - m * y
    limit = PolyExpNewton(steps=steps).reciprocal_error()
    assert error.max() <= limit + 1e-15
    assert error.min() >= -1e-15, "never above 1/m"
    assert error.max() >= 0.99 * limit - 1e-15


@pytest.mark.parametrize("method", METHODS, ids=ids)
@settings(deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8))
def test_model_is_within_the_bound(method: PolyExpNewton, row: list[float]) -> None:
    with mpmath.workdps(60):
        truth = [mpmath.exp(mpmath.mpf(v) - max(row)) for v in row]
        truth = [float(e / sum(truth)) for e in truth]
    y = method.evaluate(np.array(row))
    np.testing.assert_allclose(y, truth, rtol=0, atol=method.bound().value + 1e-11)
    assert np.all(y >= 0)
    assert 1 - method.reciprocal_error() - 1e-12 <= y.sum() <= 1 + 1e-12


@pytest.mark.parametrize("method", METHODS, ids=ids)
@settings(deadline=None)
@given(arrays, st.data())
def test_body_is_within_bound_and_rounding(method: PolyExpNewton, x: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    y = np.moveaxis(body(method, "Softmax", x, {"axis": axis}), axis, -1)
    rows = np.moveaxis(x, axis, -1)
    truth, allowed = softmax(rows), method.bound().value + rounding(rows)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(truth))
    assert np.all((np.abs(y - truth) <= allowed) | np.isnan(truth))
    model = method.evaluate(rows)
    # Near half an integer float32 and float64 may round n to different sides, where p differs.
    allowed = rounding(rows) + 2 * PolyExp(degree=method.degree).bound().value
    assert np.all((np.abs(y - model) <= allowed) | np.isnan(truth))


@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.parametrize("axis", [0, 1])
def test_ugly_rows_are_what_softmax_makes_of_them(method: PolyExpNewton, axis: int) -> None:
    x = UGLY if axis == 1 else np.ascontiguousarray(UGLY.T)
    expected = run(model_of("Softmax", x, {"axis": axis}), x)
    y = body(method, "Softmax", x, {"axis": axis})
    np.testing.assert_allclose(y, expected, rtol=0, atol=method.bound().value + 1e-6)
    rows = method.evaluate(UGLY)
    np.testing.assert_allclose(
        rows if axis == 1 else rows.T, expected, rtol=0, atol=method.bound().value + 1e-6
    )


@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 1023, 1024, 1025, 65_536])
def test_flat_rows_at_powers_of_two_and_between(method: PolyExpNewton, length: int) -> None:
    """The sum is next to a power of two: either octave gives the same."""
    x = np.full((2, length), 3.5, np.float32)
    y = body(method, "Softmax", x)
    # Float32 sums err by up to n U; the polynomial's error at 0 cancels, as all terms are equal.
    sum_error = 2e-6 + length * U
    np.testing.assert_allclose(y, method.evaluate(x), rtol=sum_error)
    np.testing.assert_allclose(y, 1 / length, rtol=method.reciprocal_error() + sum_error)


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_a_long_row_with_one_peak(method: PolyExpNewton) -> None:
    x = np.zeros(65_536, np.float32)
    x[9] = 1e4
    y = body(method, "Softmax", x)
    assert y[9] == pytest.approx(1, abs=method.bound().value + 1e-6)
    assert not np.delete(y, 9).any()


@pytest.mark.parametrize("steps", [1, 2])
def test_bound_is_not_idle(steps: int) -> None:
    """One element alone has a sum next to 1, where the start is worst."""
    method = PolyExpNewton(steps=steps)
    assert 1 - method.evaluate(np.zeros(1))[0] >= 0.9 * method.bound().value


def test_more_steps_are_better() -> None:
    bounds = [PolyExpNewton(steps=steps).bound().value for steps in (1, 2, 3)]
    assert bounds == sorted(bounds, reverse=True)
    assert PolyExpNewton().bound().value <= 1.01 * PolyExp().bound().value


@pytest.mark.parametrize("steps", [0, 5, 2.0, True])
def test_bad_steps(steps: object) -> None:
    with pytest.raises(ValueError, match=f"steps must be an integer from 1 to 4, not {steps}"):
        PolyExpNewton(steps=steps)
    with pytest.raises(ValueError, match="degree must be an integer"):
        PolyExpNewton(degree=9)
