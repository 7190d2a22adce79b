"""Attention is found, computes the same in onnxruntime, and expands back into what it was."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from helpers import canonical, content, difference, feeds, operators, parse

from lowerkit.errors import UnsupportedError
from lowerkit.graph.canonicalise import canonicalise
from lowerkit.graph.expand import expand
from lowerkit.reference import Reference

INPUTS = "float[2,3,4,8] q, float[2,3,5,8] k, float[2,3,5,6] v"
SCALES = "float s = {0.35355338}, float d = {2.828427}, float r = {0.59460354}"
TRANSPOSED = "t = Transpose<perm = [0,1,3,2]>(k) "

SPELLINGS = {
    "product-divided": TRANSPOSED + "a = MatMul(q, t) b = Div(a, d) w = Softmax<axis = -1>(b) y = MatMul(w, v)",
    "product-scaled": TRANSPOSED + "a = MatMul(q, t) b = Mul(s, a) w = Softmax<axis = 3>(b) y = MatMul(w, v)",
    "q-scaled": "z = Mul(q, s) " + TRANSPOSED + "a = MatMul(z, t) w = Softmax(a) y = MatMul(w, v)",
    "k-scaled": TRANSPOSED + "z = Mul(t, s) a = MatMul(q, z) w = Softmax(a) y = MatMul(w, v)",
    "both-scaled": "z = Mul(q, r) " + TRANSPOSED + "u = Mul(t, r) a = MatMul(z, u) w = Softmax(a) y = MatMul(w, v)",
    "k-scaled-before": "z = Mul(q, r) u = Mul(k, r) t = Transpose<perm = [0,1,3,2]>(u) a = MatMul(z, t) w = Softmax(a) "
    "y = MatMul(w, v)",
    "unscaled": TRANSPOSED + "a = MatMul(q, t) w = Softmax(a) y = MatMul(w, v)",
    "softmax-spelled": TRANSPOSED + "a = MatMul(q, t) b = Mul(a, s) m = ReduceMax(b, last) z = Sub(b, m) e = Exp(z) "
    "n = ReduceSum(e, last) w = Div(e, n) y = MatMul(w, v)",
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_named_and_expanded(spelling: str) -> None:
    body = SPELLINGS[spelling]
    model = parse(f"({INPUTS}) => (float[2,3,4,6] y) <{SCALES}, int64[1] last = {{-1}}> {{ {body} }}")
    result = canonical(model)
    assert operators(result)["Attention"] == 1
    assert not operators(result)["Softmax"]
    node = result.graph.outputs[0].producer()
    assert node is not None
    scale = 1.0 if spelling == "unscaled" else 1 / math.sqrt(8)
    assert node.attributes.get_float("scale") == pytest.approx(scale, rel=1e-6)
    assert "Softmax" in node.metadata_props["lowerkit.spelled"] or spelling == "softmax-spelled"
    expand(result, frozenset({"Attention"}))
    assert operators(result)["MatMul"] == 2
    assert operators(result)["Softmax"] == 1
    assert not operators(result)["Attention"]
    assert difference(model, result) < 1e-6


def test_every_spelling_expands_into_one() -> None:
    scaled = [body for name, body in SPELLINGS.items() if name not in ("unscaled", "softmax-spelled")]
    expanded = []
    for body in scaled:
        result = canonicalise(parse(f"({INPUTS}) => (float[2,3,4,6] y) <{SCALES}> {{ {body} }}"))
        expand(result, frozenset({"Attention"}))
        expanded.append(operators(result))
    # A key scaled before its transposition stays scaled there: another value is transposed.
    assert all(ops - expanded[0] in ({}, {"Mul": 1}) for ops in expanded)


def test_transpositions_joined_into_one() -> None:
    """Exporters transpose [batch, tokens, heads, size] straight to [batch, heads, size, tokens]."""
    text = f"""(float[2,4,3,8] q0, float[2,5,3,8] k0, float[2,5,3,6] v0) => (float[2,3,4,6] y) <{SCALES}>
    {{ q = Transpose<perm = [0,2,1,3]>(q0) t = Transpose<perm = [0,2,3,1]>(k0) v = Transpose<perm = [0,2,1,3]>(v0)
    a = MatMul(q, t) b = Mul(a, s) w = Softmax(b) y = MatMul(w, v) }}"""
    assert operators(canonical(parse(text))) == {"Transpose": 3, "Attention": 1}


def test_batch_and_heads_folded() -> None:
    text = f"""(float[6,4,8] q, float[6,5,8] k, float[6,5,6] v) => (float[6,4,6] y) <{SCALES}>
    {{ t = Transpose<perm = [0,2,1]>(k) a = MatMul(q, t) b = Mul(a, s) w = Softmax(b) y = MatMul(w, v) }}"""
    model = parse(text)
    result = canonical(model)
    assert operators(result) == {"Attention": 1}
    expand(result, frozenset({"Attention"}))
    assert difference(model, result) < 1e-6


MASKS = ["4,5", "1,5", "1,1,4,5", "2,1,4,5", "2,3,4,5", "1,3,4,5", "2,1,1,5", "1,1,1,5", "2,3,1,5"]


@pytest.mark.parametrize("shape", MASKS)
def test_additive_masks(shape: str) -> None:
    text = f"""({INPUTS}, float[{shape}] m) => (float[2,3,4,6] y) <{SCALES}>
    {{ {TRANSPOSED} a = MatMul(q, t) b = Mul(a, s) c = Add(b, m) w = Softmax(c) y = MatMul(w, v) }}"""
    model = parse(text)
    result = canonical(model)
    assert operators(result)["Attention"] == 1
    expand(result, frozenset({"Attention"}))
    assert difference(model, result) < 1e-6


@pytest.mark.parametrize("low", [-1e4, -1e30, float(np.finfo(np.float32).min), -np.inf])
def test_rows_masked_altogether_mean_after_expansion_what_they_meant_before(low: float) -> None:
    """Uniform weights, or NaN. onnxruntime's own Attention makes 0 of the last two; see FuseAttention."""
    text = f"""({INPUTS}, float[2,1,4,5] m) => (float[2,3,4,6] y) <{SCALES}>
    {{ {TRANSPOSED} a = MatMul(q, t) b = Mul(a, s) c = Add(m, b) w = Softmax(c) y = MatMul(w, v) }}"""
    model = parse(text)
    fused, expanded = canonicalise(model), canonicalise(model)
    assert operators(fused)["Attention"] == 1
    expand(expanded, frozenset({"Attention"}))
    inputs = feeds(model)
    inputs["m"] = np.zeros((2, 1, 4, 5), np.float32)
    inputs["m"][:, :, :, 3:] = low
    assert difference(model, fused, inputs) < 1e-6
    assert difference(model, expanded, inputs) < 1e-6
    inputs["m"][:, :, 1:3] = low
    # Rounding at 1e4 is 1e-3, and the scale is rounded in another place.
    assert difference(model, expanded, inputs) < (1e-3 if low == -1e4 else 1e-6)


@pytest.mark.parametrize(("low", "count"), [(-1e30, 1), (float(np.finfo(np.float32).min), 0), (-np.inf, 0)])
def test_a_constant_mask_with_a_row_masked_altogether_stays(low: float, count: int) -> None:
    text = f"""({INPUTS}) => (float[2,3,4,6] y) <{SCALES}>
    {{ {TRANSPOSED} a = MatMul(q, t) b = Mul(a, s) c = Add(b, m) w = Softmax(c) y = MatMul(w, v) }}"""
    mask = np.where(np.tri(4, 5, dtype=bool), 0, low).astype(np.float32)
    assert operators(canonical(parse(text, m=mask)))["Attention"] == 1
    mask[2] = low
    assert operators(canonical(parse(text, m=mask)))["Attention"] == count


KEPT = {
    "where-mask": ("bool[4,5] m", "c = Where(m, b, low) w = Softmax(c) y = MatMul(w, v)"),
    "nan-guard": (
        "float[4,5] m",
        "c = Add(b, m) p = Softmax(c) n = IsNaN(p) w = Where(n, zero, p) y = MatMul(w, v)",
    ),
    "other-axis": ("float[4,5] m", "c = Add(b, m) w = Softmax<axis = 2>(c) y = MatMul(w, v)"),
    "softcap": ("float[4,5] m", "c = Tanh(b) e = Add(c, m) w = Softmax(e) y = MatMul(w, v)"),
    "negative-scale": ("float[4,5] m", "f = Neg(b) c = Add(f, m) w = Softmax(c) y = MatMul(w, v)"),
    "weights-changed": ("float[4,5] m", "c = Softmax(b) w = Mul(c, m) y = MatMul(w, v)"),
}


@pytest.mark.parametrize(("mask", "body"), KEPT.values(), ids=KEPT)
def test_what_is_not_attention_stays(mask: str, body: str) -> None:
    text = f"""({INPUTS}, {mask}) => (float[2,3,4,6] y) <{SCALES}, float low = {{-inf}}, float zero = {{0.0}}>
    {{ {TRANSPOSED} a = MatMul(q, t) b = Mul(a, s) {body} }}"""
    assert operators(canonical(parse(text.replace("-inf", "-1e30"))))["Attention"] == 0


def test_a_fully_masked_row_behind_a_guard_is_zero() -> None:
    text = f"""({INPUTS}, float[4,5] m) => (float[2,3,4,6] y) <{SCALES}, float zero = {{0.0}}>
    {{ {TRANSPOSED} a = MatMul(q, t) b = Mul(a, s) {KEPT["nan-guard"][1]} }}"""
    model = parse(text)
    inputs = feeds(model)
    inputs["m"][2] = -np.inf
    assert (Reference(canonical(model, inputs=inputs))(inputs)["y"][:, :, 2] == 0).all()


def test_weights_that_are_an_output_survive() -> None:
    text = f"""({INPUTS}) => (float[2,3,4,6] y, float[2,3,4,5] w)
    {{ {TRANSPOSED} a = MatMul(q, t) w = Softmax(a) y = MatMul(w, v) }}"""
    assert operators(canonical(parse(text)))["Softmax"] == 1


STANDARD = {
    "4-d": ("float[2,3,4,8] q, float[2,3,5,8] k, float[2,3,5,6] v", "float[2,3,4,6]", "q, k, v", {}),
    "mask": ("float[2,3,4,8] q, float[2,3,5,8] k, float[2,3,5,6] v, float[4,5] m", "float[2,3,4,6]", "q, k, v, m", {}),
    "bool-mask": (
        "float[2,3,4,8] q, float[2,3,5,8] k, float[2,3,5,6] v, bool[4,5] m",
        "float[2,3,4,6]", "q, k, v, m", {},
    ),
    "causal": ("float[2,3,4,8] q, float[2,3,4,8] k, float[2,3,4,6] v", "float[2,3,4,6]", "q, k, v", {"is_causal": 1}),
    "causal-oblong": (
        "float[2,3,4,8] q, float[2,3,5,8] k, float[2,3,5,6] v",
        "float[2,3,4,6]", "q, k, v", {"is_causal": 1},
    ),
    "scale": ("float[2,3,4,8] q, float[2,3,5,8] k, float[2,3,5,6] v", "float[2,3,4,6]", "q, k, v", {"scale": 0.7}),
    "grouped": ("float[2,6,4,8] q, float[2,2,5,8] k, float[2,2,5,8] v", "float[2,6,4,8]", "q, k, v", {}),
    "3-d": ("float[2,4,24] q, float[2,5,24] k, float[2,5,18] v", "float[2,4,18]", "q, k, v",
            {"q_num_heads": 3, "kv_num_heads": 3}),
    "3-d-grouped": ("float[2,4,48] q, float[2,5,16] k, float[2,5,16] v", "float[2,4,48]", "q, k, v",
                    {"q_num_heads": 6, "kv_num_heads": 2}),
    "3-d-one-head": ("float[2,4,8] q, float[2,5,8] k, float[2,5,6] v", "float[2,4,6]", "q, k, v",
                     {"q_num_heads": 1, "kv_num_heads": 1}),
}  # fmt: skip


def attention(inputs: str, output: str, names: str, attributes: dict[str, object]) -> ir.Model:
    written = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    written = f"<{written}>" if written else ""
    return parse(f"({inputs}) => ({output} y) {{ [att] y = Attention{written}({names}) }}")


@pytest.mark.parametrize("case", STANDARD)
def test_expansion_computes_what_onnxruntime_does(case: str) -> None:
    model = attention(*STANDARD[case])
    expanded = model.clone()
    expand(expanded, frozenset({"Attention"}))
    assert "Attention" not in operators(expanded)
    inputs = feeds(model)
    if case == "bool-mask":
        inputs["m"] = np.tri(4, 5, dtype=bool)
    assert difference(model, expanded, inputs) < 1e-6
    assert all(node.name is not None and node.name.startswith("att/") for node in expanded.graph)
    assert {"att/scores", "att/softmax", "att/output"} <= {node.name for node in expanded.graph}
    twice = model.clone()
    expand(twice, frozenset({"Attention"}))
    assert content(twice) == content(expanded)


@pytest.mark.parametrize("attributes", [{"softcap": 2.0}, {"softmax_precision": 11}])
def test_no_expansion_is_an_error_that_names_the_node(attributes: dict[str, object]) -> None:
    model = attention(*STANDARD["4-d"][:3], attributes)
    with pytest.raises(UnsupportedError, match=f"'att' .*{next(iter(attributes))}"):
        expand(model, frozenset({"Attention"}))


def test_a_cache_has_no_expansion() -> None:
    model = parse(
        """(float[2,3,4,8] q, float[2,3,5,8] k, float[2,3,5,8] v, float[2,3,2,8] pk, float[2,3,2,8] pv)
        => (float[2,3,4,8] y, float[2,3,7,8] nk, float[2,3,7,8] nv)
        { [att] y, nk, nv = Attention(q, k, v, , pk, pv) }"""
    )
    with pytest.raises(UnsupportedError, match=r"'att'.*cache"):
        expand(model, frozenset({"Attention"}))


def test_other_operators_are_left_alone() -> None:
    model = attention(*STANDARD["4-d"])
    before = content(model)
    expand(model, frozenset({"Softmax"}))
    assert content(model) == before
