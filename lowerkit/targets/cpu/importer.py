"""The lowered graph as a Relax module, through TVM's ONNX front end.

The front end looks at operator names alone, prints, and raises whatever comes to hand. This subclass gives it
one node at a time, takes the operators that lowerkit emits itself out of its hands, and turns every failure
into an UnsupportedError that names the node.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import tvm
from onnx_ir.passes.common import InlinePass
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from lowerkit.errors import UnsupportedError
from lowerkit.graph.canonicalise import FoldConstants
from lowerkit.graph.channels import drop_unused
from lowerkit.graph.domain import DOMAIN, describe_node
from lowerkit.graph.shapes import infer_shapes
from lowerkit.graph.weights import initializer
from lowerkit.targets.cpu import support
from lowerkit.targets.cpu.decompose import decompose
from lowerkit.targets.cpu.fuse_attention import fuse_attention
from lowerkit.targets.cpu.merge_products import merge_products

#: (block builder, inputs, attributes) -> value, or None to leave the node to the front end.
Converter = Callable[[relax.BlockBuilder, list[relax.Expr], dict[str, Any]], relax.Expr | None]


def import_model(model: ir.Model, converters: dict[str, Converter]) -> tvm.IRModule:
    """`model`, changed in place, as a Relax module with one function, `main`.

    Args:
        converters: operator name -> what lowerkit emits for it, in the domain `lowerkit` or over the front
            end's own. Functions of other operators are inlined.

    Raises:
        UnsupportedError: names the node.
    """
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it reports what it leaves unfolded
    inline = InlinePass(lambda function: not (function.domain == DOMAIN and function.name in converters))
    if inline(model).modified:
        _widen_weights(model)
        FoldConstants()(model)  # bodies compute axes from their attributes
        infer_shapes(model)
    _check(model, converters)
    fuse_attention(model)
    merge_products(model)
    decompose(model)
    model.functions.clear()
    # Bodies hold constants in forms, and arithmetic on axes, that the front end does not take.
    FoldConstants()(model)
    _check(model, converters)
    # Given apart, because the front end takes a dimension of 0 for an unknown one.
    shapes = {
        value.name: list(value.shape.numpy()) for value in model.graph.inputs if value.shape is not None
    }
    proto = ir.serde.serialize_model(model)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Importer(converters, shapes, _types(model)).from_onnx(proto.graph, model.opset_imports[""])


def _widen_weights(model: ir.Model) -> None:
    """Fold Casts of weights, of any size: bodies hold them in types that the front end does not take."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" and node.domain == "" else None
        if source is None or source.const_value is None or node.outputs[0].is_graph_output():
            continue
        dtype = ir.DataType(node.attributes["to"].as_int()).numpy()
        wide = initializer(model.graph, f"{source.name}.{dtype}", source.const_value.numpy().astype(dtype))
        ir.convenience.replace_all_uses_with(node.outputs[0], wide)
        model.graph.remove(node, safe=True)
        drop_unused([source])


def _check(model: ir.Model, converters: dict[str, Converter]) -> None:
    for node in model.graph.all_nodes():
        reason = None if node.domain == DOMAIN and node.op_type in converters else support.reason(node)
        if reason is not None:
            raise UnsupportedError(reason, node=describe_node(node))


def output_types(module: tvm.IRModule) -> list[tuple[list[int], str]]:
    """Shape and dtype name of every output of `main`. Raises UnsupportedError where TVM finds none."""
    returned = module["main"].ret_ty
    out = []
    for index, tensor in enumerate(getattr(returned, "fields", [returned])):
        shape = getattr(tensor, "shape", None)
        if shape is None or not all(isinstance(dim, tvm.tirx.IntImm) for dim in shape):
            raise UnsupportedError(f"TVM finds no static shape for output {index}")
        out.append(([int(dim) for dim in shape], str(tensor.dtype)))
    return out


def _types(model: ir.Model) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype name, by ONNX's inference, of every node output that has them."""
    return {
        value.name or "": (value.shape.numpy(), value.dtype.numpy().name)
        for node in model.graph
        for value in node.outputs
        if value.shape is not None and value.dtype is not None and value.shape.is_static()
    }


class _Importer(ONNXGraphImporter):  # type: ignore[misc]
    def __init__(
        self,
        converters: dict[str, Converter],
        shapes: dict[str | None, list[int]],
        types: dict[str, tuple[tuple[int, ...], str]],
    ) -> None:
        super().__init__(shape_dict=shapes, dtype_dict=None)
        self._converters = converters
        self._types = types

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """Nothing: operators are refused one by one, with their names."""

    def _parse_array(self, tensor_proto: onnx.TensorProto) -> tvm.runtime.Tensor:
        """An initializer; one of int4 as int8, for TVM has no memory for half bytes."""
        if tensor_proto.data_type == onnx.TensorProto.INT4:
            return tvm.runtime.tensor(onnx.numpy_helper.to_array(tensor_proto).astype(np.int8))
        return super()._parse_array(tensor_proto)

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            try:
                super()._construct_nodes(onnx.GraphProto(node=[node]))
            except Exception as error:  # the front end raises anything, from AssertionError to TVMError
                what = f"node '{node.name or '?'}' ({node.op_type})"
                reason = f"TVM's ONNX front end cannot take it: {_first_line(error)}"
                raise UnsupportedError(reason, node=what) from error
            self._check_types(node)

    def _check_types(self, node: onnx.NodeProto) -> None:
        """Refuse a node whose attributes the front end read differently from ONNX: it shows in the shape."""
        for name in node.output:
            found = getattr(self._nodes.get(name), "ty", None)
            if name not in self._types or not isinstance(found, relax.TensorType):
                continue
            shape, dtype = self._types[name]
            dims = getattr(found.shape, "values", None)
            if dims is None or not all(isinstance(dim, tvm.tirx.IntImm) for dim in dims):
                continue
            seen = tuple(int(dim) for dim in dims), str(found.dtype.dtype)
            if seen != (shape, dtype):
                raise UnsupportedError(
                    f"TVM's front end makes it {seen[1]}{list(seen[0])}, not {dtype}{list(shape)}",
                    node=f"node '{node.name or '?'}' ({node.op_type})",
                )

    def _convert_operator(
        self, op_name: str, inputs: list[relax.Expr], attrs: dict[str, Any], opset: int
    ) -> relax.Expr:
        if op_name in self._converters:
            value = self._converters[op_name](self.bb, list(inputs), attrs)
            if value is not None:
                return self.bb.normalize(value)
        return super()._convert_operator(op_name, inputs, attrs, opset)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
