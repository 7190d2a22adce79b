"""Softmax and LogSoftmax spelled out, with every guard against overflow, and what only resembles them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import canonical, difference, feeds, operators, parse

from lowerkit.graph.canonicalise import canonicalise
from lowerkit.graph.load import upgrade
from lowerkit.reference import Reference

HEAD = "(float[2,3,4] x) => (float[2,3,4] y) <int64[1] a = {AXIS}, float one = {1.0}>"
SPELLINGS = {
    "stable": "m = ReduceMax(x, a) z = Sub(x, m) e = Exp(z) s = ReduceSum(e, a) y = Div(e, s)",
    "plain": "e = Exp(x) s = ReduceSum(e, a) y = Div(e, s)",
    "reciprocal": "m = ReduceMax(x, a) z = Sub(x, m) e = Exp(z) s = ReduceSum(e, a) r = Reciprocal(s) y = Mul(r, e)",
    "inverse": "e = Exp(x) s = ReduceSum(e, a) r = Div(one, s) y = Mul(e, r)",
    "guarded": """m = ReduceMax(x, a) i = IsInf(m) n = IsNaN(m) b = Or(i, n) k = Not(b) zero = Sub(m, m)
    g = Where(k, m, zero) z = Sub(x, g) e = Exp(z) s = ReduceSum(e, a) y = Div(e, s)""",
    "log": "m = ReduceMax(x, a) z = Sub(x, m) e = Exp(z) s = ReduceSum(e, a) l = Log(s) y = Sub(z, l)",
    "log-plain": "e = Exp(x) s = ReduceSum(e, a) l = Log(s) y = Sub(x, l)",
}  # fmt: skip


@pytest.mark.parametrize("axis", [-1, 2, 1, 0])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_named(spelling: str, axis: int) -> None:
    model = parse(f"{HEAD.replace('AXIS', str(axis))} {{ {SPELLINGS[spelling]} }}")
    result = canonical(model)
    name = "LogSoftmax" if spelling.startswith("log") else "Softmax"
    assert operators(result) == {name: 1}
    (node,) = result.graph
    assert node.outputs[0].name == "y"
    assert node.attributes.get_int("axis", -1) % 3 == axis % 3
    assert "Exp" in node.metadata_props["lowerkit.spelled"]


def test_axes_as_an_attribute() -> None:
    model = parse(
        """(float[2,3,4] x) => (float[2,3,4] y) <int64[1] a = {1}>
        { m = ReduceMax<axes = [1]>(x) z = Sub(x, m) e = Exp(z) s = ReduceSum(e, a) y = Div(e, s) }""",
        opset=17,
    )
    upgrade(model)
    result = canonical(model)
    assert operators(result) == {"Softmax": 1}
    assert result.graph[0].attributes.get_int("axis", -1) in (1, -2)


def test_no_overflow_where_the_spelled_form_had_one() -> None:
    """exp(100) is not a float32. The named operator gives what was meant, and that is documented."""
    model = parse(f"{HEAD.replace('AXIS', '-1')} {{ {SPELLINGS['plain']} }}")
    inputs = {"x": np.full((2, 3, 4), 100, np.float32)}
    assert np.isnan(Reference(model)(inputs)["y"]).all()
    np.testing.assert_allclose(Reference(canonicalise(model))(inputs)["y"], 0.25)


NEAR_MISSES = {
    "two-axes": "e = Exp(x) s = ReduceSum(e, ab) y = Div(e, s)",
    "mean": "e = Exp(x) s = ReduceMean(e, a) y = Div(e, s)",
    "another-sum": "e = Exp(x) w = Abs(x) s = ReduceSum(w, a) y = Div(e, s)",
    "plus-epsilon": "e = Exp(x) s = ReduceSum(e, a) t = Add(s, one) y = Div(e, t)",
    "plus-one-over": "e = Exp(x) s = ReduceSum(e, a) w = Div(e, s) y = Mul(w, three)",
    "swish-like": "e = Sigmoid(x) s = ReduceSum(e, a) y = Div(e, s)",
}


@pytest.mark.parametrize("body", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_stay(body: str) -> None:
    weights = (
        "<int64[1] a = {-1}, int64[1] b = {1}, int64[2] ab = {1, 2}, float one = {1.0}, float three = {3.0}>"
    )
    result = canonical(parse(f"(float[2,3,4] x) => (float[2,3,4] y) {weights} {{ {body} }}"))
    expected = 1 if body is NEAR_MISSES["plus-one-over"] else 0
    assert operators(result)["Softmax"] == expected


def test_only_what_is_constant_along_the_axis_cancels() -> None:
    """x - max over another axis differs along the softmax axis, so it stays in the exponent."""
    model = parse(
        """(float[2,3,4] x) => (float[2,3,4] y) <int64[1] a = {-1}, int64[1] b = {1}>
        { m = ReduceMax(x, b) z = Sub(x, m) e = Exp(z) s = ReduceSum(e, a) y = Div(e, s) }"""
    )
    assert operators(canonical(model)) == {"ReduceMax": 1, "Sub": 1, "Softmax": 1}


def test_a_sum_without_its_dimension_stays() -> None:
    model = parse(
        """(float[4,4] x) => (float[4,4] y) <int64[1] a = {-1}>
        { e = Exp(x) s = ReduceSum<keepdims = 0>(e, a) y = Div(e, s) }"""
    )
    assert "Softmax" not in operators(canonical(model))


def test_a_nan_guard_is_kept() -> None:
    """A fully masked row is NaN in Softmax, 0 behind the guard."""
    model = parse(
        """(float[2,3,4] x) => (float[2,3,4] y) <float zero = {0.0}>
        { s = Softmax(x) n = IsNaN(s) y = Where(n, zero, s) }"""
    )
    inputs = feeds(model)
    inputs["x"][0, 1] = -np.inf
    result = canonical(model, inputs=inputs)
    assert operators(result) == {"Softmax": 1, "IsNaN": 1, "Where": 1}
    assert (Reference(result)(inputs)["y"][0, 1] == 0).all()


def test_outputs_among_the_intermediates_survive() -> None:
    model = parse(
        """(float[2,3,4] x) => (float[2,3,4] y, float[2,3,4] e) <int64[1] a = {-1}>
        { e = Exp(x) s = ReduceSum(e, a) y = Div(e, s) }"""
    )
    result = canonical(model)
    assert operators(result) == {"Softmax": 1, "Exp": 1}
    assert difference(model, result) < 1e-6
