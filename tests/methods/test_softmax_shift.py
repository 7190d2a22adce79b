"""Softmax by shifts: its integers exactly, its bound, and the single pass that it stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import body, model_of
from test_softmax_methods import UGLY

from lowerkit.errors import PlanError
from lowerkit.numerics.rows import softmax_rows
from lowerkit.passes import registry
from lowerkit.passes.softmax.shift import HIGH, LOW, Shift

INF = np.inf
METHODS = [
    Shift(),
    Shift(input_bits=10, table_bits=16, reciprocal_bits=10, output_bits=15, longest=64),
    Shift(input_bits=4, table_bits=8, reciprocal_bits=4, output_bits=8, longest=16),
    Shift(input_bits=12, table_bits=24, reciprocal_bits=14, output_bits=24, longest=16),
]
each = pytest.mark.parametrize("method", METHODS, ids=str)
logits = st.one_of(
    st.floats(-40, 40, width=32),
    st.floats(-1, 1, width=32),
    st.sampled_from([-INF, 0.0, 1.0, 1e4, -1e4, 1e-42, -1e-42, 3e38, -3e38, 2.0**29, 2.0**29 + 32]),
)
rows = hnp.arrays(np.float32, st.tuples(st.just(3), st.integers(1, 16)), elements=logits)


def streamed(method: Shift, row: np.ndarray) -> int:
    """The sum by the recurrence of the single pass, in Python's integers."""
    table = [int(entry) for entry in method.tables()[0]]
    steps = 2**method.input_bits
    largest, total = None, 0

    def shifted(value: int, by: int) -> int:
        # Nothing is left of any number here after 99.
        return value if by == 0 else (value + (1 << (min(by, 99) - 1))) >> min(by, 99)

    for q in (int(q) for q in method.logits(row) if q != -INF):
        top = -(-q // steps)
        if largest is None or top > largest:
            total = shifted(total, 0 if largest is None else top - largest)
            largest = top
        whole, fraction = divmod(largest * steps - q, steps)
        total += shifted(table[fraction], whole)
    return total


def test_the_constant_is_log2_of_e_in_two_float32() -> None:
    assert np.float32(HIGH) == HIGH
    assert np.float32(LOW) == LOW
    assert abs(HIGH + LOW - math.log2(math.e)) <= 2.0**-50


@each
@given(x=rows)
@settings(max_examples=40)
def test_the_body_is_the_model_exactly(method: Shift, x: np.ndarray) -> None:
    np.testing.assert_array_equal(body(method, "Softmax", x), method.evaluate(x).astype(np.float32))


@each
@given(x=rows)
@settings(max_examples=100)
def test_the_bound_holds(method: Shift, x: np.ndarray) -> None:
    exact = softmax_rows(x)
    seen = ~np.isnan(exact)
    assert np.all(np.abs(method.evaluate(x) - exact)[seen] <= method.bound().value)


@each
def test_the_bound_is_not_far_above_what_happens(method: Shift) -> None:
    x = np.random.default_rng(0).normal(0, 2, (20_000, 16)).astype(np.float32)
    assert np.abs(method.evaluate(x) - softmax_rows(x)).max() >= method.bound().value / 12


@each
@given(x=rows)
@settings(max_examples=100)
def test_the_single_pass_is_as_near_as_stated(method: Shift, x: np.ndarray) -> None:
    """Its sum to that of `evaluate`, and its weights to softmax."""
    exact = softmax_rows(x)
    for row, p in zip(x, exact, strict=True):
        if np.isnan(p).any():
            continue
        _, e = method.exponentials(row)
        total = streamed(method, row)
        assert abs(total - e.sum()) < 0.75 * (row.size - 1) + 1
        assert 2 * total >= 2**method.table_bits
        y = method.divide(e, np.array([total], np.float64))
        assert np.abs(y - p).max() <= method.streaming_bound()


def test_the_single_pass_is_the_model_where_the_maximum_comes_first() -> None:
    method = Shift()
    x = -np.sort(-np.random.default_rng(1).normal(0, 5, (50, 300)).astype(np.float32), axis=-1)
    for row in x:
        assert streamed(method, row) == method.exponentials(row)[1].sum()
    # Rising rows shift at every integer, and lose the most.
    assert any(streamed(method, row[::-1]) != method.exponentials(row)[1].sum() for row in x)


def test_the_stated_difference_of_the_single_pass() -> None:
    method = Shift()
    assert method.streaming_bound() - method.bound().value == pytest.approx(5 * 2.0**-method.table_bits)


@each
@given(x=hnp.arrays(np.float32, 16, elements=st.floats(-30, 30, width=32)))
def test_weights_are_multiples_that_keep_the_order(method: Shift, x: np.ndarray) -> None:
    y = method.evaluate(x)
    np.testing.assert_array_equal(y * 2**method.output_bits, np.round(y * 2**method.output_bits))
    assert ((y >= 0) & (y <= 1)).all()
    assert (np.diff(y[np.argsort(x, kind="stable")]) >= 0).all()
    equal = np.flatnonzero(np.diff(np.sort(x)) == 0)
    np.testing.assert_array_equal(method.evaluate(np.sort(x))[equal], method.evaluate(np.sort(x))[equal + 1])


@each
@given(x=rows)
def test_rows_sum_to_one_within_the_reciprocal_and_the_last_rounding(method: Shift, x: np.ndarray) -> None:
    sums = method.evaluate(x).sum(axis=-1)
    allowed = 2.0 ** -(method.reciprocal_bits + 1) + 2.0**-16 + x.shape[-1] * 2.0 ** -(method.output_bits + 1)
    assert np.all((np.abs(sums - 1) <= allowed) | np.isnan(sums))


@each
def test_exponentials_are_as_near_as_stated(method: Shift) -> None:
    """Every difference: within 3/4 of a unit of the power of two, and never rising."""
    steps = 2**method.input_bits
    d = np.arange((method.table_bits + 4) * steps)
    near = np.minimum(d, int(method.last))
    e = np.floor(np.ldexp(method.tables()[0][near % steps], -(near // steps)) + 0.5)
    assert np.abs(e - np.exp2(method.table_bits - d / steps)).max() <= 0.75
    assert (np.diff(e) <= 0).all()
    assert e[steps - 1] >= 2.0 ** (method.table_bits - 1)


@pytest.mark.parametrize("axis", [0, 1])
def test_ugly_rows(axis: int) -> None:
    """NaN just where Softmax has it, and masks are 0."""
    method = Shift()
    x = UGLY if axis == 1 else np.ascontiguousarray(UGLY.T)
    y = body(method, "Softmax", x, {"axis": axis})
    y = y if axis == 1 else y.T
    exact = softmax_rows(UGLY)
    np.testing.assert_allclose(y, exact, rtol=0, atol=method.bound().value)
    assert (y[np.isneginf(UGLY) & ~np.isnan(exact)] == 0).all()
    np.testing.assert_array_equal(y, method.evaluate(UGLY).astype(np.float32))


def test_one_element_one_peak_and_denormals() -> None:
    method = Shift()
    alone = body(method, "Softmax", np.array([[[0.0]], [[1e-42]], [[1e4]], [[-3e38]]], np.float32))
    np.testing.assert_allclose(alone, 1, atol=method.bound().value)
    tiny = body(method, "Softmax", np.full((1, 4), 1e-42, np.float32))
    np.testing.assert_allclose(tiny, 0.25, atol=method.bound().value)
    peak = np.zeros(1024, np.float32)
    peak[77] = 1e4
    y = body(method, "Softmax", peak)
    np.testing.assert_allclose(y, softmax_rows(peak), atol=method.bound().value)
    assert np.count_nonzero(y) == 1


def test_long_rows_are_refused_or_allowed_for() -> None:
    x = np.random.default_rng(3).normal(0, 4, (1, 65536)).astype(np.float32)
    node = model_of("Softmax", x).graph.node("n")
    assert Shift().refuses(node) == "has rows of 65536 elements to sum, more than longest = 1024"
    wide = Shift(table_bits=24, longest=65536)
    found = body(wide, "Softmax", x)
    assert np.abs(found - softmax_rows(x)).max() <= wide.bound().value
    np.testing.assert_array_equal(found, wide.evaluate(x).astype(np.float32))
    e = wide.exponentials(x[0])[1]
    assert abs(streamed(wide, x[0]) - e.sum()) < 0.75 * 65535 + 1


@pytest.mark.parametrize("key", ["input_bits", "table_bits", "reciprocal_bits", "output_bits", "longest"])
def test_bad_options(key: str) -> None:
    for value in (0, 1 << 30, 8.0, True):
        with pytest.raises(PlanError, match=f"{key} must be an integer from"):
            registry.make("softmax", "shift", {key: value})
