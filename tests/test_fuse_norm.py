"""LayerNormalization and RMSNormalization in the spellings of exporters, and what only resembles them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import canonical, operators, parse

SCALE = np.linspace(0.5, 1.5, 4).astype(np.float32)
BIAS = np.linspace(-1, 1, 4).astype(np.float32)
CONSTANTS = """int64[1] a = {-1}, float two = {2.0}, float eps = {1e-5}, float half = {0.5}, float neg = {-0.5},
    float one = {1.0}, int64[1] b = {1}, int64[1] last = {2}"""
CENTRE = "m = ReduceMean(x, a) d = Sub(x, m) "
VARIANCE = CENTRE + "q = Pow(d, two) v = ReduceMean(q, a) w = Add(v, eps) "
ROOT = VARIANCE + "r = Sqrt(w) "


def model_of(body: str, outputs: str = "float[2,3,4] y") -> str:
    return f"(float[2,3,4] x) => ({outputs}) <{CONSTANTS}> {{ {body} }}"


#: body -> number of inputs of the LayerNormalization, and its axis.
LAYER_NORM = {
    "torch": (ROOT + "n = Div(d, r) s = Mul(n, g) y = Add(s, h)", 3),
    "scale-first": (ROOT + "n = Div(d, r) s = Mul(g, n) y = Add(h, s)", 3),
    "product": (
        CENTRE
        + "q = Mul(d, d) v = ReduceMean(q, a) w = Add(eps, v) r = Sqrt(w) n = Div(d, r) s = Mul(n, g) y = Add(s, h)",
        3,
    ),
    "reciprocal": (ROOT + "i = Reciprocal(r) n = Mul(d, i) s = Mul(n, g) y = Add(s, h)", 3),
    "one-over": (ROOT + "i = Div(one, r) n = Mul(i, d) s = Mul(n, g) y = Add(s, h)", 3),
    "pow-half": (VARIANCE + "r = Pow(w, half) n = Div(d, r) s = Mul(n, g) y = Add(s, h)", 3),
    "pow-minus-half": (VARIANCE + "r = Pow(w, neg) n = Mul(d, r) s = Mul(n, g) y = Add(s, h)", 3),
    "scaled-inverse": (ROOT + "i = Reciprocal(r) k = Mul(i, g) s = Mul(d, k) y = Add(s, h)", 3),
    "two-copies": (
        """m = ReduceMean(x, a) d = Sub(x, m) m2 = ReduceMean(x, last) d2 = Sub(x, m2) q = Pow(d2, two)
        v = ReduceMean(q, a) w = Add(v, eps) r = Sqrt(w) n = Div(d, r) s = Mul(n, g) y = Add(s, h)""",
        3,
    ),
    "tensorflow": (
        ROOT + "i = Reciprocal(r) k = Mul(i, g) s = Mul(x, k) t = Mul(m, k) u = Sub(h, t) y = Add(s, u)",
        3,
    ),
    "no-bias": (ROOT + "n = Div(d, r) y = Mul(n, g)", 2),
    "no-affine": (ROOT + "y = Div(d, r)", 2),
    "bias-only": (ROOT + "n = Div(d, r) y = Add(n, h)", 3),
}  # fmt: skip


@pytest.mark.parametrize(("body", "inputs"), LAYER_NORM.values(), ids=LAYER_NORM)
def test_layer_norm(body: str, inputs: int) -> None:
    weights = {
        name: array for name, array in (("g", SCALE), ("h", BIAS)) if f" {name}" in body or f"({name}" in body
    }
    model = parse(model_of(body), **weights)
    result = canonical(model, tolerance=2e-6)
    assert operators(result) == {"LayerNormalization": 1}
    (node,) = result.graph
    assert node.attributes.get_int("axis", -1) in (-1, 2)
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-5, rel=1e-6)
    assert len(node.inputs) == inputs
    assert node.outputs[0].name == "y"
    assert "ReduceMean" in node.metadata_props["lowerkit.spelled"]


def test_layer_norm_over_the_last_axes() -> None:
    body = (ROOT + "n = Div(d, r) s = Mul(n, g) y = Add(s, h)").replace("a)", "bb)")
    rng = np.random.default_rng(3)
    arrays = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("g", "h")}
    result = canonical(parse(model_of(body), bb=np.array([1, 2]), **arrays), tolerance=2e-6)
    assert operators(result) == {"LayerNormalization": 1}
    assert result.graph[0].attributes.get_int("axis", -1) in (-2, 1)


def test_a_scale_that_broadcasts_over_the_normalised_axes() -> None:
    body = (ROOT + "n = Div(d, r) s = Mul(n, g) y = Add(s, h)").replace("a)", "bb)")
    result = canonical(parse(model_of(body), bb=np.array([1, 2]), g=SCALE, h=BIAS), tolerance=2e-6)
    assert operators(result) == {"LayerNormalization": 1}


SQUARE = "q = Mul(x, x) v = ReduceMean(q, a) w = Add(v, eps) r = Sqrt(w) "
RMS_NORM = {
    "div": SQUARE + "n = Div(x, r) y = Mul(n, g)",
    "reciprocal": SQUARE + "i = Reciprocal(r) n = Mul(x, i) y = Mul(g, n)",
    "pow": "q = Pow(x, two) v = ReduceMean(q, a) w = Add(v, eps) i = Pow(w, neg) n = Mul(x, i) y = Mul(n, g)",
    "scaled-inverse": SQUARE + "i = Reciprocal(r) k = Mul(i, g) y = Mul(x, k)",
    "no-scale": SQUARE + "y = Div(x, r)",
    "no-op-casts": "f = Cast<to = 1>(x) q = Mul(f, f) v = ReduceMean(q, a) w = Add(v, eps) r = Sqrt(w) "
    "n = Div(f, r) c = Cast<to = 1>(n) y = Mul(c, g)",
}


@pytest.mark.parametrize("body", RMS_NORM.values(), ids=RMS_NORM)
def test_rms_norm(body: str) -> None:
    weights = {"g": SCALE} if "g" in body.replace("neg", "") else {}
    result = canonical(parse(model_of(body), **weights), tolerance=2e-6)
    assert operators(result) == {"RMSNormalization": 1}
    (node,) = result.graph
    assert node.outputs[0].name == "y"
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-5, rel=1e-6)


def test_rms_norm_in_half_precision_computes_in_single() -> None:
    """Casts around the formula stay, so that its precision stays."""
    text = """(float16[2,3,4] x) => (float16[2,3,4] y) <int64[1] a = {-1}, float two = {2.0}, float eps = {1e-5}>
    { f = Cast<to = 1>(x) q = Pow(f, two) v = ReduceMean(q, a) w = Add(v, eps) r = Sqrt(w) i = Reciprocal(r)
    n = Mul(f, i) c = Cast<to = 10>(n) y = Mul(g, c) }"""
    result = canonical(parse(text, g=SCALE.astype(np.float16)), tolerance=1e-3)
    assert operators(result) == {"Cast": 2, "RMSNormalization": 1, "Mul": 1}


NEAR_MISSES = {
    "axes-differ": CENTRE + "q = Pow(d, two) v = ReduceMean(q, b) w = Add(v, eps) r = Sqrt(w) y = Div(d, r)",
    "not-the-last-axis": "m = ReduceMean(x, b) d = Sub(x, m) q = Pow(d, two) v = ReduceMean(q, b) w = Add(v, eps)"
    " r = Sqrt(w) y = Div(d, r)",
    "epsilon-outside": CENTRE + "q = Pow(d, two) v = ReduceMean(q, a) r = Sqrt(v) w = Add(r, eps) y = Div(d, w)",
    "epsilon-outside-rms": "q = Mul(x, x) v = ReduceMean(q, a) r = Sqrt(v) w = Add(r, eps) y = Div(x, w)",
    "epsilon-a-tensor": CENTRE + "q = Pow(d, two) v = ReduceMean(q, a) w = Add(v, g) r = Sqrt(w) y = Div(d, r)",
    "cubed": CENTRE + "q = Pow(d, two) c = Mul(q, two) v = ReduceMean(c, a) w = Add(v, eps) r = Sqrt(w) y = Div(d, r)",
    "no-root": VARIANCE + "y = Div(d, w)",
    "of-another": VARIANCE + "r = Sqrt(w) z = Abs(x) y = Div(z, r)",
    "sum-of-squares": "q = Mul(x, x) v = ReduceSum(q, a) w = Add(v, eps) r = Sqrt(w) y = Div(x, r)",
    "minus-epsilon": "q = Mul(x, x) v = ReduceMean(q, a) w = Sub(v, eps) z = Abs(w) r = Sqrt(z) y = Div(x, r)",
}  # fmt: skip


@pytest.mark.parametrize("body", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_stay(body: str) -> None:
    weights = {"g": np.abs(SCALE)} if ", g)" in body else {}
    found = operators(canonical(parse(model_of(body), **weights)))
    assert not {"LayerNormalization", "RMSNormalization"} & set(found)


def test_a_scale_along_another_axis_stays_outside() -> None:
    tall = np.linspace(1, 2, 3).astype(np.float32).reshape(3, 1)
    body = ROOT + "n = Div(d, r) s = Mul(n, g) y = Add(s, h)"
    result = canonical(parse(model_of(body), g=tall, h=tall), tolerance=2e-6)
    assert operators(result) == {"LayerNormalization": 1, "Mul": 1, "Add": 1}


def test_a_computed_scale_stays_outside() -> None:
    text = f"(float[2,3,4] x, float[4] g) => (float[2,3,4] y) <{CONSTANTS}> {{ {ROOT} n = Div(d, r) y = Mul(n, g) }}"
    assert operators(canonical(parse(text), tolerance=2e-6)) == {"LayerNormalization": 1, "Mul": 1}


def test_outputs_among_the_intermediates_survive() -> None:
    text = model_of(ROOT + "n = Div(d, r) y = Mul(n, g)", "float[2,3,4] y, float[2,3,4] n, float[2,3,1] m")
    result = canonical(parse(text, g=SCALE), tolerance=2e-6)
    assert [value.name for value in result.graph.outputs] == ["y", "n", "m"]
    assert operators(result)["LayerNormalization"] >= 1
    assert operators(result)["ReduceMean"] == 1
