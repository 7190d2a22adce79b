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

import onnx
import onnx_ir as ir
import tvm
from onnx_ir.passes.common import InlinePass
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from lowerkit.errors import UnsupportedError
from lowerkit.graph.canonicalise import FoldConstants
from lowerkit.graph.domain import DOMAIN, describe_node
from lowerkit.targets.cpu import support

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
    InlinePass(lambda function: not (function.domain == DOMAIN and function.name in converters))(model)
    model.functions.clear()
    # Bodies hold constants in forms, and arithmetic on axes, that the front end does not take.
    FoldConstants()(model)
    for node in model.graph.all_nodes():
        reason = None if node.domain == DOMAIN and node.op_type in converters else support.reason(node)
        if reason is not None:
            raise UnsupportedError(reason, node=describe_node(node))
    # Given apart, because the front end takes a dimension of 0 for an unknown one.
    shapes = {
        value.name: list(value.shape.numpy()) for value in model.graph.inputs if value.shape is not None
    }
    proto = ir.serde.serialize_model(model)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Importer(converters, shapes).from_onnx(proto.graph, model.opset_imports[""])


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


class _Importer(ONNXGraphImporter):  # type: ignore[misc]
    def __init__(self, converters: dict[str, Converter], shapes: dict[str | None, list[int]]) -> None:
        super().__init__(shape_dict=shapes, dtype_dict=None)
        self._converters = converters

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """Nothing: operators are refused one by one, with their names."""

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            try:
                super()._construct_nodes(onnx.GraphProto(node=[node]))
            except Exception as error:  # the front end raises anything, from AssertionError to TVMError
                what = f"node '{node.name or '?'}' ({node.op_type})"
                reason = f"TVM's ONNX front end cannot take it: {_first_line(error)}"
                raise UnsupportedError(reason, node=what) from error

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
