"""The formats that a quantised graph states itself: they are kept, whatever ranges are calibrated."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph import qonnx
from lowerkit.graph.domain import describe_node
from lowerkit.targets.fpga.constants import known, needed, quant_limits
from lowerkit.targets.fpga.formats import Affine, Bipolar, Fixed, Format

#: Rounding after these is the same as rounding before: they move numbers, or keep their order and 0.
_MONOTONE = frozenset(
    {
        "Dropout",
        "Flatten",
        "Identity",
        "MaxPool",
        "Relu",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_INTEGERS = {
    ir.DataType.INT4: (4, True),
    ir.DataType.UINT4: (4, False),
    ir.DataType.INT8: (8, True),
    ir.DataType.UINT8: (8, False),
    ir.DataType.INT16: (16, True),
    ir.DataType.UINT16: (16, False),
    ir.DataType.INT32: (32, True),
}


def stated(model: ir.Model) -> dict[str, Format]:
    """The formats of all values that are quantised in the graph.

    Integers of QuantizeLinear are whole numbers; what DequantizeLinear makes of them has its scale. A float that
    nothing reads but nodes that quantise it alike has their format already: what computes it rounds once, to that.

    Raises UnsupportedError for scales that are not constant, or not of a whole tensor.
    """
    found: dict[str, Format] = {}
    for node in model.graph:
        if quantises(node) and known(node.inputs[0]) is None and known(node.outputs[0]) is None:
            source, result = node.inputs[0], node.outputs[0]
            assert source is not None
            form = format_of(node)
            if node.domain == "":
                integers = result if node.op_type == "QuantizeLinear" else source
                found[integers.name or ""] = integer_format(integers, node)
            if node.op_type != "QuantizeLinear":
                found[result.name or ""] = form
    for node in reversed(list(model.graph)):
        for value in node.outputs:
            _ahead(value, found)
    for value in model.graph.inputs:
        _ahead(value, found)
    return found


def _ahead(value: ir.Value, found: dict[str, Format]) -> None:
    """The format that all readers of a float bring it to."""
    uses = list(value.uses())
    if value.name in found or value.is_graph_output() or value.dtype != ir.DataType.FLOAT or not uses:
        return
    if known(value) is not None:
        return
    forms: set[Format | None] = set()
    for use in uses:
        node = use.node
        if quantises(node) and use.idx == 0 and node.op_type != "DequantizeLinear":
            forms.add(format_of(node))
        elif node.op_type in _MONOTONE and use.idx == 0:
            form = found.get(node.outputs[0].name or "")
            # The sign of what is never below 0 is no sign of what was before.
            forms.add(form if isinstance(form, Affine) else None)
        else:
            return
    if len(forms) == 1 and (form := forms.pop()) is not None:
        found[value.name or ""] = form


def quantises(node: ir.Node) -> bool:
    """Whether a node states a format."""
    if node.domain == qonnx.DOMAIN:
        return True
    return node.domain == "" and node.op_type in ("QuantizeLinear", "DequantizeLinear")


def format_of(node: ir.Node) -> Format:
    """The format of the numbers that a node quantises to, or reads codes of. Raises UnsupportedError."""
    scales = needed(node, 1)
    if scales.size != 1:
        raise UnsupportedError(
            "no kernel for activations with a scale for each channel", node=describe_node(node)
        )
    step = float(scales.item())
    try:
        if node.op_type == "BipolarQuant":
            return Bipolar(step)
        if node.op_type == "Quant":
            zero, low, _ = quant_limits(node)
            narrow = bool(node.attributes.get_int("narrow", 0))
            return Affine(int(needed(node, 3).item()), step, zero, low < 0, narrow)
        integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        zeros = needed(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
        width, signed = _integer(integers, node)
        return Affine(width, step, int(zeros.item()), signed)
    except ValueError as error:
        raise UnsupportedError(str(error), node=describe_node(node)) from None


def integer_format(value: ir.Value, node: ir.Node) -> Fixed:
    """Whole numbers of the value's type."""
    width, signed = _integer(value, node)
    return Fixed(width, width, signed)


def _integer(value: ir.Value | None, node: ir.Node) -> tuple[int, bool]:
    kind = value.dtype if value is not None else None
    if kind not in _INTEGERS:
        raise UnsupportedError(f"no kernel for numbers quantised to {kind}", node=describe_node(node))
    return _INTEGERS[kind]
