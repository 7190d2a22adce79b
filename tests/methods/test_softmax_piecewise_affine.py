"""Softmax by additions of bit patterns: its bounds, which rows reach, and the integers that it stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import U, body
from test_softmax_methods import UGLY, logits

from lowerkit.numerics.piecewise_affine import WORST, padiv_bits, paexp2_bits
from lowerkit.numerics.rows import softmax_rows
from lowerkit.passes.softmax.piecewise_affine import PiecewiseAffine

METHOD = PiecewiseAffine()
INF = np.inf
#: The fraction at which a chord is furthest from 2^u, and the octaves of a nat.
FRACTION = 1 / math.log(2) - 1
LOG2_E = math.log2(math.e)
ABSOLUTE = 1.5 - math.sqrt(2)
#: Smaller results may be flushed to zero.
TINY = 2.0**-126
rows = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=8), elements=logits)


def octaves(u: np.ndarray) -> np.ndarray:
    """Logits whose differences are u octaves."""
    return np.asarray(u, np.float64) / LOG2_E


def rounding(x: np.ndarray) -> np.ndarray:
    """What float32 may make of `evaluate`, relative.

    u is off by 2 |u| U, and u - L(S) by as much again and by L(S)'s own error: S is off by n U and by its terms'
    |u| e, together at most log2(n) + 1 octaves' worth; chords are affine, so that du octaves make du of the result
    and less.
    """
    with np.errstate(invalid="ignore"):
        u = np.abs(x.astype(np.float64) - x.max(axis=-1, keepdims=True)) * LOG2_E
    n = x.shape[-1]
    result: np.ndarray = U * (4 * np.where(u < 200, u, 0) + 4 * np.log2(n) + 2 * n + 16)
    return result


@given(rows)
def test_body_is_the_model_but_for_rounding(x: np.ndarray) -> None:
    y, model = body(METHOD, "Softmax", x), METHOD.evaluate(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(model))
    assert np.all((np.abs(y - model) <= model * rounding(x) + TINY) | np.isnan(model))


@settings(max_examples=300)
@given(rows)
def test_the_bounds_hold(x: np.ndarray) -> None:
    p, y = softmax_rows(x), METHOD.evaluate(x)
    np.testing.assert_array_equal(np.isnan(p), np.isnan(y))
    bad = np.isnan(p) | (p < 1e-300)
    assert np.all((y <= p * WORST**2 * (1 + 1e-9)) & (y >= p / WORST * (1 - 1e-9)) | bad)
    assert np.all((np.abs(y - p) <= METHOD.bound().value * p + 1e-12) | np.isnan(p))
    assert np.all((np.abs(y - p) <= ABSOLUTE + 1e-12) | np.isnan(p))


def test_the_relative_bounds_are_reached() -> None:
    assert METHOD.bound().value == pytest.approx(0.1267, abs=5e-5)
    # A sum of integer powers whose mantissa is the worst, and an element far below whose quotient's is.
    u = [0.0, *(-float(k) for k in range(1, 40) if int(FRACTION * 2**k) % 2)]
    total = math.floor(math.log2(sum(2.0**v for v in u))) + sum(2.0**v for v in u) - 1
    x = octaves(np.array([*u, total + FRACTION - 50]))
    assert METHOD.evaluate(x)[-1] / softmax_rows(x)[-1] == pytest.approx(WORST**2, abs=1e-6)
    # Many elements at the worst fraction that sum, with the largest, to a power of two.
    part = (1 + FRACTION) / 2
    n = 1 << 16
    last = (n - 1 - part * math.floor((n - 1) / part - 1)) / 2
    u = np.array([0.0] + [FRACTION - 1] * math.floor((n - 1) / part - 1) + [math.log2(last)] * 2)
    y, p = METHOD.evaluate(octaves(u)), softmax_rows(octaves(u))
    assert y[0] / p[0] == pytest.approx(1 / WORST, rel=1e-3)


def test_the_absolute_bound_is_reached() -> None:
    bits = [k for k in range(1, 40) if int((math.sqrt(2) - 1) * 2**k) % 2]
    x = octaves(np.array([0.0, *(-float(k) for k in bits)]))
    assert METHOD.evaluate(x)[0] - softmax_rows(x)[0] == pytest.approx(ABSOLUTE, abs=1e-9)


@given(rows)
def test_rows_sum_to_between_one_and_nine_eighths(x: np.ndarray) -> None:
    sums = METHOD.evaluate(x).sum(axis=-1)
    assert np.all(((sums >= 1 - 1e-12) & (sums <= 9 / 8 + 1e-12)) | np.isnan(sums))


def test_the_largest_sum_is_reached() -> None:
    np.testing.assert_allclose(METHOD.evaluate(octaves(np.array([0.0, -1.0]))), [0.75, 0.375], rtol=1e-15)


@given(st.lists(st.one_of(st.floats(-30, 30, width=32), st.just(-INF)), min_size=1, max_size=12))
def test_weights_keep_the_order_of_the_logits(row: list[float]) -> None:
    x = np.sort(np.array(row, np.float32))
    for y in (METHOD.evaluate(x), body(METHOD, "Softmax", x)):
        if np.isnan(y).any():
            assert (x == -INF).all()
            continue
        assert (np.diff(y) >= 0).all()
        assert ((y >= 0) & (y <= 1)).all()
        equal = np.flatnonzero(x[1:] == x[:-1])
        np.testing.assert_array_equal(y[equal], y[equal + 1])
        assert (y[x == -INF] == 0).all()


@given(hnp.arrays(np.float32, 9, elements=st.integers(-64, 64)), st.integers(-1000, 1000))
def test_shifts_change_nothing(x: np.ndarray, by: int) -> None:
    np.testing.assert_array_equal(METHOD.evaluate(x + by), METHOD.evaluate(x))


@given(hnp.arrays(np.float32, 9, elements=st.floats(-20, 20, width=32)))
def test_integers_give_the_same(x: np.ndarray) -> None:
    """Fixed point with 23 fractional bits, powers and quotient by integer addition, the sum alone in floats."""
    u = np.round((x.astype(np.float64) - x.max()) * LOG2_E * 2**23).astype(np.int64)
    e = paexp2_bits(u)
    y = padiv_bits(e, np.full(e.shape, e.sum(dtype=np.float32)))
    np.testing.assert_allclose(y, METHOD.evaluate(x), rtol=2.0**-19)


@pytest.mark.parametrize("axis", [0, 1])
def test_ugly_rows(axis: int) -> None:
    """NaN just where Softmax has it, and masks are 0."""
    x = UGLY if axis == 1 else np.ascontiguousarray(UGLY.T)
    y = body(METHOD, "Softmax", x, {"axis": axis})
    y = y if axis == 1 else y.T
    exact = softmax_rows(UGLY)
    np.testing.assert_allclose(y, exact, rtol=METHOD.bound().value + 1e-4, atol=TINY)
    np.testing.assert_allclose(y, METHOD.evaluate(UGLY), rtol=1e-4, atol=TINY)
    assert (y[np.isneginf(UGLY) & ~np.isnan(exact)] == 0).all()


def test_one_element_one_peak_flat_rows_and_denormals() -> None:
    alone = np.array([[[0.0]], [[1e-42]], [[1e4]], [[-3e38]]], np.float32)
    np.testing.assert_array_equal(body(METHOD, "Softmax", alone), np.ones_like(alone))
    long = np.zeros(65_536, np.float32)
    np.testing.assert_array_equal(body(METHOD, "Softmax", long), np.full_like(long, 2.0**-16))
    long[77] = 1e4
    np.testing.assert_array_equal(body(METHOD, "Softmax", long), long == 1e4)
    tiny = body(METHOD, "Softmax", np.full((1, 4), 1e-42, np.float32))
    np.testing.assert_array_equal(tiny, np.full((1, 4), 0.25, np.float32))


@pytest.mark.parametrize("n", [2**k + j for k in (1, 2, 5, 10, 13) for j in (-1, 0, 1)])
def test_sums_at_powers_of_two_and_between(n: int) -> None:
    """The logarithm of such a sum may round to either side."""
    x = np.zeros(n, np.float32)
    np.testing.assert_allclose(body(METHOD, "Softmax", x), METHOD.evaluate(x), rtol=4 * U * 16)
