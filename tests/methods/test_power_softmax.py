"""Softmax by even powers, with a division and with a polynomial reciprocal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import U, body

from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.softmax.power import FORMS, Power
from lowerkit.passes.softmax.power_polynomial import PowerPolynomial

inf, nan = np.inf, np.nan
METHODS = [Power(form=form, power=power) for form in FORMS for power in (2, 4)]
logits = st.one_of(st.floats(-20, 20, width=32), st.sampled_from([-inf, -1e4, -3e38, 0.0]))
rows = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=logits)


@pytest.mark.parametrize("method", METHODS, ids=str)
@given(rows)
def test_body_is_the_model_and_rows_are_weights(method: Power, x: np.ndarray) -> None:
    y = method.evaluate(x)
    # The power is within some U, the sum within n U; tiny powers may be flushed to zero.
    normal = np.where(np.abs(x) < 1e-4, 0, x).astype(np.float32)
    np.testing.assert_allclose(
        body(method, "Softmax", normal), method.evaluate(normal), rtol=48 * U, atol=1e-30
    )
    assert np.all(y >= 0)
    assert np.all(y.sum(-1) <= 1 + 1e-12)
    assert np.all(y[x <= -1e4] == 0)
    if method.form == "plain":
        live = np.any((x > -1e4) & (np.abs(x) > 1e-4), axis=-1)
        np.testing.assert_allclose(y.sum(-1)[live], 1, rtol=1e-12)
        unmasked = np.where(normal > -1e4, normal, 0)
        np.testing.assert_array_equal(method.evaluate(-unmasked), method.evaluate(unmasked))


def test_length_agnostic_is_stable_with_n_epsilon() -> None:
    x = np.random.default_rng(1).normal(0, 3, (4, 10))
    stable = Power(epsilon=1e-2).evaluate(x)
    np.testing.assert_allclose(Power(form="length-agnostic", epsilon=1e-3).evaluate(x), stable, rtol=1e-12)


@pytest.mark.parametrize("method", [*METHODS, PowerPolynomial()], ids=str)
def test_ugly_rows(method: Power | PowerPolynomial) -> None:
    masked = np.array([[-inf] * 4, [-1e4] * 4, [-3e38, -inf, -1e4, -inf]], np.float32)
    np.testing.assert_array_equal(body(method, "Softmax", masked), np.zeros_like(masked))
    assert np.isnan(body(method, "Softmax", np.array([[nan, 1, 2, 3]], np.float32))).all()
    assert np.isnan(body(method, "Softmax", np.array([[inf, 1]], np.float32)))[0, 0]
    ties = body(method, "Softmax", np.full((1, 4), -2, np.float32))
    np.testing.assert_allclose(ties, ties[0, 0])
    one = np.array([[4.0]], np.float32)
    np.testing.assert_allclose(body(method, "Softmax", one), 1, atol=2e-3)
    long = np.random.default_rng(2).normal(0, 0.5, (1, 65_536)).astype(np.float32)
    np.testing.assert_allclose(body(method, "Softmax", long), method.evaluate(long), rtol=1e-4, atol=1e-12)


@given(st.floats(0.3, 4000), st.integers(1, 20))
def test_reciprocal_error_holds(total: float, steps: int) -> None:
    method = PowerPolynomial(epsilon=0.0, scale=1.0, steps=steps)
    x = np.array([np.sqrt(total)])
    assert -1e-9 <= 1 - method.evaluate(x)[0] <= method.reciprocal_error() + 1e-9


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_reciprocal_error_is_reached(steps: int) -> None:
    method = PowerPolynomial(epsilon=0.0, scale=1.0, steps=steps)
    (y,) = method.evaluate(np.array([np.sqrt(method.low)]))
    np.testing.assert_allclose(1 - y, method.reciprocal_error(), rtol=1e-6)


@given(hnp.arrays(np.float32, (2, 4), elements=st.floats(1, 20, width=32)), st.integers(1, 20))
def test_polynomial_is_power_within_the_error(x: np.ndarray, steps: int) -> None:
    method = PowerPolynomial(steps=steps)
    exact = Power().evaluate(x)
    assert np.all(np.abs(method.evaluate(x) - exact) <= exact * (method.reciprocal_error() + 1e-9))
    np.testing.assert_allclose(body(method, "Softmax", x), method.evaluate(x), rtol=3e-5)


def test_fit_and_outside() -> None:
    stats = TensorStats()
    x = np.random.default_rng(3).normal(0, 3, (8, 16)).astype(np.float32)
    x[0, :4], x[1] = -inf, -1e4
    stats.update(x)
    peak = float(np.abs(x[x > -1e4]).max())
    assert Power.fit(stats, {}).scale == peak
    assert Power.fit(stats, {"scale": 3.0}).scale == 3
    fitted = PowerPolynomial.fit(stats, {})
    assert fitted.scale == peak
    assert fitted.reciprocal_error() <= 2.0**-20
    assert fitted.outside(stats) is None
    assert "leave the reciprocal's range" in str(PowerPolynomial(scale=peak, high=0.5).outside(stats))
    assert PowerPolynomial.fit(None, {}).steps == 15
    assert Power.fit(None, {}) == Power()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"power": 3}, "odd power of a negative"),
        ({"scale": 0.0}, "scale must be"),
        ({"epsilon": nan}, "epsilon must be"),
        ({"form": "odd"}, "form must be"),
    ],
)
def test_options_refused(options: dict[str, float], words: str) -> None:
    for cls in (Power, PowerPolynomial):
        with pytest.raises(ValueError, match=words):
            cls(**options)
    for bad in ({"low": 5.0, "high": 4.0}, {"steps": 0}, {"margin": 0.5}, {"low": nan}):
        with pytest.raises(ValueError, match=r"must"):
            PowerPolynomial(**bad)
