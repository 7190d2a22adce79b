"""Functions, and the fits of them: bounds hold in 60-digit arithmetic and are close."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.numerics import functions
from lowerkit.numerics.certify import certified
from lowerkit.numerics.composite import fit_composite
from lowerkit.numerics.functions import ScalarFunction, scaled
from lowerkit.numerics.piecewise_linear import fit_piecewise_linear
from lowerkit.numerics.rational import Rational, _bound, fit_rational
from lowerkit.numerics.series import least_squares_series, minimax_series
from lowerkit.numerics.tables import uniform_table

mpmath.mp.dps = 60
M = mpmath.mpf


def _tanh_gelu(x: mpmath.mpf) -> mpmath.mpf:
    return x / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (x + M("0.044715") * x**3)))


EXACT = {
    functions.GELU: lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    functions.TANH_GELU: _tanh_gelu,
    functions.SILU: lambda x: x / (1 + mpmath.exp(-x)),
    functions.SOFTPLUS: lambda x: mpmath.log1p(mpmath.exp(x)),
    functions.MISH: lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    functions.TANH: mpmath.tanh,
    functions.SIGMOID: lambda x: 1 / (1 + mpmath.exp(-x)),
    functions.ERF: mpmath.erf,
    functions.EXP: mpmath.exp,
    functions.RECIPROCAL: lambda x: 1 / x,
    functions.RSQRT: lambda x: 1 / mpmath.sqrt(x),
    functions.GELU_BUMP: lambda x: x * mpmath.erfc(x / mpmath.sqrt(2)) / 2,
    functions.TANH_GELU_BUMP: lambda x: -_tanh_gelu(-x),
    functions.SILU_BUMP: lambda x: x / (1 + mpmath.exp(x)),
    functions.SOFTPLUS_BUMP: lambda x: -mpmath.log1p(mpmath.exp(-x)),
    functions.HALF_SIGMOID: lambda x: mpmath.tanh(x / 2) / 2,
}
each_function = pytest.mark.parametrize("function", EXACT, ids=lambda f: f.name)
POSITIVE = (functions.RECIPROCAL, functions.RSQRT)
HALF = (functions.GELU_BUMP, functions.TANH_GELU_BUMP, functions.SILU_BUMP, functions.SOFTPLUS_BUMP)


def grid(function: ScalarFunction) -> np.ndarray:
    if function in POSITIVE:
        return np.geomspace(0.1, 50, 301)
    return np.linspace(0 if function in HALF else -10, 10, 601)


@each_function
def test_values_are_right_to_a_few_roundings(function: ScalarFunction) -> None:
    x = grid(function)
    exact = np.array([float(EXACT[function](M(float(v)))) for v in x])
    np.testing.assert_allclose(function(x), exact, rtol=2e-14, atol=1e-300)


@each_function
def test_curvature_bounds_the_second_derivative(function: ScalarFunction) -> None:
    x = grid(function)
    second = np.array([abs(float(mpmath.diff(EXACT[function], M(float(v)), 2))) for v in x])
    bound = function.curvature(x[:-1], x[1:])
    assert np.all(np.maximum(second[:-1], second[1:]) <= bound * (1 + 1e-12))
    # Not idle: attained, or nearly, somewhere.
    assert np.max(np.maximum(second[:-1], second[1:]) / bound) > 0.95


def test_relus_kink_bends_a_chord_no_more_than_its_curvature_says() -> None:
    """In [-a, b] the chord is above ReLU by a b / (a + b) at most, a quarter of the width where a = b."""
    a, b = np.meshgrid([1e-6, 0.1, 1.0, 3.0], [1e-6, 0.1, 1.0, 3.0])
    bent = (a + b) ** 2 / 8 * functions.RELU.curvature(-a, b)
    assert np.all(a * b / (a + b) <= bent * (1 + 1e-12))
    assert np.any(a * b / (a + b) >= bent * (1 - 1e-12))
    assert not functions.RELU.curvature(np.array([0.0, 1.0]), np.array([1.0, 2.0])).any()


def test_tanh_gelus_curvature_is_largest_at_zero() -> None:
    """It has no formula as short as the erf form's: a finer look, between the grid's points."""
    x = np.concatenate([np.linspace(-3, 3, 1201), np.linspace(-1e-3, 1e-3, 21)])
    second = [abs(float(mpmath.diff(_tanh_gelu, M(float(v)), 2))) for v in x]
    assert max(second) <= 0.79788457


def test_certified_is_exact_for_a_parabola() -> None:
    x = np.linspace(-1, 1, 3)
    assert certified(x, x**2 - 1, 2.0) == 1.25
    assert certified(np.array([1.0, 2.0]), np.array([0.0, 0.0]), 2.0, values=np.array([2.0, 4.0])) == 0.125


FITS = {
    "lines": lambda f, low, high, rel: fit_piecewise_linear(f, low, high, 9, relative=rel),
    "series": lambda f, low, high, rel: minimax_series(f, low, high, 9, relative=rel),
    "weighted": lambda f, low, high, rel: least_squares_series(
        f, low, high, 7, np.array([1.0, 5.0, 0.0, 2.0]), relative=rel
    ),
    "table": lambda f, low, high, rel: uniform_table(
        f.value, low, high, 23, curvature=f.curvature, relative=rel
    ),
    "nearest": lambda f, low, high, rel: uniform_table(
        f.value, low, high, 100, curvature=f.curvature, relative=rel, interpolate=False
    ),
}


@pytest.mark.parametrize("kind", FITS)
@each_function
def test_bounds_hold_and_are_close(function: ScalarFunction, kind: str) -> None:
    low, high = (0.5, 4.0) if function in POSITIVE else (0.0, 4.0)
    relative = function in (*POSITIVE, functions.EXP)
    fit = FITS[kind](function, low, high, relative)
    x = np.linspace(low, high, 40_001)
    error = np.abs(fit(x) - function(x)) / (np.abs(function(x)) if relative else 1)
    assert error.max() <= fit.error + 1e-14
    # Tables take the largest curvature and change of a whole step.
    assert fit.error <= (1.005 if kind in ("lines", "series", "weighted") else 4.0) * error.max() + 1e-6
    for v in np.random.default_rng(0).uniform(low, high, 40):
        exact = EXACT[function](M(float(v)))
        off = abs(M(float(fit(np.array(v)))) - exact) / (exact if relative else 1)
        assert off <= fit.error + 1e-14


@each_function
def test_rational_bounds_hold_and_are_close(function: ScalarFunction) -> None:
    low, high = (0.5, 4.0) if function in POSITIVE else (0.0, 6.0)
    f = ScalarFunction(
        function.name,
        lambda w: function.value(low + (high - low) * w),
        lambda a, b: (high - low) ** 2 * function.curvature(low + (high - low) * a, low + (high - low) * b),
    )
    relative = function in (*POSITIVE, functions.EXP)
    x = np.linspace(0, 1, 40_001)
    for numerator, denominator in ((3, 2), (5, 4)):
        fit = fit_rational(f, numerator, denominator, relative=relative)
        error = np.abs(fit(x) - f(x)) / (np.abs(f(x)) if relative else 1)
        assert error.max() <= fit.error + 1e-14
        assert fit.error <= 1.06 * error.max() + 1e-7


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=5),
    st.lists(st.floats(-4, 4), min_size=1, max_size=4),
)
def test_rational_bounds_hold_for_any_coefficients(p: list[float], q: list[float]) -> None:
    """Also where Q changes its sign, which fits avoid."""
    top = np.float32(p).astype(np.float64)
    bottom = np.concatenate([[0.0], np.float32(q).astype(np.float64)])
    bound = _bound(top, bottom, functions.TANH, False)
    x = np.linspace(0, 1, 30_011)
    error = np.abs(Rational(tuple(top), tuple(bottom), bound)(x) - np.tanh(x)).max()
    assert error <= bound <= error + 1e-3


def test_remez_finds_the_best_for_high_degrees_and_parities() -> None:
    """Errors fall geometrically, at the rate that tanh's poles give: degree after degree."""
    tanh = scaled(functions.TANH, -8, 8)
    errors = [minimax_series(tanh, -1, 1, degree, parity=1).error for degree in range(3, 32, 2)]
    ratios = np.array(errors[1:]) / np.array(errors[:-1])
    pole = np.pi / 16
    rate = (pole + np.sqrt(1 + pole**2)) ** -2
    assert np.all(np.abs(ratios[4:] - rate) < 0.02)
    whole = minimax_series(tanh, -1, 1, 15)
    assert whole.error == pytest.approx(errors[6], rel=1e-3)


def test_composites_bound_holds_and_more_degrees_help() -> None:
    f = scaled(functions.TANH, -6, 6)
    x = np.linspace(-1, 1, 40_001)
    last = 1.0
    for inner, outer in ((3, 3), (3, 7), (7, 7), (7, 15)):
        fit = fit_composite(f, inner, outer)
        error = np.abs(fit(x) - f(x)).max()
        assert error <= fit.error + 1e-14
        assert fit.error < last
        assert fit(-x) == pytest.approx(-fit(x), abs=0)
        last = fit.error


def test_fits_repeat() -> None:
    f = functions.GELU_BUMP
    assert fit_piecewise_linear(f, 0, 6, 8) == fit_piecewise_linear(f, 0, 6, 8)
    unit = scaled(functions.ERF, -3, 3)
    assert fit_composite(unit, 5, 5) == fit_composite(unit, 5, 5)
    assert fit_rational(f, 4, 3) == fit_rational(f, 4, 3)
