"""Inspection: counts that can be worked out by hand, and a target's judgement."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from lowerkit.graph.inspect import Blocker, Inspection, inspect_model, node_macs
from lowerkit.graph.names import name_nodes
from lowerkit.graph.shapes import infer_shapes
from lowerkit.targets.base import Progress, Runner, Target


class NoTranscendentals(Target):
    """A target for judging alone: it has no Softmax of its own and cannot run Sin."""

    name = "judge"
    summary = "for tests"
    defaults: ClassVar[Mapping[str, str]] = {"softmax": "online"}
    must_lower = frozenset({"Softmax", "Asin"})

    def blocker(self, node: ir.Node) -> str | None:
        return "it has no sine" if node.op_type == "Sin" else None

    def emit(
        self,
        model: ir.Model,
        options: Mapping[str, Any],
        directory: Path,
        progress: Progress | None = None,
    ) -> Mapping[str, Any]:
        raise NotImplementedError

    def open(self, directory: Path, options: Mapping[str, Any]) -> Runner:
        raise NotImplementedError

    def probe(self, model: ir.Model, options: Mapping[str, Any], taps: Sequence[str]) -> Runner:
        raise NotImplementedError


def parse(graph: str, opset: int = 23) -> ir.Model:
    header = f'<ir_version: 11, opset_import: ["" : {opset}, "com.microsoft" : 1]> g '
    model = ir.serde.deserialize_model(onnx.parser.parse_model(header + graph))
    name_nodes(model)
    infer_shapes(model)
    return model


def look(graph: str, target: Target | None = None) -> Inspection:
    model = parse(graph)
    return inspect_model(model, model, target)


@pytest.mark.parametrize(
    ("graph", "macs"),
    [
        ("(float[5,2,3] x, float[3,4] w) => (float[5,2,4] y) {y = MatMul(x,w)}", 5 * 2 * 4 * 3),
        ("(float[3,2] x, float[4,3] w) => (float[2,4] y) {y = Gemm<transA=1,transB=1>(x,w)}", 2 * 4 * 3),
        (
            "(float[1,4,8,8] x, float[6,2,3,3] w) => (float[1,6,6,6] y) {y = Conv<group=2>(x,w)}",
            6 * 6 * 6 * 2 * 3 * 3,
        ),
        (
            "(float[1,4,5,5] x, float[4,6,3,3] w) => (float[1,6,7,7] y) {y = ConvTranspose(x,w)}",
            4 * 5 * 5 * 6 * 3 * 3,
        ),
        (
            '(float[2,3,4] x, float[2,4,5] z) => (float[2,3,5] y) {y = Einsum<equation="bij,bjk->bik">(x,z)}',
            2 * 3 * 4 * 5,
        ),
        (
            "(float[2,4,8,16] q, float[2,2,9,16] k, float[2,2,9,32] v) => (float[2,4,8,32] y)"
            " {y = Attention(q,k,v)}",
            2 * 4 * 8 * 9 * (16 + 32),
        ),
        (
            "(float[2,8,64] q, float[2,9,32] k, float[2,9,64] v) => (float[2,8,128] y)"
            " {y = Attention<q_num_heads=4,kv_num_heads=2>(q,k,v)}",
            2 * 4 * 8 * 9 * (16 + 32),
        ),
        ("(float[2,3] x) => (float[2,3] y) {y = Softmax(x)}", 0),
    ],
)
def test_macs(graph: str, macs: int) -> None:
    model = parse(graph)
    assert sum(node_macs(node) for node in model.graph) == macs
    assert inspect_model(model, model, None).total_macs == macs


def test_weights_and_ports() -> None:
    graph = """(float[2,3] x) => (float[2,2] y) <float[3,2] w = {1,2,3,4,5,6}>
    {b = Constant<value = float[2] {1,2}>() h = MatMul(x,w) y = Add(h,b)}"""
    found = look(graph)
    assert (found.parameters, found.parameter_bytes) == (8, 32)
    (x,), (y,) = found.inputs, found.outputs
    assert (x.name, x.dtype, x.shape) == ("x", "float32", (2, 3))
    assert (y.name, y.dtype, y.shape) == ("y", "float32", (2, 2))
    assert found.original_ops == {"Add": 1, "Constant": 1, "MatMul": 1}
    assert found.macs == {"MatMul": 12}
    assert found.opset == 23


def test_nonlinearities() -> None:
    graph = """(float[2,3] x) => (float[2,3] y) <float two = {2}>
    {[half] a = Div(x,two) [gate] b = Sigmoid(a) [ratio] c = Div(b,x) [m] d = Mul(c,c) [s] y = Softmax(d)}"""
    model = parse(graph)
    next(node for node in model.graph if node.name == "gate").metadata_props["lowerkit.spelled"] = "Neg, Exp"
    rows = inspect_model(model, model, NoTranscendentals()).nonlinearities
    assert [(row.node, row.op) for row in rows] == [("gate", "Sigmoid"), ("ratio", "Div"), ("s", "Softmax")]
    assert [row.spelled for row in rows] == ["Neg, Exp", "Div", "Softmax"]
    assert [row.must_lower for row in rows] == [False, False, True]
    assert rows[2].family == "softmax"
    assert rows[2].default == "online"
    assert rows[1].family is None
    assert rows[1].default is None
    assert rows[0].shape == (2, 3)


def test_blockers() -> None:
    graph = "(float[2] x) => (float[2] y) {[a] h = Sin(x) [b] g = Asin(h) [c] y = Softmax(g)}"
    found = look(graph, NoTranscendentals())
    assert found.target == "judge"
    assert found.blockers == (
        Blocker("a", "Sin", "it has no sine"),
        Blocker("b", "Asin", "the target cannot compute it, and no method replaces it"),
    )
    assert look("(float[2] x) => (float[2] y) {y = Sin(x)}").blockers == ()


def test_foreign_operators_show_their_domain() -> None:
    found = look("(float[2] x) => (float[2] y) {y = com.microsoft.Gelu(x)}")
    assert found.original_ops == {"com.microsoft::Gelu": 1}


def test_json() -> None:
    found = look("(float[2,3] x) => (float[2,3] y) {y = Softmax(x)}", NoTranscendentals())
    text = json.dumps(dataclasses.asdict(found))
    assert json.loads(text)["nonlinearities"][0]["op"] == "Softmax"
    assert np.prod(json.loads(text)["inputs"][0]["shape"]) == 6
