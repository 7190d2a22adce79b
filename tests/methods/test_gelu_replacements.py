"""Functions in GELU's place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import erf
from single import body

from lowerkit.passes.activation.quadratic_gelu import QuadraticForGelu
from lowerkit.passes.activation.relu_gelu import ReluForGelu
from lowerkit.passes.base import Contract

values = hnp.arrays(np.float32, (2, 5), elements=st.floats(-1e6, 1e6, width=32))


@given(x=values)
def test_they_are_what_they_say(x: np.ndarray) -> None:
    np.testing.assert_array_equal(body(ReluForGelu(), "Gelu", x), np.maximum(x, 0))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(
        body(QuadraticForGelu(), "Gelu", x), 0.125 * wide**2 + 0.25 * wide + 0.5, rtol=1e-6, atol=1e-6
    )
    assert (QuadraticForGelu().evaluate(x) >= 0.375).all()


def test_how_far_from_gelu() -> None:
    x = np.linspace(-8, 8, 100_001)
    gelu = x * (1 + erf(x / np.sqrt(2))) / 2
    far = np.abs(ReluForGelu().evaluate(x) - gelu)
    assert 0.169 < far.max() < 0.17
    assert abs(abs(x[far.argmax()]) - 0.75) < 0.01
    assert far[np.abs(x) > 4].max() < 2e-4


@pytest.mark.parametrize("method", [ReluForGelu(), QuadraticForGelu()], ids=str)
def test_ugly_numbers(method: ReluForGelu | QuadraticForGelu) -> None:
    assert method.contract is Contract.REPLACE
    y = body(method, "Gelu", np.array([np.nan, np.inf, 1e-45, -0.0], np.float32))
    assert np.isnan(y[0])
    assert np.isposinf(y[1])
    assert np.isfinite(y[2:]).all()
