"""Arithmetic by additions of bit patterns: the real-valued definitions against the integers, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowerkit.numerics.piecewise_affine import (
    WORST,
    padiv,
    padiv_bits,
    paexp2,
    paexp2_bits,
    palog2,
    palog2_bits,
    pamul,
    pamul_bits,
)

TINY, HUGE = 2.0**-126, float(np.finfo(np.float32).max)
normal = st.one_of(
    st.floats(2.0**-126, HUGE, width=32),
    st.floats(-HUGE, -(2.0**-126), width=32),
    st.sampled_from([1.0, -1.0, 1.5, 3.0, TINY, HUGE]),
)
#: Powers of two, their neighbours, and mantissas between.
GRID = np.unique(
    [
        np.nextafter(np.float32(m * 2.0**k), np.float32(way * np.inf))
        for k in range(-120, 121, 5)
        for m in (1, 1.25, 1.5, 1.999)
        for way in (-1, 1)
    ]
    + [np.float32(2.0**k) for k in range(-126, 128)]
)


def saturated(real: np.ndarray) -> np.ndarray:
    """As the integers do it: powers below 2^-126 are 0, those from 2^128 inf."""
    size = np.abs(real)
    return np.copysign(np.where(size < TINY, 0, np.where(size >= 2.0**128, np.inf, size)), real)


def same(bits: np.ndarray, real: np.ndarray) -> None:
    """Equal in value and sign, with nothing rounded: `real` is a float32."""
    assert bits.dtype == np.float32
    expected = saturated(real)
    np.testing.assert_array_equal(bits.astype(np.float64), expected)
    np.testing.assert_array_equal(np.signbit(bits), np.signbit(expected))


def test_products_and_quotients_are_integer_additions_on_a_grid() -> None:
    a, b = np.meshgrid(GRID, np.concatenate([GRID, -GRID]))
    same(pamul_bits(a, b), pamul(a, b))
    same(padiv_bits(a, b), padiv(a, b))


@given(a=normal, b=normal)
def test_products_and_quotients_are_integer_additions(a: float, b: float) -> None:
    x, y = np.array([a], np.float32), np.array([b], np.float32)
    same(pamul_bits(x, y), pamul(x, y))
    same(padiv_bits(x, y), padiv(x, y))


@given(a=st.floats(2.0**-126, HUGE, width=32))
def test_logarithms_are_bit_patterns(a: float) -> None:
    x = np.array([a], np.float32)
    (fixed,) = palog2_bits(x)
    assert fixed == x.view(np.int32)[0] - np.float32(1).view(np.int32)
    assert fixed / 2**23 == palog2(x)[0]
    np.testing.assert_array_equal(paexp2(palog2(x)), x)
    np.testing.assert_array_equal(paexp2_bits(palog2_bits(x)), x)


@given(fixed=st.integers(-200 << 23, 200 << 23))
def test_powers_are_bit_patterns(fixed: int) -> None:
    same(paexp2_bits(np.array([fixed])), paexp2(np.array([fixed]) / 2**23))


def test_powers_and_logarithms_between_two_integers_at_every_float32_mantissa() -> None:
    fixed = np.arange(1 << 23)
    same(paexp2_bits(fixed), paexp2(fixed / 2**23))
    x = 1 + fixed / 2**23
    np.testing.assert_array_equal(palog2(x) * 2**23, fixed)
    np.testing.assert_array_equal(palog2_bits(x.astype(np.float32)), fixed)
    ratio = paexp2(fixed / 2**23) / np.exp2(fixed / 2**23)
    assert ratio.min() >= 1 - 1e-15
    assert WORST - 1e-12 <= ratio.max() <= WORST + 1e-15
    assert np.log2(WORST) == pytest.approx(0.0861, abs=5e-5)


@given(a=normal, b=normal)
def test_ranges_of_products_and_quotients(a: float, b: float) -> None:
    assert 8 / 9 - 1e-14 <= pamul(np.float64(a), np.float64(b)) / (a * b) <= 1 + 1e-14
    assert 1 - 1e-14 <= padiv(np.float64(a), np.float64(b)) / (a / b) <= 9 / 8 + 1e-14


def test_ranges_are_reached_and_powers_of_two_are_exact() -> None:
    assert pamul(np.array(1.5), np.array(1.5)) == 2
    assert padiv(np.array(1.0), np.array(1.5)) == 0.75
    powers = 2.0 ** np.arange(-60, 60)
    np.testing.assert_array_equal(pamul(powers, np.array(-1.25)), powers * -1.25)
    np.testing.assert_array_equal(padiv(np.array(1.75), powers), 1.75 / powers)


def test_zeros_and_infinities_are_as_in_ordinary_arithmetic() -> None:
    a, b = np.meshgrid([0.0, -0.0, 2.0, -2.0, np.inf, -np.inf, np.nan], [0.0, -4.0, np.inf, np.nan])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(pamul(a, b), a * b)
        np.testing.assert_array_equal(padiv(a, b), a / b)
    np.testing.assert_array_equal(paexp2(np.array([-np.inf, np.inf, np.nan])), [0, np.inf, np.nan])
    np.testing.assert_array_equal(
        palog2(np.array([0, np.inf, np.nan, -1])), [-np.inf, np.inf, np.nan, np.nan]
    )
    np.testing.assert_array_equal(paexp2(np.array([-1e300, 1e300])), [0, np.inf])
