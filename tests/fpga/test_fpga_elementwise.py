"""Arithmetic of single elements and their movement: bit for bit what numpy gives."""

from __future__ import annotations

import csim
import numpy as np
import pytest
from codes import codes, formats, roundings
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import elementwise, layout
from lowerkit.targets.fpga.kernels.narrow import narrow
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Builder

X, Y = Fixed(8, 3), Fixed(7, 4)
seeds = st.integers(0, 2**32 - 1)
PAIRS = [((4,), (4,)), ((2, 4), (4,)), ((2, 1, 4), (3, 1)), ((1,), (2, 4)), ((3, 4), (3, 1))]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(PAIRS), st.sampled_from(["add", "sub", "mul"]), formats, formats, formats, roundings,
    st.booleans(), st.sampled_from([1, 2, 4]), seeds,
)  # fmt: skip
def test_pairs_are_exact(shapes, op, a, b, y, rounding, constant, lanes, seed) -> None:
    rng = np.random.default_rng(seed)
    left, right = codes(rng, shapes[0], a, batch=4), codes(rng, shapes[1], b, batch=4)
    other = right[0] if constant else shapes[1]
    options = {"negate": op == "sub"} if op != "mul" else {}
    make = elementwise.multiply if op == "mul" else elementwise.add
    out = np.broadcast_shapes(*shapes)
    if out[-1] % lanes:
        lanes = 1
    kernel, cost = make("f", shapes[0], other, a, b, y, rounding=rounding, lanes=lanes, **options)
    inputs = {"a": left} if constant else {"a": left, "b": right}
    got = run(kernel, inputs)["y"]
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[op]
    for n in range(4):
        exact = function(a.dequantise(left[n]), b.dequantise(right[0] if constant else right[n]))
        np.testing.assert_array_equal(got[n], y.quantise(exact, rounding))
    assert (cost.multipliers, cost.cycles, cost.ii) == (lanes * (op == "mul"), int(np.prod(out)) // lanes, 1)


@settings(max_examples=50, deadline=None)
@given(formats, formats, roundings, st.integers(-300, 300), st.integers(0, 200), formats, seeds)
def test_single_elements_are_exact(x, y, rounding, low, width, factor, seed) -> None:
    rng = np.random.default_rng(seed)
    given_x = codes(rng, (2, 5), x, batch=4)
    code = int(rng.integers(factor.range.low, factor.range.high, endpoint=True))
    real = x.dequantise(given_x)
    cases = [
        (elementwise.requantise("f", (2, 5), x, y, rounding=rounding), real),
        (elementwise.relu("f", (2, 5), x, y, rounding=rounding, lanes=5), np.maximum(real, 0)),
        (
            elementwise.limit("f", (2, 5), low, low + width, x, y, rounding=rounding),
            np.clip(real, low * x.step, (low + width) * x.step),
        ),
        (
            elementwise.scale("f", (2, 5), code, factor, x, y, rounding=rounding),
            real * factor.dequantise(np.array(code)),
        ),
    ]
    for (kernel, _), exact in cases:
        got = run(kernel, {"x": given_x})["y"]
        np.testing.assert_array_equal(got, y.quantise(exact, rounding), kernel.comment)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(-(2**30), 2**30), st.integers(0, 2**12), st.integers(-60, 110), st.integers(1, 48),
    st.integers(-60, 60), st.booleans(), roundings, seeds,
)  # fmt: skip
def test_narrow_at_extreme_shifts(low, width, fraction, bits, integer, signed, rounding, seed) -> None:
    out, numbers = Fixed(bits, integer, signed), Range(low, low + width)
    k = Builder("f", "")
    x, y = k.input("x", (9,), numbers), k.output("y", (9,), out.range)
    with k.loop("i", 9) as i:
        k.store(y, i, narrow(k.let("value", x[i]), fraction, out, rounding))
    every = np.random.default_rng(seed).integers(low, low + width, (1, 9), endpoint=True)
    every[0, :2] = low, low + width
    expected = out.quantise(every * 2.0**-fraction, rounding)
    np.testing.assert_array_equal(run(k.finish(), {"x": every})["y"], expected)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4), seeds)
def test_transpose(order, shape, seed) -> None:
    given_x = codes(np.random.default_rng(seed), tuple(shape), X, batch=2)
    kernel, cost = layout.transpose("f", shape, order, X, lanes=shape[order[-1]])
    np.testing.assert_array_equal(
        run(kernel, {"x": given_x})["y"], given_x.transpose(0, *(axis + 1 for axis in order))
    )
    assert cost.cycles == np.prod(shape) // shape[order[-1]]


@pytest.mark.parametrize(
    ("shape", "out"),
    [
        ((6, 4), (4, 6)), ((6, 4), (24,)), ((24,), (2, 3, 4)), ((2, 3, 4), (6, 4)), ((3, 8), (3, 2, 4)),
        ((1, 3, 1, 5), (15, 1)), ((1,), (1, 1)), ((5, 7, 3), (7, 15)), ((4, 9), (6, 6)), ((2, 3, 5), (5, 3, 2)),
    ],
)  # fmt: skip
def test_reshape(shape, out) -> None:
    given_x = codes(np.random.default_rng(0), shape, X, batch=3)
    kernel, cost = layout.reshape("f", shape, out, X)
    np.testing.assert_array_equal(run(kernel, {"x": given_x})["y"], given_x.reshape(3, *out))
    assert cost.cycles == np.prod(out)


def test_embedding() -> None:
    rng = np.random.default_rng(0)
    table = codes(rng, (9, 4), X)
    kernel, _ = layout.embedding("f", (6,), table, Range(0, 15), X, lanes=2)
    ids = np.array([[0, 8, 3, 3, 1, 7], [8, 8, 0, 0, 5, 15]])
    # 15 is no row: the last one is read.
    np.testing.assert_array_equal(run(kernel, {"ids": ids})["y"], table[np.minimum(ids, 8)])


def test_slices() -> None:
    given_x = codes(np.random.default_rng(0), (5, 6, 3), X, batch=2)
    kernel, _ = layout.slices("f", (5, 6, 3), (1, 5, 2), (2, 3, 1), (2, -2, 1), X)
    np.testing.assert_array_equal(run(kernel, {"x": given_x})["y"], given_x[:, 1:5:2, 5::-2, 2:])
    with pytest.raises(ValueError, match="index 1 to 6"):
        layout.slices("f", (5,), (1,), (6,), (1,), X)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    rng = np.random.default_rng(0)
    shapes = [[2, 3, 4] for _ in range(3)]
    for n, shape in enumerate(shapes):
        shape[axis] = n + 1
    own = [X, Y, Fixed(12, 2)]
    given_x = [codes(rng, tuple(s), f, batch=3) for s, f in zip(shapes, own, strict=True)]
    kernel, cost = layout.concat("f", shapes, axis, own, Y)
    got = run(kernel, {f"x{n}": x for n, x in enumerate(given_x)})["y"]
    parts = [Y.quantise(f.dequantise(x)) for f, x in zip(own, given_x, strict=True)]
    np.testing.assert_array_equal(got, np.concatenate(parts, axis if axis < 0 else axis + 1))
    assert cost.cycles == got[0].size


def test_refusals() -> None:
    with pytest.raises(ValueError, match="3 lanes"):
        elementwise.relu("f", (4,), X, Y, lanes=3)
    with pytest.raises(ValueError, match="no codes"):
        elementwise.add("f", (1,), np.array([200]), X, X, Y)
    with pytest.raises(ValueError, match="does not reshape"):
        layout.reshape("f", (4,), (5,), X)
    with pytest.raises(ValueError, match="does not join"):
        layout.concat("f", [(2, 3), (2, 4)], 0, [X, X], X)
    with pytest.raises(ValueError, match="no order"):
        layout.transpose("f", (2, 3), (0, 0), X)


ELEMENTWISE = {
    "add": lambda: elementwise.add("f", (2, 4), (4,), X, Y, Fixed(5, 2), lanes=2),
    "sub": lambda: elementwise.add("f", (2, 4), np.arange(8).reshape(2, 4), X, Y, Y, negate=True),
    "multiply": lambda: elementwise.multiply("f", (2, 4), (2, 1), X, Fixed(6, 0, False), Y),
    "limit": lambda: elementwise.limit("f", (9,), -50, 60, X, Fixed(4, 2)),
    "relu": lambda: elementwise.relu("f", (9,), X, Fixed(5, 0, False)),
    "scale": lambda: elementwise.scale("f", (9,), -37, Fixed(8, 1), X, Y, lanes=3),
    "requantise": lambda: elementwise.requantise("f", (9,), X, Fixed(20, 2)),
}
LAYOUT = {
    "transpose": lambda: layout.transpose("f", (2, 3, 4), (2, 0, 1), X),
    "reshape": lambda: layout.reshape("f", (6, 4), (4, 6), X),
    "heads": lambda: layout.reshape("f", (3, 8), (3, 2, 4), X),
    "embedding": lambda: layout.embedding(
        "f", (5,), codes(np.random.default_rng(0), (7, 3), X), Range(0, 6), X
    ),
    "slices": lambda: layout.slices("f", (5, 6), (1, 5), (2, 3), (2, -2), X),
    "concat": lambda: layout.concat("f", [(2, 3), (2, 1)], 1, [X, Fixed(12, 2)], Y),
}


@pytest.mark.parametrize("kind", [*ELEMENTWISE, *LAYOUT])
def test_printed(tmp_path, kind: str) -> None:
    kernel, _ = (ELEMENTWISE | LAYOUT)[kind]()
    rng = np.random.default_rng(0)
    inputs = {}
    for array in kernel.inputs:
        inputs[array.name] = rng.integers(array.range.low, array.range.high, (6, *array.shape), endpoint=True)
        inputs[array.name][0], inputs[array.name][1] = array.range.low, array.range.high
    np.testing.assert_array_equal(csim.run(kernel, inputs, tmp_path)["y"], run(kernel, inputs)["y"])
