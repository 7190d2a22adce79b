"""Mixture of experts is named in the forms that exporters write, and its body computes the same."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers import canonical, difference, feeds, operators, parse
from onnx_ir.passes.common import InlinePass

from lowerkit import pipeline
from lowerkit.graph.canonicalise import canonicalise
from lowerkit.graph.fusions.moe import MixtureOfExperts
from lowerkit.reference import Reference
from lowerkit.targets.cpu.target import CpuTarget

B, T, D, E, H = 2, 5, 8, 4, 6
GATES = {
    "softmax-topk": ("p = Softmax(logits) v, i = TopK(p, k)", "v"),
    "renormalised": ("p = Softmax(logits) v, i = TopK(p, k) n = ReduceSum(v, last) s = Div(v, n)", "s"),
    "topk-softmax": ("v, i = TopK(logits, k) s = Softmax<axis = 2>(v)", "s"),
}
EXPERTS = """
    u = Unsqueeze(x, one) a = MatMul(u, w1) b = Add(a, b1) c = Gelu(b) f = MatMul(c, w2) g = Add(f, b2)
    m = Mul(g, q) y = ReduceSum<keepdims = 0>(m, one)
"""
EINSUMS = """
    a = Einsum<equation = "btd, edh -> beth">(x, w1) b = Add(a, b1) c = Gelu(b)
    f = Einsum<equation = "beth,ehd->betd">(c, w2) g = Add(f, b2) y = Einsum<equation = "betd,bte->btd">(g, o)
"""


def weights(k: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"wg": (D, E), "bg": (E,), "w1": (E, D, H), "b1": (E, 1, H), "w2": (E, H, D), "b2": (E, 1, D)}
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    numbers = {"one": np.array([1]), "last": np.array([-1]), "k": np.array([k])}
    return {**found, **numbers, "zeros": np.zeros((B, T, E), np.float32)}


def moe(
    gate: str, *, k: int = 2, experts: str = EXPERTS, zeros: str = "zeros", perm: str = "0,2,1"
) -> ir.Model:
    body, shares = GATES[gate]
    text = f"""({{types}} x) => ({{types}} y) {{{{
        z = MatMul(x, wg) logits = Add(z, bg) {body} o = ScatterElements<axis = -1>({zeros}, i, {shares})
        t = Transpose<perm = [{perm}]>(o) q = Unsqueeze(t, last) {experts}
    }}}}""".format(types=f"float[{B},{T},{D}]")
    return parse(text, **weights(k))


def expected(x: np.ndarray, k: int, normalise: bool) -> np.ndarray:
    """In float64, token by token, only the chosen experts computed."""
    w = {name: a.astype(np.float64) for name, a in weights(k).items()}
    y = np.zeros(x.shape)
    for at in np.ndindex(*x.shape[:2]):
        logits = x[at] @ w["wg"] + w["bg"]
        chosen = np.argsort(-logits, kind="stable")[:k]
        powers = np.exp(logits - logits.max())
        shares = powers / (powers[chosen].sum() if normalise else powers.sum())
        for e in chosen:
            hidden = x[at] @ w["w1"][e] + w["b1"][e, 0]
            active = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
            y[at] += shares[e] * (active @ w["w2"][e] + w["b2"][e, 0])
    return y


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("gate", GATES)
def test_named_and_computes_the_same(gate: str, k: int) -> None:
    model = moe(gate, k=k)
    result = canonical(model, 2e-6)
    assert dict(operators(result)) == {"MixtureOfExperts": 1}
    (node,) = result.graph
    normalise = gate != "softmax-topk"
    assert (node.attributes.get_int("k"), node.attributes.get_int("normalise")) == (k, int(normalise))
    assert "TopK" in node.metadata_props["lowerkit.spelled"]
    x = feeds(model)["x"]
    np.testing.assert_allclose(
        Reference(result)({"x": x})["y"], expected(x, k, normalise), rtol=1e-4, atol=1e-4
    )


def test_einsum_is_another_spelling() -> None:
    result = canonical(moe("topk-softmax", experts=EINSUMS), 2e-6)
    assert dict(operators(result)) == {"MixtureOfExperts": 1}
    # Tokens and experts of the gates changed places.
    wrong = EINSUMS.replace("bte->btd", "bet->btd").replace("(g, o)", "(g, t)")
    assert operators(canonical(moe("topk-softmax", experts=wrong), 2e-6))["Einsum"] == 3


def test_the_body_is_standard_operators() -> None:
    result = canonicalise(moe("renormalised"))
    inlined = result.clone()
    InlinePass()(inlined)
    assert all(node.domain == "" for node in inlined.graph)
    assert difference(result, inlined) == 0
    assert MixtureOfExperts.to_function_proto().domain == "lowerkit"


def test_biases_may_be_missing() -> None:
    bare = EXPERTS.replace("b = Add(a, b1) c = Gelu(b)", "c = Gelu(a)").replace(
        "g = Add(f, b2)", "g = Identity(f)"
    )
    assert operators(canonical(moe("topk-softmax", experts=bare), 2e-6))["MixtureOfExperts"] == 1


@pytest.mark.parametrize(
    "other",
    [
        {"zeros": "z"},  # what was not chosen keeps another number than 0
        {"experts": EXPERTS.replace("c = Gelu(b)", "c = Relu(b)")},
        {
            "experts": EXPERTS.replace("Unsqueeze(x, one)", "Unsqueeze(r, one)").replace(
                "u =", "r = Relu(x) u ="
            )
        },
    ],
)
def test_what_is_something_else_stays(other: dict[str, str]) -> None:
    assert not operators(canonical(moe("softmax-topk", **other), 2e-6))["MixtureOfExperts"]


def test_the_cpu_target_computes_the_body(tmp_path: Path) -> None:
    target = CpuTarget()
    model = moe("softmax-topk")
    result = canonicalise(model)
    pipeline.check_target(result, target, lowered=True)
    inputs = feeds(model)
    target.emit(result.clone(), {}, tmp_path)
    found = target.open(tmp_path, {})(inputs)["y"]
    np.testing.assert_allclose(found, Reference(model)(inputs)["y"], rtol=1e-4, atol=1e-4)
