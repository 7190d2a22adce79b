"""Graphs as tensor programs."""

from __future__ import annotations

import numpy as np
import pytest
from he_models import uniform
from helpers import parse
from test_packing import check

from lowerkit.errors import UnsupportedError
from lowerkit.graph.expand import expand
from lowerkit.graph.names import name_nodes
from lowerkit.passes.registry import make
from lowerkit.reference import Reference
from lowerkit.targets.he.packing.network import least_depth
from lowerkit.targets.he.program import Affine, Polynomial, Product
from lowerkit.targets.he.reading import read
from lowerkit.targets.he.target import HeTarget

RNG = np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


GRAPHS = {
    "conv": (
        """(float[1,2,7,6] x) => (float[1,3,3,3] y) {
            c = Conv <strides = [2, 2], pads = [1, 1, 1, 1], group = 1> (x, w, b)
            p = Pad (c, pads, fill)
            y = AveragePool <kernel_shape = [2, 2], strides = [1, 1]> (p)
        }""",
        {
            "w": _normal(3, 2, 3, 3),
            "b": _normal(3),
            "pads": np.array([0, 0, 0, 0, 0, 0, 0, 1]),
            "fill": np.float32(0.5),
        },
    ),
    "residual": (
        """(float[2,5] x) => (float[2,5] y) {
            u = MatMul (x, w)
            v = Sub (x, u)
            t = Transpose <perm = [1, 0]> (v)
            r = Reshape (t, shape)
            y = Mul (r, r)
        }""",
        {"w": _normal(5, 5), "shape": np.array([2, 5])},
    ),
    "powers": (
        """(float[1,4] x) => (float[1,4] y) {
            a = Pow (x, seven)
            b = Pow (x, one)
            c = Mul (x, a)
            d = Concat <axis = 0> (a, b, c)
            y = ReduceSum <keepdims = 1> (d, axes)
        }""",
        {"seven": np.float32(7), "one": np.float32(1), "axes": np.array([0])},
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_tensor_program_computes_what_the_graph_does(name: str) -> None:
    text, weights = GRAPHS[name]
    model = parse(text, **weights)
    program = read(model)
    for sample in uniform(model, 3):
        np.testing.assert_allclose(program.run(sample)["y"], Reference(model)(sample)["y"], atol=2e-5)


def test_linear_operators_in_a_row_are_one_affine_step() -> None:
    text, weights = GRAPHS["conv"]
    steps = read(parse(text, **weights)).steps
    assert [type(step) for step in steps[1:]] == [Affine]


def test_a_small_map_of_the_input_goes_into_all_of_its_readers() -> None:
    model = parse(
        """(float[1,4] x) => (float[1,8] y) {
            u = MatMul (x, w)
            a = MatMul (u, v)
            b = MatMul (u, t)
            y = Mul (a, b)
        }""",
        w=_normal(4, 8),
        v=_normal(8, 8),
        t=_normal(8, 8),
    )
    program = read(model)
    assert [step.reads for step in program.steps[1:3]] == [("x",), ("x",)]
    for sample in uniform(model, 2):
        np.testing.assert_allclose(
            program.run(sample)["y"], Reference(model)(sample)["y"], rtol=1e-4, atol=1e-4
        )


def test_matrices_are_the_weights_exactly() -> None:
    weights = {"w": _normal(4, 3), "b": 100 * _normal(3)}
    (_, step) = read(parse("(float[1,4] x) => (float[1,3] y) { y = Gemm (x, w, b) }", **weights)).steps
    assert isinstance(step, Affine)
    np.testing.assert_array_equal(step.terms["x"].toarray(), weights["w"].T.astype(np.float64))
    np.testing.assert_array_equal(step.bias, weights["b"].astype(np.float64))


def test_powers_have_the_least_depth() -> None:
    text, weights = GRAPHS["powers"]
    products = [s for s in read(parse(text, **weights)).steps if isinstance(s, Product)]
    depth: dict[str, int] = {}
    for step in products:
        depth[step.name] = 1 + max(depth.get(step.left, 0), depth.get(step.right, 0))
    assert depth["a"] == 3  # x^7


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("y = Relu (x)", "Relu is no polynomial"),
        ("y = Sin (x)", "Sin is no polynomial"),
        ("y = Div (one, x)", "no packing"),
        ("y = Pow (x, half)", "whole number"),
    ],
)
def test_what_is_no_polynomial_is_refused_by_node(line: str, reason: str) -> None:
    model = parse(f"(float[1,4] x) => (float[1,4] y) {{ {line} }}", one=np.float32(1), half=np.float32(0.5))
    next(iter(model.graph)).name = "culprit"
    with pytest.raises(UnsupportedError, match=f"'culprit'.*{reason}"):
        read(model)


def test_polynomials_are_moved_to_the_unit_interval() -> None:
    method = make("gelu", "interval-poly", {"low": -2.0, "high": 2.0})
    model = parse(
        "(float[1,6] x) => (float[1,6] y) { h = MatMul (x, w) y = Gelu (h) }", w=0.3 * _normal(6, 6)
    )
    method.rewrite(model, next(n for n in model.graph if n.op_type == "Gelu"))
    program = read(model)
    affine, polynomial = program.steps[1:]
    assert isinstance(affine, Affine)
    assert isinstance(polynomial, Polynomial)
    assert (polynomial.low, polynomial.high) == (-1, 1)
    for sample in uniform(model, 3):
        np.testing.assert_allclose(program.run(sample)["y"], Reference(model)(sample)["y"], atol=1e-5)


NORMS = """(float[1,4,8] x) => (float[1,4,8] y) {
    x0 = MatMul (x, w0)
    n0 = LayerNormalization <axis = -1> (x0, g, b) m0 = MatMul (n0, w1) p0 = Mul (m0, m0) a0 = MatMul (p0, w2)
    x1 = Add (x0, a0)
    n1 = LayerNormalization <axis = -1> (x1, g, b) m1 = MatMul (n1, w1) p1 = Mul (m1, m1) a1 = MatMul (p1, w2)
    x2 = Add (x1, a1)
    y = LayerNormalization <axis = -1> (x2, g, b)
}"""


def test_centring_costs_no_level_and_matrices_go_before_norms() -> None:
    """Of each block: the square, the polynomial's 3 levels beside the matrix, its product, the square, the matrix."""
    rng = np.random.default_rng(4)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / 3).astype(np.float32)

    weights = {"w0": draw(8, 8), "w1": draw(8, 12), "w2": draw(12, 8) / 4, "g": 1 + draw(8), "b": draw(8)}
    model = parse(NORMS, **weights)
    name_nodes(model)
    expand(model, HeTarget.expands)
    for node in [node for node in model.graph if node.op_type == "Rsqrt"]:
        make("rsqrt", "interval-poly", {"low": 0.003, "high": 20.0, "degree": 7}).rewrite(model, node)
    program = read(model)
    for sample in uniform(model, 3):
        expected = Reference(model)(sample)["y"]
        np.testing.assert_allclose(program.run(sample)["y"], expected, rtol=1e-4, atol=1e-4)
    assert least_depth(program) == 1 + 2 * 7 + 1 + 3 + 1 + 1  # the last scale is a matrix, after its product
    names = [step.name for step in program.steps]
    assert sum(name.endswith((".projected", ".projected.scaled")) for name in names) == 3
    assert not any("centred" in step.name for step in program.steps if isinstance(step, Affine))
    check(program, uniform(model, 1), 256, "auto")


def test_values_that_something_else_reads_are_not_centred() -> None:
    """The sum of a value is asked for as well, which a projection would lose."""
    text = """(float[1,8] x) => (float[1,8] y, float[1,1] s) {
        h = MatMul (x, w) y = LayerNormalization <axis = -1> (h, g, b) s = ReduceSum (h, last)
    }"""
    eye, last = np.eye(8, dtype=np.float32), np.array([-1])
    model = parse(text, w=eye, g=eye[0], b=eye[1], last=last)
    expand(model, HeTarget.expands)
    (rsqrt,) = (node for node in model.graph if node.op_type == "Rsqrt")
    make("rsqrt", "interval-poly", {"low": 0.01, "high": 10.0, "degree": 3}).rewrite(model, rsqrt)
    program = read(model)
    assert not any(".projected" in step.name for step in program.steps)
    sample = uniform(model, 1)[0]
    expected = Reference(model)(sample)
    for name, found in expected.items():
        np.testing.assert_allclose(program.run(sample)[name], found, rtol=1e-4, atol=1e-4)
