"""Softmax through cumulants: the cumulants' bounds, the method's, and rows outside."""

from __future__ import annotations

import math
import re

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import U, body
from test_softmax_methods import UGLY, softmax

from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.softmax.cgf import CUMULANT, Cgf

METHODS = [Cgf(), Cgf(spread=0.5), Cgf(order=3), Cgf(order=4, spread=3)]
ids = str
units = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=1, max_dims=1, min_side=2, max_side=12), elements=st.floats(0, 1)
)


def stats_of(x: np.ndarray) -> TensorStats:
    stats = TensorStats()
    stats.update(x)
    return stats


def cumulants(y: np.ndarray, p: np.ndarray) -> dict[int, np.ndarray]:
    """The third to fifth of the distributions (last axis) with values y and weights p."""
    d = y - (p * y).sum(axis=-1, keepdims=True)
    m = {j: (p * d**j).sum(axis=-1) for j in (2, 3, 4, 5)}
    return {3: m[3], 4: m[4] - 3 * m[2] ** 2, 5: m[5] - 10 * m[3] * m[2]}


@pytest.mark.parametrize("order", CUMULANT)
def test_cumulants_of_bounded_variables(order: int) -> None:
    """No distribution of up to four atoms in [0, 1] is beyond the bound; two atoms come to it or near it."""
    rng = np.random.default_rng(order)
    y = np.sort(rng.beta(0.3, 0.3, (300_000, 4)), axis=-1)
    p = rng.dirichlet(np.full(4, 0.3), 300_000)
    assert np.abs(cumulants(y, p)[order + 1]).max() <= CUMULANT[order]
    p = np.linspace(0, 1, 100_001)
    two = np.abs(cumulants(np.array([0.0, 1.0]), np.stack([p, 1 - p], axis=-1))[order + 1]).max()
    assert two <= CUMULANT[order] * (1 + 1e-12)
    assert two >= {2: 0.9999, 3: 0.9999, 4: 0.5}[order] * CUMULANT[order]


@pytest.mark.parametrize("method", METHODS, ids=ids)
@settings(deadline=None)
@given(units, st.floats(-100, 100))
def test_bound_holds(method: Cgf, unit: np.ndarray, shift: float) -> None:
    row = unit * method.spread * (1 - 1e-12) + shift
    with mpmath.workdps(40):
        total = sum(mpmath.exp(mpmath.mpf(float(v))) for v in row)
        truth = np.array([float(mpmath.exp(mpmath.mpf(float(v))) / total) for v in row])
    ratio = method.evaluate(row) / truth
    assert np.all(np.abs(ratio - 1) <= method.bound().value + 1e-12)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12, err_msg="one factor for the row")


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_bound_is_not_idle(method: Cgf) -> None:
    """Rows of two different values: the worst reach a good part of the bound."""
    worst = 0.0
    for n in range(2, 65):
        for ones in range(1, n):
            row = np.where(np.arange(n) < ones, method.spread, 0.0)
            worst = max(worst, float(np.abs(method.evaluate(row) / softmax(row) - 1).max()))
    least = {2: 0.6, 3: 0.6, 4: 0.3}[method.order]
    assert least * method.bound().value <= worst <= method.bound().value


@pytest.mark.parametrize("method", METHODS, ids=ids)
@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
        elements=st.one_of(st.floats(-1.5, 1.5, width=32), st.just(-np.inf)),
    ),
    st.data(),
)
def test_body_is_the_model(method: Cgf, x: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    y = np.moveaxis(body(method, "Softmax", x, {"axis": axis}), axis, -1)
    expected = method.evaluate(np.moveaxis(x, axis, -1))
    # The exponent is a sum of some numbers up to 4 (log 5, 3, 81/24): each is off by a few U.
    np.testing.assert_allclose(y, expected, rtol=100 * U)


@settings(deadline=None)
@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12), st.sampled_from(METHODS))
def test_order_is_kept_and_nothing_is_negative(row: list[float], method: Cgf) -> None:
    x = np.sort(np.array(row, np.float32))
    y = body(method, "Softmax", x)
    assert np.all(y >= 0)
    # Equal logits are equal; float32's exponential is monotone to its last digit.
    assert np.all(y[1:] >= y[:-1] * (1 - 4 * U))
    np.testing.assert_array_equal(y[1:][x[1:] == x[:-1]], y[:-1][x[1:] == x[:-1]])


@pytest.mark.parametrize("axis", [0, 1])
def test_ugly_rows(axis: int) -> None:
    """NaN just where Softmax has it, 0 for -inf."""
    x = UGLY if axis == 1 else np.ascontiguousarray(UGLY.T)
    y = body(Cgf(), "Softmax", x, {"axis": axis})
    y = y if axis == 1 else y.T
    np.testing.assert_array_equal(np.isnan(y), np.isnan(softmax(UGLY)))
    np.testing.assert_array_equal(np.isnan(Cgf().evaluate(UGLY)), np.isnan(softmax(UGLY)))
    masked = np.isneginf(UGLY) & ~np.isnan(y)
    assert not y[masked].any()


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_masks_are_left_out(method: Cgf) -> None:
    x = np.array([[0.25, 0.5, 0.0, -np.inf, -np.inf]], np.float32)
    y = body(method, "Softmax", x)
    np.testing.assert_allclose(y[:, :3], body(method, "Softmax", x[:, :3]), rtol=8 * U)
    assert not y[:, 3:].any()


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_long_and_short_rows(method: Cgf) -> None:
    rng = np.random.default_rng(2)
    long = (rng.uniform(0, method.spread, (2, 65_536))).astype(np.float32)
    y = body(method, "Softmax", long)
    np.testing.assert_allclose(y, softmax(long), rtol=method.bound().value + 1e-4)
    for value in (0.0, 1e4, -3e38, 1e-45):
        np.testing.assert_array_equal(body(method, "Softmax", np.full((2, 1), value, np.float32)), 1)
    np.testing.assert_allclose(body(method, "Softmax", np.full(7, 1e-45, np.float32)), 1 / 7, rtol=4 * U)


def test_a_lone_peak_is_outside() -> None:
    x = np.zeros((1, 65_536), np.float32)
    x[0, 5] = 1e4
    assert np.isposinf(body(Cgf(), "Softmax", x)[0, 5])
    said = Cgf().outside(stats_of(x))
    assert said == "rows are up to 1e+04 wide, and the bound holds up to 2"
    assert Cgf().outside(stats_of(x / 1e4)) is None
    assert Cgf().outside(TensorStats()) is None


@settings(deadline=None)
@given(st.floats(0.01, 100), st.sampled_from([2, 3, 4]))
def test_fitted_spread(width: float, order: int) -> None:
    x = np.array([[0.0, width, 0.3 * width]], np.float32)
    method = Cgf.fit(stats_of(x), {"order": order})
    assert isinstance(method, Cgf)
    assert method.order == order
    assert method.bound().value <= 1 + 1e-12
    assume(abs(method.widest() - width) > 1e-6)
    assert (method.outside(stats_of(x)) is None) == (width < method.widest())
    assert method.bound().value == pytest.approx(math.expm1(method.remainder()))


def test_fitting_without_rows_or_with_a_given_spread() -> None:
    flat = stats_of(np.zeros((3, 4)))
    assert Cgf.fit(None, {}) == Cgf.fit(TensorStats(), {}) == Cgf.fit(flat, {}) == Cgf()
    assert Cgf.fit(stats_of(np.eye(3)), {"spread": 1.5}) == Cgf(spread=1.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 1}, "order must be 2, 3 or 4, not 1"),
        ({"order": 2.0}, "not 2.0"),
        ({"spread": 0}, "spread must be a number above 0 and at most 16, not 0"),
        ({"spread": "2"}, "not '2'"),
        ({"spread": math.nan}, "not nan"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Cgf(**options)
