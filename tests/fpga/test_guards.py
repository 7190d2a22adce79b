"""Guarded blocks: only what the guard lets through is computed, stored and checked."""

from __future__ import annotations

from contextlib import nullcontext
from trace import trace

import csim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.targets.fpga.kernels.schedule import built, count
from lowerkit.targets.fpga.lang import cpp
from lowerkit.targets.fpga.lang.access import sequential
from lowerkit.targets.fpga.lang.expr import Range, equal, minimum
from lowerkit.targets.fpga.lang.interpret import OutOfRange, run
from lowerkit.targets.fpga.lang.program import Builder, Kernel

ROWS, COLUMNS, LIMIT = 3, 5, 40


def guarded(inner: bool) -> Kernel:
    """For each row: the sum of squares of its numbers below a threshold, and where they were; else it stays 0.

    `inner` guards rows without such numbers as well, and has memory and a register within the guard.
    """
    k = Builder("guarded", "Sums of squares of what is below a threshold.")
    x = k.input("x", (ROWS, COLUMNS), Range(-20, 20))
    threshold = k.input("threshold", (ROWS,), Range(-20, 20))
    total = k.output("total", (ROWS,), Range(0, 2000))
    places = k.output("places", (ROWS, COLUMNS), Range(0, 9))
    with k.loop("row", ROWS) as row:
        limit = k.let("limit", threshold[row])
        best = k.register("best", 0, Range(0, 2000))
        with k.loop("clear", COLUMNS) as c:
            k.store(places, (row, c), 9)
        with k.when(limit > -20):
            squares = k.local("squares", (COLUMNS,), Range(0, 400))
            with k.loop("square", COLUMNS) as c, k.when(x[row, c] < limit):
                k.store(squares, c, k.let("v", x[row, c] * x[row, c], Range(0, 400)))
                k.store(places, (row, c), c)
            with k.loop("add", COLUMNS, serial=True) as c, k.when(places[row, c] < 9):
                grown = k.let("grown", best + squares[c], Range(0, 2000))
                if inner:
                    twice = k.register("twice", grown, Range(0, 4000))
                    with k.when(equal(c, 2)):
                        k.update(twice, k.let("more", grown + 0, Range(0, 2000)))
                    grown = k.let("once", twice + 0, Range(0, 2000))
                k.update(best, grown)
        k.store(total, row, best)
    return k.finish()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_guards_in_loops(seed: int, inner: bool) -> None:
    rng = np.random.default_rng(seed)
    x, threshold = rng.integers(-20, 21, (4, ROWS, COLUMNS)), rng.integers(-20, 21, (4, ROWS))
    threshold[0], threshold[1, 0] = -20, 20
    found = run(guarded(inner), {"x": x, "threshold": threshold})
    below = x < threshold[..., None]
    np.testing.assert_array_equal(found["total"], (np.where(below, x, 0) ** 2).sum(-1))
    np.testing.assert_array_equal(found["places"], np.where(below, np.arange(COLUMNS), 9))


@pytest.mark.parametrize("inner", [False, True])
def test_printed(tmp_path, inner: bool) -> None:
    rng = np.random.default_rng(0)
    inputs = {"x": rng.integers(-20, 21, (20, ROWS, COLUMNS)), "threshold": rng.integers(-20, 21, (20, ROWS))}
    inputs["threshold"][:3] = [[-20] * 3, [20] * 3, [0, 20, -20]]
    kernel = guarded(inner)
    want, found = run(kernel, inputs), csim.run(kernel, inputs, tmp_path)
    for name, array in want.items():
        np.testing.assert_array_equal(found[name], array)


def test_claims_hold_within_the_guard_alone() -> None:
    def square(guard: int) -> Kernel:
        k = Builder("f", "")
        x, y = k.input("x", (4,), Range(-20, 20)), k.output("y", (4,), Range(0, 100))
        with k.loop("i", 4) as i, k.when(x[i] <= guard):
            k.store(y, i, k.let("v", x[i] * x[i], Range(0, 100)))
        return k.finish()

    x = np.array([[-10, 10, 11, 20]])
    np.testing.assert_array_equal(run(square(10), {"x": x})["y"], [[100, 100, 0, 0]])
    with pytest.raises(OutOfRange, match="121"):
        run(square(11), {"x": x})


@pytest.mark.parametrize("inner", [False, True])
def test_what_guards_let_through_is_no_more_than_counted(inner: bool) -> None:
    kernel = guarded(inner)
    counted = count(kernel)
    rng = np.random.default_rng(0)
    found = []
    for threshold in (np.full(ROWS, -20), rng.integers(-20, 21, ROWS), np.full(ROWS, 20)):
        x = rng.integers(-20, 20, (ROWS, COLUMNS))
        x[:, 2] = -20
        found.append(trace(kernel, {"x": x, "threshold": threshold}).cycles)
    assert found[0] < found[1] <= counted.cycles
    # Everything is below 20: each guard lets all through but the one for a single column.
    assert found[2] == counted.cycles - (ROWS * (COLUMNS - 1) if inner else 0)


def filled() -> Kernel:
    """y [6, 4] from x [6]: the first `length` rows, of as many columns; others stay 0."""
    k = Builder("filled", "")
    x, length = k.input("x", (6,), Range(-8, 7)), k.input("length", (1,), Range(0, 9))
    y = k.output("y", (6, 4), Range(-8, 7))
    end = k.let("end", length[0])
    with k.loop("i", 6, serial=True) as i, k.when(i < end):
        columns = k.let("columns", minimum(end, 4))
        with k.loop("j", 4, pipeline=True) as j, k.when(j < columns):
            k.store(y, (i, j), x[i])
    return k.finish()


def test_a_loop_that_a_guard_ends(tmp_path) -> None:
    kernel = filled()
    rng = np.random.default_rng(0)
    inputs = {"x": rng.integers(-8, 8, (10, 6)), "length": np.arange(10)[:, None]}
    want = run(kernel, inputs)["y"]
    np.testing.assert_array_equal(csim.run(kernel, inputs, tmp_path)["y"], want)
    text = cpp.function(kernel)
    # The length may pass the rows, and four columns are never passed.
    assert "i < 6 && (ap_uint<4>(i) < ap_uint<4>(end))" in text
    assert "for (int j = 0; (ap_uint<3>(j) < ap_uint<3>(columns)); ++j)" in text
    assert "if (" not in text
    cycles = [trace(kernel, {name: a[n] for name, a in inputs.items()}).cycles for n in range(10)]
    rows, columns = np.minimum(np.arange(10), 6), np.minimum(np.arange(10), 4)
    assert cycles == list(1 + rows * (1 + columns))
    assert cycles[9] == count(kernel).cycles
    assert not sequential(kernel, kernel.outputs[0])


def test_nothing_is_claimed_of_an_order_behind_a_guard() -> None:
    def copied(guard: bool) -> Kernel:
        k = Builder("f", "")
        x, on = k.input("x", (6,), Range(-8, 7)), k.input("on", (6,), Range(0, 1))
        y = k.output("y", (6,), Range(-8, 7))
        with k.loop("i", 6, pipeline=True) as i, k.when(on[i]) if guard else nullcontext():
            k.store(y, i, x[i])
        return k.finish()

    found = [
        [sequential(kernel, a) for a in (*kernel.inputs, *kernel.outputs)] for kernel in map(copied, (0, 1))
    ]
    # The guard itself is read in order.
    assert found == [[True, False, True], [False, True, False]]


def test_a_guard_costs_a_cycle_where_it_stands_and_its_body_where_it_runs() -> None:
    def cost(most: int | None) -> int:
        k = Builder("f", "")
        x, y = k.input("x", (6,), Range(-8, 7)), k.output("y", (6, 4), Range(0, 49))
        with k.loop("i", 6) as i, k.when(x[i] > 0, most=most), k.loop("j", 4, pipeline=True) as j:
            a = k.let("a", x[i], Range(1, 7))
            k.store(y, (i, j), a * a)
        found = built(k.finish())[1]
        assert found.multipliers == 1
        return found.cycles

    assert (cost(None), cost(2), cost(100)) == (6 + 24, 6 + 8, 6 + 24)
