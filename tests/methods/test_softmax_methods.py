"""Softmax methods: against 60-digit arithmetic, against float64, and against Softmax itself on ugly rows."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import U, body, model_of, run

from lowerkit.passes.base import Method
from lowerkit.passes.softmax.online import Online
from lowerkit.passes.softmax.poly_exp import PolyExp
from lowerkit.passes.softmax.two_pass import TwoPass

mpmath.mp.dps = 60
METHODS: list[Method] = [Online(), TwoPass(), PolyExp(), PolyExp(degree=2)]
EXACT = [Online(), TwoPass()]
#: The smallest normal float32: exponentials below it may be flushed to zero.
TINY = 2.0**-126

inf, nan, big, small = np.inf, np.nan, np.finfo(np.float32).max, np.float32(1e-45)
#: Rows of four on which softmaxes go wrong.
UGLY = np.array(
    [
        [1, 1, 1, 1],
        [1, 2, 2, 1],
        [-inf, 1, 2, 3],
        [3, -inf, -inf, -inf],
        [-inf, -inf, -inf, -inf],
        [inf, 1, 2, 3],
        [inf, inf, -inf, 0],
        [nan, 1, 2, 3],
        [5, nan, -inf, -inf],
        [1, 2, nan, inf],
        [nan, nan, nan, nan],
        [1e30, 1, 2, 3],
        [3e38, -3e38, 0, 1],
        [big, big, -big, -big],
        [-big, -big, -big, -big],
        [-big, 0, 1, 2],
        [small, -small, 0, small],
        [0, -0.0, 0, -0.0],
        [0, -87.3, -87.4, -104],
        [88, 89, 100, -100],
    ],
    np.float32,
)

logits = st.one_of(
    st.floats(-20, 20, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([-np.inf, 0.0, 1.0, -87.0]),
)
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=logits)
ids = str


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        result: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return result


def rounding(x: np.ndarray) -> np.ndarray:
    """What float32 may add to each element of the softmax over the last axis.

    With z = x - max: an element's exponential is off by |z| U for the difference and some U for itself and
    its range reduction; sum and quotient by n U and by the terms' errors, of which the ones in |z| average
    to at most log(n) U, the entropy.
    """
    with np.errstate(invalid="ignore"):
        z = np.abs(x.astype(np.float64) - x.max(axis=-1, keepdims=True).astype(np.float64))
        n = x.shape[-1]
        relative = U * (np.where(z < 200, z, 0) + np.log(n) + 2 * n + 16)
        result: np.ndarray = softmax(x) * relative + TINY
    return result


@pytest.mark.parametrize("method", METHODS, ids=ids)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8))
def test_model_is_within_the_bound(method: Method, row: list[float]) -> None:
    truth = [mpmath.exp(mpmath.mpf(v) - max(row)) for v in row]
    truth = [float(e / sum(truth)) for e in truth]
    # 1e-11: arguments up to 2e4 with float64's rounding, in the exponent.
    np.testing.assert_allclose(
        method.evaluate(np.array(row)), truth, rtol=0, atol=method.bound().value + 1e-11
    )


@pytest.mark.parametrize("method", METHODS, ids=ids)
@given(arrays, st.data())
def test_body_is_within_bound_and_rounding(method: Method, x: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    y = np.moveaxis(body(method, "Softmax", x, {"axis": axis}), axis, -1)
    rows = np.moveaxis(x, axis, -1)
    truth, allowed = softmax(rows), method.bound().value + rounding(rows)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(truth))
    assert np.all((np.abs(y - truth) <= allowed) | np.isnan(truth))


@pytest.mark.parametrize("method", METHODS, ids=ids)
@given(arrays)
def test_model_agrees_with_body(method: Method, x: np.ndarray) -> None:
    difference = np.abs(body(method, "Softmax", x) - method.evaluate(x))
    allowed = rounding(x) + 1e-12
    if isinstance(method, PolyExp):
        # Near half an integer float32 and float64 may round n to different sides, where p differs.
        allowed = allowed + 2 * method.bound().value
    assert np.all((difference <= allowed) | np.isnan(method.evaluate(x)))


@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.parametrize("axis", [0, 1])
def test_ugly_rows_are_what_softmax_makes_of_them(method: Method, axis: int) -> None:
    x = UGLY if axis == 1 else np.ascontiguousarray(UGLY.T)
    expected = run(model_of("Softmax", x, {"axis": axis}), x)
    y = body(method, "Softmax", x, {"axis": axis})
    np.testing.assert_allclose(y, expected, rtol=0, atol=2 * method.bound().value + 1e-6)
    rows = method.evaluate(UGLY)
    np.testing.assert_allclose(
        rows if axis == 1 else rows.T, expected, rtol=0, atol=method.bound().value + 1e-6
    )


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_length_one_axis_is_one(method: Method) -> None:
    x = np.array([[[0.0]], [[-big]], [[1e-45]], [[88.0]]], np.float32)
    np.testing.assert_array_equal(body(method, "Softmax", x, {"axis": 1}), np.ones_like(x))
    np.testing.assert_allclose(method.evaluate(x), np.ones_like(x), rtol=1e-15)


@pytest.mark.parametrize("method", EXACT, ids=ids)
def test_exact_methods_are_softmax_to_the_last_digits_of_float64(method: Method) -> None:
    rng = np.random.default_rng(1)
    for x in (rng.normal(0, 8, (50, 257)), np.sort(rng.normal(0, 8, (50, 257))), np.full((3, 1000), -7.25)):
        np.testing.assert_allclose(method.evaluate(x), softmax(x), rtol=1e-12)
        np.testing.assert_allclose(method.evaluate(x[:, ::-1]), softmax(x[:, ::-1]), rtol=1e-12)


def test_two_pass_keeps_the_base_of_its_powers() -> None:
    """Powers of two far apart are those of ln 2 and not of its nearest float32."""
    x = np.array([[0.0, -60.0], [80.0, 0.0]], np.float32)
    np.testing.assert_allclose(body(TwoPass(), "Softmax", x), softmax(x), rtol=2 * U)


@pytest.mark.parametrize("degree", range(1, 8))
def test_polynomial_bound_is_not_idle(degree: int) -> None:
    """Some row of two, both near a half, errs by a good part of the bound."""
    method = PolyExp(degree=degree)
    x = np.stack([np.zeros(20_001), np.linspace(-1.2, 0, 20_001)], axis=-1)
    worst = float(np.abs(method.evaluate(x) - softmax(x)).max())
    assert 0.4 * method.bound().value <= worst <= method.bound().value


def test_more_degrees_are_better() -> None:
    bounds = [PolyExp(degree=degree).bound().value for degree in range(1, 8)]
    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.slow
def test_polynomial_exponential_at_every_float32() -> None:
    """Every float32 z in (-2 ln 2, -2^-10]: p(r) 2^n in float64 is within the polynomial's error of exp."""
    p = PolyExp().polynomial()
    for exponent in range(-10, 1):
        mantissas = np.arange(1 << 23, dtype=np.float64) / (1 << 23) + 1
        z = -mantissas * 2.0**exponent
        n = np.round(z / np.log(2))
        error = np.abs(p(z - n * np.log(2)) * np.exp2(n) / np.exp(z) - 1)
        assert error.max() <= p.error
