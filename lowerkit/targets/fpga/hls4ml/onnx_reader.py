"""ONNX nodes as lowerkit's layers, for hls4ml's converter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx import numpy_helper

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import CANONICAL, DOMAIN, OPSET
from lowerkit.passes.base import METHOD
from lowerkit.targets.fpga.converters import CONVERTERS
from lowerkit.targets.fpga.hls4ml.layers import LowerkitNode, sizes

#: Before the names of operators that hls4ml has, and reads as its own.
PREFIX = "Lowerkit"
TAKEN_OVER = ("MatMul", "Softmax", "Transpose")
#: Softmax of an axis, not of the flattened rest.
OLDEST_OPSET = 13


def operators() -> list[str]:
    """The operators that `read_node` reads, sorted; reshapes of all kinds are left to hls4ml."""
    own = {name for name, converter in CONVERTERS.items() if converter is not CONVERTERS["Reshape"]}
    return sorted(own | {PREFIX + name for name in TAKEN_OVER})


def read_node(
    node: onnx.NodeProto, input_names: Sequence[str], input_shapes: object, graph: onnx.GraphProto
) -> dict[str, Any]:
    """What hls4ml keeps of a node; a handler for `register_onnx_layer_handler`."""
    _check(node)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    read = [name for name in input_names if name and name not in constants]
    output = _value(graph, node.output[0])
    return {
        "name": node.name,
        "class_name": LowerkitNode.__name__,
        "inputs": read,
        "outputs": list(node.output),
        "model": _model_of(node, input_names, constants, graph),
        "shape": sizes([_shape(output)])[0],
    }


def take_over(model: onnx.ModelProto) -> onnx.ModelProto:
    """See the package's `take_over`."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise UnsupportedError(
            f"opset {opset} is before {OLDEST_OPSET}, in which Softmax took its present form",
            hint="convert the model with onnx.version_converter",
        )
    made = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = made.graph
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            del graph.node[i]
    known = {value.name for value in graph.value_info}
    for tensor in graph.initializer:
        # hls4ml asks for the shapes of constants too.
        if tensor.name not in known:
            graph.value_info.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    for i, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type.lower()}_{i}"
        if node.op_type in TAKEN_OVER and node.domain in ("", "ai.onnx"):
            node.op_type = PREFIX + node.op_type
    return made


def _check(node: onnx.NodeProto) -> None:
    """Refuse what would be read as something else. hls4ml finds handlers by the operator's name alone."""
    where = f"node '{node.name}' ({node.domain}::{node.op_type})"
    if len([name for name in node.output if name]) != 1:
        raise UnsupportedError("a layer of hls4ml has one output", node=where)
    if node.domain not in ("", "ai.onnx", DOMAIN):
        raise UnsupportedError("an operator of another domain has no kernel", node=where)
    known = any(entry.key == METHOD for entry in node.metadata_props)
    if node.domain == DOMAIN and node.op_type not in CANONICAL and not known:
        raise UnsupportedError(
            f"the node does not say its method: it has no metadata '{METHOD}'",
            node=where,
            hint="give hls4ml the lowered graph as lowerkit wrote it",
        )


def _model_of(
    node: onnx.NodeProto,
    input_names: Sequence[str],
    constants: dict[str, onnx.TensorProto],
    graph: onnx.GraphProto,
) -> ir.Model:
    """A model of the one node; an activation that it reads twice is two inputs."""
    own = onnx.NodeProto()
    own.CopyFrom(node)
    own.op_type = node.op_type.removeprefix(PREFIX)
    inputs, initializers = [], []
    for i, name in enumerate(input_names):
        own.input[i] = f"input{i}" if name else ""
        if name in constants:
            initializers.append(numpy_helper.from_array(numpy_helper.to_array(constants[name]), own.input[i]))
        elif name:
            value = _value(graph, node.input[i])
            inputs.append(
                onnx.helper.make_tensor_value_info(own.input[i], onnx.TensorProto.FLOAT, _shape(value))
            )
    own.output[0] = "output"
    shape = _shape(_value(graph, node.output[0]))
    outputs = [onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, shape)]
    made = onnx.helper.make_graph([own], "node", inputs, outputs, initializers)
    return ir.serde.deserialize_model(
        onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    )


def _value(graph: onnx.GraphProto, name: str) -> onnx.ValueInfoProto:
    """Raises UnsupportedError for a value whose shape is not known."""
    for value in (*graph.value_info, *graph.output, *graph.input):
        if value.name == name:
            return value
    raise UnsupportedError(f"value '{name}' has no shape", hint="infer shapes first: take_over does")


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """The shape with a batch of 1, which hls4ml leaves open."""
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
    dims[:1] = [dims[0] or 1] if dims else []
    if 0 in dims:
        raise UnsupportedError(f"value '{value.name}' has an open dimension")
    return dims
