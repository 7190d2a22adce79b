"""Softmax in integers: exact in its integers, within its bound of softmax, and never an argmax lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import body, model_of

from lowerkit.errors import PlanError
from lowerkit.numerics.rows import softmax_rows
from lowerkit.passes import registry
from lowerkit.passes.softmax.fixed import Fixed

INF, NAN = np.inf, np.nan
#: 16-bit formats throughout, as <16, 6> inputs and <16, 1> outputs have them.
SIXTEEN = Fixed(input_bits=10, table_bits=16, reciprocal_bits=10, output_bits=15, longest=64)
METHODS = [Fixed(), SIXTEEN, Fixed(input_bits=4, table_bits=8, reciprocal_bits=4, output_bits=8, longest=16)]
each = pytest.mark.parametrize("method", METHODS, ids=str)
rows = hnp.arrays(np.float32, (3, 16), elements=st.one_of(st.floats(-40, 40, width=32), st.just(-INF)))


@each
@given(x=rows)
@settings(max_examples=40)
def test_the_body_is_the_model_exactly(method: Fixed, x: np.ndarray) -> None:
    np.testing.assert_array_equal(body(method, "Softmax", x), method.evaluate(x).astype(np.float32))


@each
@given(x=rows)
@settings(max_examples=60)
def test_the_bound_holds(method: Fixed, x: np.ndarray) -> None:
    exact = softmax_rows(x)
    seen = ~np.isnan(exact)
    assert np.all(np.abs(method.evaluate(x) - exact)[seen] <= method.bound().value)


@each
def test_the_bound_is_not_far_above_what_happens(method: Fixed) -> None:
    x = np.random.default_rng(0).normal(0, 2, (20_000, 16)).astype(np.float32)
    assert np.abs(method.evaluate(x) - softmax_rows(x)).max() >= method.bound().value / 8


@each
@given(x=hnp.arrays(np.float32, 16, elements=st.floats(-30, 30, width=32)))
def test_weights_are_multiples_that_keep_the_order(method: Fixed, x: np.ndarray) -> None:
    y = method.evaluate(x)
    np.testing.assert_array_equal(y * 2**method.output_bits, np.round(y * 2**method.output_bits))
    assert ((y >= 0) & (y <= 1)).all()
    assert (np.diff(y[np.argsort(x, kind="stable")]) >= 0).all()
    np.testing.assert_array_equal(method.evaluate(x.astype(np.float64) + 8), y)


def test_no_argmax_is_lost_at_sixteen_bits() -> None:
    """8,000 rows of 64 at 16 bits: where output steps decide, the same element is the largest; rows sum to 1."""
    x = np.random.default_rng(64).normal(0, 3, (8000, 64)).astype(np.float32)
    exact, found = softmax_rows(x), SIXTEEN.evaluate(x)
    top = np.sort(exact, axis=-1)
    decided = top[:, -1] - top[:, -2] > 2.0**-SIXTEEN.output_bits
    assert decided.sum() > 7900
    first = np.take_along_axis(found, exact.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    assert np.count_nonzero(found.max(axis=-1)[decided] > first[decided]) == 0
    assert np.abs(found.sum(axis=-1) - 1).max() <= 2.0**-8


def test_ugly_rows() -> None:
    method = Fixed()
    for row in ([NAN, 1, 2], [INF, 0, 1], [-INF, -INF, -INF]):
        assert np.isnan(body(method, "Softmax", np.array([row], np.float32))).all()
    huge = np.array([[1e4, 0, -1e4, 9999.5]], np.float32)
    np.testing.assert_allclose(
        body(method, "Softmax", huge)[0], softmax_rows(huge)[0], atol=method.bound().value
    )
    for row in ([3e38, -3e38, 0, 1], [2e36, 1, 2, 3], [1e30, 1e30, -1e30, 0]):
        x = np.array([row], np.float32)
        found = body(method, "Softmax", x)
        np.testing.assert_allclose(found, softmax_rows(x), atol=method.bound().value)
        np.testing.assert_array_equal(found, method.evaluate(x).astype(np.float32))
    lowest = np.array([[-3.4028235e38, 0, 1, -INF]], np.float32)
    assert (body(method, "Softmax", lowest)[0, [0, 3]] == 0).all()
    alone = body(method, "Softmax", np.zeros((2, 1), np.float32))
    np.testing.assert_allclose(alone, 1, atol=method.bound().value)
    tiny = body(method, "Softmax", np.full((1, 4), 1e-42, np.float32))
    np.testing.assert_allclose(tiny, 0.25, atol=method.bound().value)


def test_long_rows_are_refused_or_allowed_for() -> None:
    node = model_of("Softmax", np.zeros((2, 65536), np.float32)).graph.node("n")
    assert Fixed().refuses(node) == "has rows of 65536 elements to sum, more than longest = 1024"
    wide = Fixed(table_bits=24, longest=65536)
    assert wide.refuses(node) is None
    x = np.random.default_rng(3).normal(0, 4, (1, 65536)).astype(np.float32)
    assert np.abs(wide.evaluate(x) - softmax_rows(x)).max() <= wide.bound().value


@pytest.mark.parametrize("key", ["input_bits", "table_bits", "reciprocal_bits", "output_bits", "longest"])
def test_bad_options(key: str) -> None:
    for value in (0, 1 << 30, 8.0, True):
        with pytest.raises(PlanError, match=f"{key} must be an integer from"):
            registry.make("softmax", "fixed", {key: value})
