"""Fits and tables: their error bounds hold against 60-digit arithmetic, and are not idle."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowerkit.numerics.polynomial import Polynomial, minimax
from lowerkit.numerics.tables import uniform_table

mpmath.mp.dps = 60
INFINITY = float("inf")


def exact_error(p: Polynomial, function: object, x: float, relative: bool) -> float:
    """|p(x) - f(x)| or |p(x) / f(x) - 1| in 60 digits."""
    point = mpmath.mpf(float(x))
    value, truth = mpmath.polyval([*reversed(p.coefficients)], point), function(point)  # type: ignore[operator]
    return float(abs(value / truth - 1) if relative else abs(value - truth))


def exp_fit(degree: int, relative: bool) -> Polynomial:
    return minimax(np.exp, -0.5, 1.0, degree, curvature=math.e, relative=relative)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("degree", range(1, 9))
def test_bound_holds_and_is_tight(degree: int, relative: bool) -> None:
    p = exp_fit(degree, relative)
    points = np.linspace(-0.5, 1.0, 1500)
    worst = max(exact_error(p, mpmath.exp, x, relative) for x in points)
    assert worst <= p.error
    # The slack is that of 2^17 cells, of float64 and, for relative errors, of the values across one cell.
    assert p.error <= 1.02 * worst + 1e-10


@given(st.floats(-0.5, 1.0), st.integers(1, 8), st.booleans())
def test_bound_holds_at_any_point(x: float, degree: int, relative: bool) -> None:
    p = exp_fit(degree, relative)
    assert exact_error(p, mpmath.exp, x, relative) <= p.error


@pytest.mark.parametrize("degree", range(1, 7))
def test_best_approximation_of_a_power_is_chebyshevs(degree: int) -> None:
    """x^n less its best polynomial of degree n - 1 is the Chebyshev polynomial, of norm 2^(1 - n)."""
    n = degree + 1
    p = minimax(lambda x: x**n, -1.0, 1.0, degree, curvature=float(n * (n - 1)))
    assert 1 <= p.error / 2.0 ** (1 - n) <= 1 + 2e-6
    chebyshev = np.polynomial.chebyshev.cheb2poly([0.0] * n + [1.0]) * 2.0 ** (1 - n)
    np.testing.assert_allclose(
        np.pad(p.coefficients, (0, n - len(p.coefficients))), -chebyshev[:n], atol=1e-6
    )


@pytest.mark.parametrize("relative", [False, True])
def test_error_alternates(relative: bool) -> None:
    """Chebyshev's criterion: degree + 2 extrema of equal size and alternating sign."""
    p = exp_fit(4, relative)
    x = np.linspace(-0.5, 1.0, 200_001)
    error = p(x) / np.exp(x) - 1 if relative else p(x) - np.exp(x)
    runs = np.split(error, np.flatnonzero(np.diff(np.sign(error))) + 1)
    peaks = np.array([np.abs(run).max() for run in runs])
    assert len(peaks) == 6
    np.testing.assert_allclose(peaks, p.error, rtol=0.01)


def test_what_a_polynomial_can_be_is_found() -> None:
    p = minimax(lambda x: 0.25 * x**3 - 2 * x + 1, -2.0, 3.0, 3, curvature=4.5)
    np.testing.assert_allclose(p.coefficients, [1, -2, 0, 0.25], atol=1e-8)
    assert p.error <= 1e-7


def test_fits_repeat_and_are_float32() -> None:
    p = exp_fit(5, True)
    assert p == exp_fit(5, True)
    assert all(c == np.float32(c) for c in p.coefficients)
    np.testing.assert_array_equal(p.array(), np.array(p.coefficients[::-1], np.float32))
    assert p.array().dtype == np.float32


def test_evaluation_keeps_the_dtype() -> None:
    p = exp_fit(5, False)
    x = np.linspace(-0.5, 1.0, 1000)
    assert p(x).dtype == np.float64
    single = p(x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, p(x), rtol=1e-6)
    assert p(np.zeros((2, 0))).shape == (2, 0)


def test_table_error_is_attained_by_a_parabola() -> None:
    """Linear interpolation of x^2 errs by exactly h^2/4 in the middle of every step."""
    table = uniform_table(lambda x: x**2, 0.0, 4.0, 16, curvature=2.0)
    middle = np.arange(16) / 4 + 0.125
    np.testing.assert_array_equal(table(middle) - middle**2, 0.25**2 / 4)
    assert table.error == 0.25**2 / 4


@given(st.floats(0.0, 3.0), st.integers(1, 300))
def test_table_bound_holds(x: float, segments: int) -> None:
    table = uniform_table(np.sin, 0.0, 3.0, segments, curvature=1.0)
    truth = float(mpmath.sin(mpmath.mpf(x)))
    # 4e-16: the interpolation itself is in float64.
    assert abs(float(table(np.array(x))) - truth) <= table.error + 4e-16


def test_table_holds_its_ends_and_keeps_nan() -> None:
    table = uniform_table(np.cos, 0.0, 2.0, 8, curvature=1.0)
    first, last = table.entries[0], table.entries[-1]
    found = table(np.array([-INFINITY, -1.0, 0.0, 2.0, 3.0, INFINITY, np.nan]))
    np.testing.assert_array_equal(found, [first, first, first, last, last, last, np.nan])
    assert table.array().dtype == np.float32
    assert len(table.array()) == 9
