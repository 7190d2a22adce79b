"""Chains of layout operators: whatever they were, they become the fewest that do the same."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import canonical, difference, operators, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.graph.canonicalise import canonicalise
from lowerkit.graph.layout import SimplifyLayouts
from lowerkit.graph.shapes import infer_shapes


def chain(shape: tuple[int, ...], steps: list[tuple[int, ...] | list[int]]) -> ir.Model:
    """Reshapes (tuples) and Transposes (lists) between Relu and Tanh, one after the other."""
    nodes = [onnx.helper.make_node("Relu", ["x"], ["v0"])]
    constants = []
    for index, step in enumerate(steps):
        before, after = f"v{index}", f"v{index + 1}"
        if isinstance(step, tuple):
            constants.append(onnx.numpy_helper.from_array(np.array(step, np.int64), f"s{index}"))
            nodes.append(onnx.helper.make_node("Reshape", [before, f"s{index}"], [after]))
        else:
            nodes.append(onnx.helper.make_node("Transpose", [before], [after], perm=step))
    nodes.append(onnx.helper.make_node("Tanh", [f"v{len(steps)}"], ["y"]))
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "g", [value], [out], constants)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    model = ir.serde.deserialize_model(proto)
    infer_shapes(model)
    return model


def factorisations(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of `size` elements, ones included."""

    def build(cuts: list[int]) -> tuple[int, ...]:
        shape, rest = [], size
        for cut in cuts:
            part = math.gcd(rest, cut)
            shape.append(part)
            rest //= part
        return (*shape, rest)

    return st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), max_size=4).map(build)


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, ...] | list[int]]]:
    size = draw(st.sampled_from([1, 6, 24, 48]))
    shape = first = draw(factorisations(size))
    steps: list[tuple[int, ...] | list[int]] = []
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            shape = draw(factorisations(size))
            steps.append(shape)
        else:
            perm = list(draw(st.permutations(range(len(shape)))))
            shape = tuple(shape[axis] for axis in perm)
            steps.append(perm)
    return first, steps


@settings(max_examples=150, deadline=None)
@given(chains())
def test_any_chain(example: tuple[tuple[int, ...], list[tuple[int, ...] | list[int]]]) -> None:
    model = chain(*example)
    result = model.clone()
    SimplifyLayouts()(result)
    infer_shapes(result)
    assert len(list(result.graph)) <= len(list(model.graph))
    assert difference(model, result) == 0
    again = result.clone()
    assert SimplifyLayouts()(again) == 0


CASES = {
    "one-transpose": ((2, 2, 6, 8), [(4, 6, 8), [0, 2, 1], (2, 2, 8, 6)], ["Transpose"]),
    "nothing": ((2, 3, 4), [[2, 0, 1], [1, 2, 0]], []),
    "a-reshape": ((2, 3, 4), [(6, 4), (2, 12)], ["Reshape"]),
    "a-transpose-of-one": ((1, 3, 4), [[1, 0, 2]], ["Transpose"]),
    "transposes-of-ones": ((1, 3, 4), [[1, 0, 2], (3, 4, 1)], ["Reshape"]),
    "heads": ((2, 6, 16), [[0, 2, 1], (2, 2, 8, 6)], ["Reshape", "Transpose"]),
    "joined-heads": ((2, 2, 6, 8), [[0, 2, 1, 3], (2, 6, 16)], ["Transpose", "Reshape"]),
    "squeezed": ((6, 2, 3, 16), [(1, 6, 2, 3, 16), [3, 1, 2, 0, 4], (3, 6, 2, 16)], ["Transpose"]),
    "three": ((4, 6), [(2, 2, 6), [2, 0, 1], (3, 8)], ["Transpose", "Reshape"]),
    "all-three": ((4, 6), [(2, 2, 6), [1, 2, 0], (24,)], ["Reshape", "Transpose", "Reshape"]),
    "no-atoms": ((4, 6), [(6, 4), [1, 0]], ["Reshape", "Transpose"]),
    "never-apart": ((4, 6), [[1, 0], (4, 6), [1, 0]], ["Transpose", "Reshape", "Transpose"]),
}


@pytest.mark.parametrize(("shape", "steps", "expected"), CASES.values(), ids=CASES)
def test_chains(
    shape: tuple[int, ...], steps: list[tuple[int, ...] | list[int]], expected: list[str]
) -> None:
    result = canonical(chain(shape, steps), tolerance=0)
    assert [node.op_type for node in result.graph][1:-1] == expected


def test_a_chain_that_others_read() -> None:
    text = """(float[2,2,6,8] x) => (float[2,2,8,6] y, float[4,6,8] z) <int64[3] a = {4,6,8}, int64[4] b = {2,2,8,6}>
    { r = Relu(x) j = Reshape(r, a) z = Tanh(j) t = Transpose<perm = [0,2,1]>(j) p = Reshape(t, b) y = Tanh(p) }"""
    assert difference(parse(text), canonicalise(parse(text))) == 0


def test_a_product_on_a_joined_batch() -> None:
    text = """(float[2,3,6,8] q, float[2,6,24] k) => (float[2,3,6,6] y)
    <int64[3] a = {6,6,8}, int64[3] b = {6,8,6}, int64[4] c = {2,3,6,6}>
    { qj = Reshape(q, a) t = Transpose<perm = [0,2,1]>(k) kj = Reshape(t, b) p = MatMul(qj, kj) y = Reshape(p, c) }"""
    result = canonical(parse(text), tolerance=2e-6)
    assert operators(result) == Counter({"MatMul": 1, "Reshape": 1, "Transpose": 1})


def test_a_product_of_which_no_side_was_parted() -> None:
    text = """(float[36,8] q, float[48,6] k) => (float[6,6,6] y) <int64[3] a = {6,6,8}, int64[3] b = {6,8,6}>
    { qj = Reshape(q, a) kj = Reshape(k, b) y = MatMul(qj, kj) }"""
    assert operators(canonical(parse(text))) == Counter({"MatMul": 1, "Reshape": 2})
