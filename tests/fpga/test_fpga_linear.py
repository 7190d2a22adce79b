"""Products with constant weights and of two activations: bit for bit what exact float64 arithmetic gives."""

from __future__ import annotations

import csim
import numpy as np
import pytest
from codes import codes, formats, roundings
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.contract import constant_sums
from lowerkit.targets.fpga.kernels.linear import linear, matmul
from lowerkit.targets.fpga.kernels.schedule import split
from lowerkit.targets.fpga.kernels.traffic import words_read
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.lang.interpret import run

X, W, Y = Fixed(8, 3), Fixed(6, 1), Fixed(8, 4)


def divisors(*sizes: int) -> list[int]:
    found = {1}
    for size in sizes:
        found = {a * b for a in found for b in range(1, size + 1) if size % b == 0}
    return sorted(found)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_linear_is_exact(data: st.DataObject) -> None:
    inner, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    rows = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    x, y, rounding = data.draw(formats), data.draw(formats), data.draw(roundings)
    per_column = data.draw(st.booleans())
    weight = (
        data.draw(st.lists(formats, min_size=columns, max_size=columns)) if per_column else data.draw(formats)
    )
    each = weight if isinstance(weight, list) else [weight] * columns
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    w = np.stack([codes(rng, (inner,), f) for f in each], 1)
    bias = rng.integers(-5000, 5001, columns) if data.draw(st.booleans()) else None
    reuse = data.draw(st.sampled_from(divisors(columns, inner)))
    kernel, cost = linear("f", rows, w, x, weight, y, bias=bias, rounding=rounding, reuse=reuse)
    given_x = codes(rng, (*rows, inner), x, batch=4)
    steps = np.array([f.step for f in each])
    exact = x.dequantise(given_x) @ (w * steps)
    if bias is not None:
        exact = exact + bias * steps * x.step
    np.testing.assert_array_equal(run(kernel, {"x": given_x})["y"], y.quantise(exact, rounding))
    assert cost.ii == reuse
    assert cost.cycles == reuse * int(np.prod(rows))
    assert cost.multipliers == inner * columns // reuse


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_matmul_is_exact(data: st.DataObject) -> None:
    m, inner, n = (data.draw(st.integers(1, 6)) for _ in range(3))
    lead = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    a, b, y, rounding = (data.draw(s) for s in (formats, formats, formats, roundings))
    transposed, reuse = data.draw(st.booleans()), data.draw(st.sampled_from(divisors(n, inner)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kernel, cost = matmul(
        "f", lead, (m, inner, n), a, b, y, transposed=transposed, rounding=rounding, reuse=reuse
    )
    left = codes(rng, (*lead, m, inner), a, batch=4)
    right = codes(rng, (*lead, n, inner) if transposed else (*lead, inner, n), b, batch=4)
    other = np.swapaxes(right, -1, -2) if transposed else right
    exact = a.dequantise(left) @ b.dequantise(other)
    np.testing.assert_array_equal(run(kernel, {"a": left, "b": right})["y"], y.quantise(exact, rounding))
    assert (cost.ii, cost.multipliers) == (reuse, inner * n // reuse)
    assert cost.cycles == reuse * m * int(np.prod(lead))


def test_the_accumulator_is_as_narrow_as_the_weights_allow() -> None:
    w = np.array([[1, -3], [2, 0], [-1, 5]])
    assert constant_sums(w, Range(-8, 7)) == Range(7 * -3 + 5 * -8, 7 * 5 + -8 * -3)
    assert constant_sums(w, Range(0, 15)) == Range(-45, 75)
    assert constant_sums(w, Range(0, 15), np.array([100, -7])) == Range(-52, 145)
    # Weights too wide for int64 sums, which cancel nothing: refused instead of wrapped.
    with pytest.raises(ValueError, match="63 bits"):
        constant_sums(np.full((4, 1), 2**31), Range(-(2**31), 2**31 - 1))


def test_every_end_of_the_range_is_reached() -> None:
    rng = np.random.default_rng(0)
    w = codes(rng, (12, 5), W)
    found = constant_sums(w, X.range)
    worst = [
        np.where(w[:, c] > 0, low, high) for c in range(5) for low, high in [(X.low, X.high), (X.high, X.low)]
    ]
    sums = (np.array(worst) / X.step) @ w
    assert (sums.min(), sums.max()) == (found.low, found.high)


def test_wide_formats_do_not_overflow() -> None:
    x, w, y = Fixed(16, 8), Fixed(16, 2), Fixed(32, 20)
    rng = np.random.default_rng(1)
    weights = codes(rng, (64, 3), w)
    kernel, _ = linear("f", (), weights, x, w, y)
    given_x = codes(rng, (64,), x, batch=4)
    exact = y.quantise((given_x @ weights) * (x.step * w.step))
    np.testing.assert_array_equal(run(kernel, {"x": given_x})["y"], exact)


def test_a_reuse_factor_that_does_not_divide_is_refused_with_one_that_does() -> None:
    assert split(12, (4, 9)) == (4, 3)
    assert split(6, (4, 9)) == (2, 3)
    with pytest.raises(ValueError, match="4 does"):
        split(5, (4, 9))
    with pytest.raises(ValueError, match="36 does"):
        split(1000, (4, 9))


def test_codes_outside_of_the_weight_format_are_refused() -> None:
    with pytest.raises(ValueError, match="no codes"):
        linear("f", (), np.array([[40]]), X, W, Y)
    with pytest.raises(ValueError, match="2 weight formats for 1"):
        linear("f", (), np.array([[1]]), X, [W, W], Y)
    with pytest.raises(ValueError, match="bias"):
        linear("f", (), np.array([[1]]), X, W, Y, bias=np.array([1, 2]))


@pytest.mark.parametrize("reuse", [1, 2, 12, 24])
def test_printed_linear(tmp_path, reuse: int) -> None:
    rng = np.random.default_rng(reuse)
    weight = [W, Fixed(6, 3), Fixed(4, 1), Fixed(6, 0)]
    w = np.stack([codes(rng, (6,), f) for f in weight], 1)
    kernel, _ = linear("f", (3,), w, X, weight, Y, bias=rng.integers(-900, 900, 4), reuse=reuse)
    given_x = {"x": codes(rng, (3, 6), X, batch=6)}
    np.testing.assert_array_equal(csim.run(kernel, given_x, tmp_path)["y"], run(kernel, given_x)["y"])


@pytest.mark.parametrize("transposed", [False, True])
def test_printed_matmul(tmp_path, transposed: bool) -> None:
    rng = np.random.default_rng(3)
    kernel, _ = matmul("f", (2,), (3, 4, 6), X, Fixed(7, 0, False), Y, transposed=transposed, reuse=6)
    right = (2, 6, 4) if transposed else (2, 4, 6)
    inputs = {"a": codes(rng, (2, 3, 4), X, batch=6), "b": codes(rng, right, Fixed(7, 0, False), batch=6)}
    np.testing.assert_array_equal(csim.run(kernel, inputs, tmp_path)["y"], run(kernel, inputs)["y"])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_at_once_change_no_bit_and_read_no_more(data: st.DataObject) -> None:
    m, inner, n = (data.draw(st.integers(1, 7)) for _ in range(3))
    lead = tuple(data.draw(st.lists(st.integers(1, 2), max_size=2)))
    at_once, reuse = data.draw(st.integers(1, 8)), data.draw(st.sampled_from(divisors(n, inner)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    left, right = codes(rng, (*lead, m, inner), X, batch=3), codes(rng, (*lead, inner, n), W, batch=3)
    one, several = (
        matmul("f", lead, (m, inner, n), X, W, Y, reuse=reuse, at_once=rows) for rows in (1, at_once)
    )
    given_codes = {"a": left, "b": right}
    np.testing.assert_array_equal(run(several[0], given_codes)["y"], run(one[0], given_codes)["y"])
    groups, rows = -(-m // at_once), min(at_once, m)
    assert several[1].cycles == reuse * groups * int(np.prod(lead))
    assert several[1].multipliers == rows * one[1].multipliers
    if reuse > 1:  # Otherwise b is read once and held.
        before, after = words_read(one[0])["b"], words_read(several[0])["b"]
        assert before * several[1].cycles == after * one[1].cycles
    w = codes(rng, (inner, n), W)
    first, second = (linear("f", (*lead, m), w, X, W, Y, reuse=reuse, at_once=r)[0] for r in (1, at_once))
    np.testing.assert_array_equal(run(second, {"x": left})["y"], run(first, {"x": left})["y"])


def test_words_read_at_both_ends_of_reuse() -> None:
    def read(reuse: int, at_once: int) -> tuple[int, int]:
        found = words_read(matmul("f", (), (6, 4, 8), X, W, Y, reuse=reuse, at_once=at_once)[0])
        return found["a"], found["b"]

    # A row of a is read once and held while all columns pass; b passes for every group of rows.
    assert read(8, 1) == (6 * 4, 6 * 4 * 8)
    assert read(8, 3) == (6 * 4, 2 * 4 * 8)
    assert read(8, 4) == (2 * 4 * 4, 2 * 4 * 8)
    assert read(1, 1) == (6 * 4, 4 * 8)


@pytest.mark.parametrize(("reuse", "at_once"), [(1, 2), (6, 4), (24, 3)])
def test_printed_rows_at_once(tmp_path, reuse: int, at_once: int) -> None:
    rng = np.random.default_rng(3)
    kernel, _ = matmul("f", (2,), (5, 4, 6), X, W, Y, reuse=reuse, at_once=at_once)
    inputs = {"a": codes(rng, (2, 5, 4), X, batch=6), "b": codes(rng, (2, 4, 6), W, batch=6)}
    np.testing.assert_array_equal(csim.run(kernel, inputs, tmp_path)["y"], run(kernel, inputs)["y"])
