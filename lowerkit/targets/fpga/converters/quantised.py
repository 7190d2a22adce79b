"""Nodes that quantise: where what they read has their format already, they are views."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lowerkit.targets.fpga.constants import known
from lowerkit.targets.fpga.graph_formats import format_of, integer_format
from lowerkit.targets.fpga.kernels import affine
from lowerkit.targets.fpga.lowering import Context, Converter


def _quantise(context: Context, node: ir.Node) -> None:
    """To codes of the node's format: integers for QuantizeLinear, numbers for QONNX's operators."""
    source, result = node.inputs[0], node.outputs[0]
    if known(source) is not None:
        return  # a constant, which what reads it takes in
    form = format_of(node)
    shown = integer_format(result, node) if node.op_type == "QuantizeLinear" else form
    x = context.port(source)
    if x.format == form:
        context.view(source, result, form=shown)
        return
    made = affine.scaled(context.name(node), x.shape, x.format, form)
    context.add(node, made, [source], result)


def _dequantise(context: Context, node: ir.Node) -> None:
    """The same codes, as numbers."""
    if known(node.outputs[0]) is None:
        context.view(node.inputs[0], node.outputs[0], form=format_of(node))


CONVERTERS: Mapping[str, Converter] = {
    "BipolarQuant": _quantise,
    "DequantizeLinear": _dequantise,
    "Quant": _quantise,
    "QuantizeLinear": _quantise,
}
