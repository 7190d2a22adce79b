"""Models of one node, before and after a method takes its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from lowerkit.graph.domain import CANONICAL, DOMAIN, add_function
from lowerkit.graph.fusions.activation import Rsqrt, Silu
from lowerkit.passes.base import Method
from lowerkit.reference import Reference

#: Half the spacing of float32 at 1: the relative error of one operation.
U = 2.0**-24


def model_of(
    op: str,
    x: np.ndarray,
    attributes: Mapping[str, Any] | None = None,
    weights: Sequence[np.ndarray] = (),
) -> ir.Model:
    """y = op(x, *weights), with x a graph input and the weights initializers."""
    names = [f"w{i}" for i in range(len(weights))]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x", *names], ["y"], name="n", **(attributes or {}))],
        "single",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.numpy_helper.from_array(w, name) for name, w in zip(names, weights, strict=True)],
    )
    opset = onnx.helper.make_opsetid("", 23)
    model = ir.serde.deserialize_model(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=11))
    if op in CANONICAL:
        node = model.graph.node("n")
        node.domain = DOMAIN
        add_function(model, {"Rsqrt": Rsqrt, "Silu": Silu}[op])
    return model


def top_of(x: np.ndarray, k: int = 2, **attributes: int) -> ir.Model:
    """y, i = TopK(Softmax(x)) along one axis; `attributes` are the TopK's, the Softmax is the node n."""
    axis = attributes.get("axis", -1)
    shape = [k if index == axis % x.ndim else size for index, size in enumerate(x.shape)]
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Softmax", ["x"], ["s"], name="n", axis=axis),
            onnx.helper.make_node("TopK", ["s", "k"], ["y", "i"], name="t", **attributes),
        ],
        "top",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [
            onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape),
            onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, shape),
        ],
        [onnx.numpy_helper.from_array(np.array([k], np.int64), "k")],
        value_info=[onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, x.shape)],
    )
    opset = onnx.helper.make_opsetid("", 23)
    return ir.serde.deserialize_model(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=11))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """The model's output y, in onnxruntime, operator by operator."""
    result: np.ndarray = Reference(model)({"x": x})["y"]
    return result


def lower(method: Method, model: ir.Model) -> ir.Model:
    """`model` with its node replaced, checked as ONNX with inferred shapes."""
    node = model.graph.node("n")
    assert method.refuses(node) is None
    method.rewrite(model, node)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    return model


def body(
    method: Method,
    op: str,
    x: np.ndarray,
    attributes: Mapping[str, Any] | None = None,
    weights: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """What the method's function body gives in float32; same shape and dtype as x."""
    y = run(lower(method, model_of(op, x, attributes, weights)), x)
    assert (y.shape, y.dtype) == (x.shape, np.float32)
    return y
