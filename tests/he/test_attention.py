"""Attention, softmax and norms on encrypted values: the tensor program, the packed one, and a real run."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from he_models import completed, emitted, uniform
from helpers import parse
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_packing import check

from lowerkit.errors import UnsupportedError
from lowerkit.graph.expand import expand
from lowerkit.graph.inline import inline
from lowerkit.passes.registry import make
from lowerkit.reference import Reference
from lowerkit.targets.he.packing.network import pack
from lowerkit.targets.he.program import Affine, Polynomial, Product, Program
from lowerkit.targets.he.reading import read
from lowerkit.targets.he.simplify import common_factor
from lowerkit.targets.he.target import HeTarget


def attention(tokens: int, heads: int, size: int, seed: int = 0, batch: int = 1) -> ir.Model:
    """Power-softmax attention with its weights' sum squared where the reciprocal would be, so that it is exact."""
    rng = np.random.default_rng(seed)
    width = heads * size

    def draw(*shape: int) -> np.ndarray:
        return (rng.uniform(-1, 1, shape) / np.sqrt(width)).astype(np.float32)

    return parse(
        f"""(float[{batch},{tokens},{width}] x) => (float[{batch},{tokens},{width}] y) {{
            q0 = MatMul (x, wq) q1 = Add (q0, bias) q2 = Reshape (q1, split)
            k0 = MatMul (x, wk) k1 = Add (k0, bias) k2 = Reshape (k1, split)
            v0 = MatMul (x, wv) v1 = Add (v0, bias) v2 = Reshape (v1, split)
            q = Transpose <perm = [0, 2, 1, 3]> (q2)
            k = Transpose <perm = [0, 2, 3, 1]> (k2)
            v = Transpose <perm = [0, 2, 1, 3]> (v2)
            scores = MatMul (q, k) scaled = Div (scores, scale)
            powers = Mul (scaled, scaled)
            sum = ReduceSum <keepdims = 1> (powers, last)
            above = Add (sum, epsilon)
            inverse = Mul (above, above)
            weights = Mul (powers, inverse)
            mixed = MatMul (weights, v)
            swapped = Transpose <perm = [0, 2, 1, 3]> (mixed)
            joined = Reshape (swapped, join)
            out = MatMul (joined, wo)
            y = Add (x, out)
        }}""",
        wq=draw(width, width),
        wk=draw(width, width),
        wv=draw(width, width),
        wo=draw(width, width),
        bias=draw(width),
        split=np.array([batch, tokens, heads, size]),
        join=np.array([batch, tokens, width]),
        scale=np.float32(np.sqrt(size)),
        last=np.array([-1]),
        epsilon=np.float32(0.01),
    )


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(tokens=st.integers(2, 9), heads=st.integers(1, 3), size=st.integers(1, 4), seed=st.integers(0, 9))
def test_attention_of_any_size(tokens: int, heads: int, size: int, seed: int) -> None:
    model = attention(tokens, heads, size, seed)
    program = read(model)
    for sample in uniform(model, 2):
        found, expected = program.run(sample)["y"], Reference(model)(sample)["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    check(program, uniform(model, 1), 4096, "auto")


def test_scores_and_sums_of_attention_take_no_masks() -> None:
    """Linear maps, QK', the square, the sum's square, its product, the projection: and nothing between.

    Where the client does not send what the products need, K and V are moved as well.
    """
    program, samples = read(attention(8, 2, 4)), uniform(attention(8, 2, 4), 1)
    assert max(check(program, samples, 512, "auto").depths()) == 6
    packed = check(program, samples, 512, "diagonals")
    assert max(packed.depths()) == 7
    scores = [i for i, op in enumerate(packed.ops) if op.layer == "scaled"]
    assert {packed.ops[i].kind for i in scores} == {"rotate", "add"}
    assert len(scores) == 4  # the 4 numbers of a head, summed by two rotations


def test_constant_factors_cost_no_level() -> None:
    program = read(attention(4, 2, 4))
    sums = [
        step
        for step in program.steps
        if isinstance(step, Affine) and all(isinstance(program[name], Product) for name in step.terms)
    ]
    factors = [common_factor(step) for step in sums if len(step.terms) == 1]
    assert factors == [1.0, 1.0, 1.0]


def test_the_reciprocal_is_beside_the_product_with_v() -> None:
    program = read(attention(4, 2, 4))
    depth: dict[str, int] = {}
    for step in program.steps:
        below = max((depth[name] for name in step.reads), default=0)
        depth[step.name] = below + isinstance(step, Product)
    assert depth["y"] == 4  # QK', the square, its sum's square, and the product with V's sum


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((1, 3, 4), (2, 4, 5)), ((4,), (4, 5)), ((3, 4), (4,))],
)
def test_products_of_matrices(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    shape = np.matmul(np.zeros(left), np.zeros(right)).shape
    text = [",".join(map(str, s)) for s in (left, right, shape)]
    model = parse(f"(float[{text[0]}] a, float[{text[1]}] b) => (float[{text[2]}] y) {{ y = MatMul (a, b) }}")
    program = read(model)
    for sample in uniform(model, 2):
        np.testing.assert_allclose(program.run(sample)["y"], Reference(model)(sample)["y"], atol=1e-5)
    check(program, uniform(model, 1), 256, "auto")


@pytest.mark.parametrize("shapes", [((2, 3, 4), (4,)), ((3, 1), (1, 4)), ((2, 3), (2, 1))])
def test_products_that_broadcast(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    out = np.broadcast_shapes(*shapes)
    a, b, y = (",".join(map(str, shape)) for shape in (*shapes, out))
    model = parse(f"(float[{a}] a, float[{b}] b) => (float[{y}] y) {{ y = Mul (a, b) }}")
    program = read(model)
    for sample in uniform(model, 2):
        np.testing.assert_allclose(program.run(sample)["y"], sample["a"] * sample["b"], atol=1e-6)
    check(program, uniform(model, 1), 64, "auto")


def _polynomials(model: ir.Model) -> None:
    """Expand, and put polynomials in place of inverses, as a compilation does."""
    expand(model, HeTarget.expands)
    for node in list(model.graph):
        family = {"Reciprocal": "reciprocal", "Rsqrt": "rsqrt"}.get(node.op_type)
        if family is not None:
            make(family, "interval-poly", {"low": 0.05, "high": 3.0, "degree": 15}).rewrite(model, node)


def test_divisions_by_encrypted_numbers_become_polynomials() -> None:
    model = parse("(float[1,4] x, float[1,1] d) => (float[1,4] y) { y = Div (x, d) }")
    _polynomials(model)
    program = read(model)
    (polynomial,) = (step for step in program.steps if isinstance(step, Polynomial))
    bound = make("reciprocal", "interval-poly", {"low": 0.05, "high": 3.0, "degree": 15}).bound()
    x, d = np.linspace(-1, 1, 4).reshape(1, 4), np.full((1, 1), 0.7)
    found = program.run({"x": x, "d": d})["y"]
    np.testing.assert_allclose(found, x / d, rtol=1.01 * bound.value)
    assert len(polynomial.coefficients) == 16


def test_softmax_is_of_polynomials() -> None:
    model = parse("(float[1,4,4] x) => (float[1,4,4] y) { y = Softmax <axis = -1> (x) }")
    original = parse("(float[1,4,4] x) => (float[1,4,4] y) { y = Softmax <axis = -1> (x) }")
    expand(model, HeTarget.expands)
    for node in list(model.graph):
        if node.op_type == "Exp":
            make("exp", "interval-poly", {"low": -1.0, "high": 1.0, "degree": 7}).rewrite(model, node)
        elif node.op_type == "Reciprocal":
            make("reciprocal", "interval-poly", {"low": 1.0, "high": 11.0, "degree": 15}).rewrite(model, node)
    check(read(model), uniform(model, 1), 64, "auto")
    for sample in uniform(model, 2):
        found = read(model).run(sample)["y"]
        np.testing.assert_allclose(found, Reference(original)(sample)["y"], atol=1e-4)


def test_masks_of_infinities_are_refused() -> None:
    mask = np.array([0, -np.inf], np.float32)
    model = parse("(float[1,2] x) => (float[1,2] y) { y = Add (x, m) }", m=mask)
    with pytest.raises(UnsupportedError, match="not finite"):
        read(model)


def test_a_division_by_a_constant_stays_affine() -> None:
    model = parse("(float[1,4] x) => (float[1,4] y) { y = Div (x, d) }", d=np.float32(3))
    expand(model, HeTarget.expands)
    assert [node.op_type for node in model.graph] == ["Div"]


@pytest.mark.parametrize("rms", [False, True])
def test_norms(rms: bool) -> None:
    rng = np.random.default_rng(1)
    scale, bias = (rng.uniform(0.5, 1.5, 8).astype(np.float32) for _ in range(2))
    norm = "RMSNormalization <axis = -1> (h, g)" if rms else "LayerNormalization <axis = -1> (h, g, b)"
    text = f"(float[1,4,8] x) => (float[1,4,8] y) {{ h = MatMul (x, w) y = {norm} }}"
    weights = {"g": scale, "w": np.eye(8, dtype=np.float32)} | ({} if rms else {"b": bias})
    original, model = parse(text, **weights), parse(text, **weights)
    _polynomials(model)
    program = check(read(model), uniform(model, 1), 128, "auto")
    assert max(program.depths()) == 8  # the matrix or the centring, square, polynomial's 4, product, scale
    for sample in uniform(model, 3):
        found = read(model).run(sample)["y"]
        np.testing.assert_allclose(found, Reference(original)(sample)["y"], atol=0.1)


def test_a_folded_batch_norm_is_affine() -> None:
    text = "(float[1,4,8] x) => (float[1,4,8] y) { y = LayerNormalization <axis = -1> (x, g, b) }"
    model = parse(text, g=np.full(8, 0.5, np.float32), b=np.arange(8, dtype=np.float32))
    numbers = {"mean": tuple(np.linspace(-1, 1, 8)), "variance": (0.25,) * 8}
    make("norm", "batch-norm", numbers).rewrite(model, next(iter(model.graph)))
    inline(model, HeTarget.native)
    program = read(model)
    assert [type(step) for step in program.steps[1:]] == [Affine]
    for sample in uniform(model, 2):
        np.testing.assert_allclose(program.run(sample)["y"], Reference(model)(sample)["y"], atol=1e-5)


def test_too_many_scores_for_the_slots_are_refused() -> None:
    program: Program = read(attention(8, 2, 4))
    with pytest.raises(UnsupportedError, match=r"'scores\.products.*do not fit into 256 slots"):
        pack(program, 256, parts=1)


def test_attention_really_encrypted(tmp_path: Path) -> None:
    pytest.importorskip("seal", reason="SEAL is missing: pip install seal-python")
    from lowerkit.targets.he.target import HeTarget

    model = attention(4, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directory = emitted(
            model, tmp_path / "out", insecure_for_testing=True, ring=4096, ranges={"x": [-1.0, 1.0]}
        )
    run = HeTarget().open(directory, {})
    for sample in uniform(model, 2, seed=5):
        np.testing.assert_allclose(run(sample)["y"], Reference(model)(sample)["y"], atol=1e-4)


def test_the_probe_sees_values_as_the_graph_has_them() -> None:
    """Those that stand for multiples, too."""
    model = attention(4, 2, 2)
    sample = uniform(model, 1)[0]
    options = completed(model, [sample], insecure_for_testing=True, ring=4096)
    taps = ["scaled", "powers", "v1"]
    found, expected = HeTarget().probe(model, options, taps)(sample), Reference(model, taps=taps)(sample)
    assert set(found) == {"y", *taps}
    for name in taps:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_options_of_attention_fit_a_secure_ring() -> None:
    model = attention(4, 1, 2)
    options = completed(model, uniform(model, 4), precision=1e-2)
    assert options["ring"] <= 16384
