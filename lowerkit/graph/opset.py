"""Bring a loaded model to the canonical opset, with the semantics that its author wrote.

Two library converters share the way: onnx's goes up to opset 18 and onnxscript's, which works on the IR
itself, from there. onnx's is wrong about three things, each mended here:

- Softmax, LogSoftmax and Hardmax before opset 13 flatten their input to a matrix at `axis`; onnx rewrites
  the first two by way of Shape and Flatten even where the axis is the last, and Hardmax not at all;
- Upsample and Resize before opset 11 take source coordinates as x / scale (`asymmetric`), and round
  them down where they enlarge and up where they shrink; onnx leaves opset 11's defaults in their place.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass, RemoveUnusedOpsetsPass
from onnxscript import version_converter

from lowerkit.errors import ModelError
from lowerkit.graph import qonnx
from lowerkit.graph.domain import OPSET, describe_node
from lowerkit.graph.edit import take_place
from lowerkit.graph.names import name_nodes
from lowerkit.graph.shapes import condense, constant_values, infer_shapes, static_shape, without_big_weights
from lowerkit.reference import Reference

#: The oldest opset whose operators onnxruntime implements.
OLDEST_OPSET = 7
#: The oldest opset that onnxscript converts from.
_SCRIPT_FROM = 18
_FLATTENING = frozenset({"Softmax", "LogSoftmax", "Hardmax"})


def upgrade(model: ir.Model) -> None:
    """Convert `model` in place to opset `OPSET`; a newer one keeps its opset. Names survive.

    Local functions are inlined, every node has a unique name, and shapes are inferred anew.

    Raises:
        ModelError: when a node cannot be converted, or onnxruntime has no kernel for it at that opset.
    """
    qonnx.forget(model)
    if model.functions:
        InlinePass()(model)
        RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        RemoveUnusedOpsetsPass()(model)
    opset = model.opset_imports[""]
    owners = {node.outputs[0].name: node.name for node in model.graph.all_nodes()}
    if opset < 13:
        for node in list(model.graph.all_nodes()):
            if node.op_type in _FLATTENING and node.domain == "":
                _flatten_explicitly(node)
    if opset < _SCRIPT_FROM:
        _convert_with_onnx(model, _SCRIPT_FROM)
    if opset < 11:
        _resize_asymmetrically(model)
    if opset < OPSET:
        version_converter.convert_version(model, OPSET)
    model.ir_version = max(
        model.ir_version,
        onnx.helper.find_min_ir_version_for(
            [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()], ignore_unknown=True
        ),
    )
    for node in model.graph.all_nodes():
        # A converter's replacement takes the name of the node whose result it now computes.
        node.name = owners.get(node.outputs[0].name, node.name)
    qonnx.define(model)
    name_nodes(model)
    infer_shapes(model)
    if opset < OPSET:
        Reference(model)


def _flatten_explicitly(node: ir.Node) -> None:
    """Make `node` work on the last axis alone, which means the same before and after opset 13."""
    axis = node.attributes.get_int("axis", 1)
    shape = static_shape(node.inputs[0])
    if shape is not None and axis % max(len(shape), 1) == len(shape) - 1:
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    graph, result, x = node.graph, node.outputs[0], node.inputs[0]
    assert graph is not None
    assert x is not None
    if axis < 0:
        if x.shape is None:
            raise ModelError("its input has no known rank", node=describe_node(node))
        axis += len(x.shape)
    flat = ir.node("Flatten", [x], {"axis": axis}, name=f"{node.name}.flatten")
    inner = ir.node(node.op_type, [flat.outputs[0]], {"axis": -1}, name=node.name)
    shape_of = ir.node("Shape", [x], name=f"{node.name}.shape")
    back = ir.node("Reshape", [inner.outputs[0], shape_of.outputs[0]], name=f"{node.name}.unflatten")
    for new in (flat, inner, shape_of):
        new.outputs[0].name = f"{result.name}.{new.op_type.lower()}"
    take_place(node, [flat, inner, shape_of, back])


def _resize_asymmetrically(model: ir.Model) -> None:
    """Give each Resize that was converted from opset 7..10 the coordinates and rounding it had there."""
    resizes = [n for n in model.graph.all_nodes() if n.op_type == "Resize" and n.domain == ""]
    if not resizes:
        return
    infer_shapes(model)
    constants = constant_values(model)
    for node in resizes:
        _set_string(node, "coordinate_transformation_mode", "asymmetric")
        if node.attributes.get_string("mode", "nearest") != "nearest":
            continue
        scales = node.inputs[2]
        factors = constants.get(scales.name or "") if scales is not None else None
        hint = "export the model with opset 11 or newer"
        if factors is None:
            reason = "its scales depend on data, which decides how opset 10 and older round"
            raise ModelError(reason, node=describe_node(node), hint=hint)
        if np.any(factors > 1) and np.any(factors < 1):
            reason = "it enlarges one axis and shrinks another, which opset 11 cannot round as opset 10 did"
            raise ModelError(reason, node=describe_node(node), hint=hint)
        _set_string(node, "nearest_mode", "ceil" if np.any(factors < 1) else "floor")


def _set_string(node: ir.Node, name: str, value: str) -> None:
    node.attributes[name] = ir.AttrString(name, value)


def _convert_with_onnx(model: ir.Model, opset: int) -> None:
    """Convert with onnx's C++ converter, which sees small weights alone, and put the others back."""
    weights = dict(model.graph.initializers)
    inputs = len(model.graph.inputs)
    try:
        converted = onnx.version_converter.convert_version(without_big_weights(model), opset)
    except (onnx.version_converter.ConvertError, RuntimeError) as error:
        span = f"from opset {model.opset_imports['']} to {OPSET}"
        hint = f"export the model with opset {_SCRIPT_FROM} or newer"
        raise ModelError(f"the model cannot be converted {span}: {condense(error)}", hint=hint) from None
    graph = ir.serde.deserialize_model(converted).graph
    for value in list(graph.inputs)[inputs:]:
        value.const_value = weights[value.name or ""].const_value
        graph.register_initializer(value)
    del graph.inputs[inputs:]
    model.graph = graph
