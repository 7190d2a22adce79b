"""Arithmetic of elements, with constants and with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.graph.fusions.algebra import constant, scalar
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import elementwise
from lowerkit.targets.fpga.lowering import Context, Converter


def _binary(context: Context, node: ir.Node) -> None:
    """Add, Sub and Mul of two activations, or of one and a constant."""
    first, second = node.inputs[0], node.inputs[1]
    if constant(first) is not None and node.op_type != "Sub":
        first, second = second, first
    if constant(first) is not None:
        raise UnsupportedError("no kernel for a constant less an activation", node=describe_node(node))
    fixed = constant(second)
    if fixed is None:
        _activations(context, node)
        return
    if node.op_type == "Mul" and _shifted(context, first, node, scalar(second)):
        return
    _constant(context, node, first, np.atleast_1d(fixed.astype(np.float64)))


def _divide(context: Context, node: ir.Node) -> None:
    """By a constant: multiply by its inverse."""
    divisor = constant(node.inputs[1])
    if divisor is None or not np.all(divisor):
        raise UnsupportedError("no kernel for a division by what is no constant", node=describe_node(node))
    inverse = 1 / divisor.astype(np.float64)
    if not _shifted(context, node.inputs[0], node, float(inverse.item()) if inverse.size == 1 else None):
        _constant(context, node, node.inputs[0], np.atleast_1d(inverse))


def _shifted(context: Context, source: ir.Value | None, node: ir.Node, factor: float | None) -> bool:
    """A power of two moves the point, and costs nothing."""
    if factor is None or factor <= 0 or math.frexp(factor)[0] != 0.5:
        return False
    context.view(source, node.outputs[0], math.frexp(factor)[1] - 1)
    return True


def _constant(context: Context, node: ir.Node, first: ir.Value | None, array: np.ndarray) -> None:
    a, y, name = context.port(first), context.port(node.outputs[0]), context.name(node)
    if node.op_type in ("Add", "Sub"):
        # What takes every activation past the output's ends, a mask's -inf among them, need not be larger.
        most = max(y.format.high, -y.format.low) + max(a.format.high, -a.format.low) + 1.0
        array = np.clip(array, -most, most)
    if not np.isfinite(array).all():
        raise UnsupportedError("a constant has numbers that are not finite", node=describe_node(node))
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    form = Fixed.holding(low, high if high > low else 2.0**-40, max(context.weight_width, CONSTANTS))
    codes = form.quantise(array)
    if node.op_type in ("Mul", "Div"):
        made = elementwise.multiply(name, a.shape, codes, a.format, form, y.format)
    else:
        made = elementwise.add(name, a.shape, codes, a.format, form, y.format, negate=node.op_type == "Sub")
    context.add(node, made, [first], node.outputs[0])


def _activations(context: Context, node: ir.Node) -> None:
    a, b, y = (context.port(v) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))
    name = context.name(node)
    if node.op_type == "Mul":
        made = elementwise.multiply(name, a.shape, b.shape, a.format, b.format, y.format)
    else:
        negate = node.op_type == "Sub"
        made = elementwise.add(name, a.shape, b.shape, a.format, b.format, y.format, negate=negate)
    context.add(node, made, [node.inputs[0], node.inputs[1]], node.outputs[0])


def _clip(context: Context, node: ir.Node) -> None:
    """To the codes within both ends."""
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    given = [constant(v) for v in (*node.inputs[1:3], None, None)[:2]]
    if any(v is not None and end is None for v, end in zip(node.inputs[1:3], given, strict=False)):
        raise UnsupportedError("no kernel for limits that are no constants", node=describe_node(node))
    codes = x.format.range
    low = codes.low if given[0] is None else math.ceil(float(given[0].item()) / x.format.step)
    high = codes.high if given[1] is None else math.floor(float(given[1].item()) / x.format.step)
    low, high = max(min(low, codes.high), codes.low), min(max(high, codes.low), codes.high)
    made = elementwise.limit(context.name(node), x.shape, low, high, x.format, y.format)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


#: Constants are few: narrower than this saves nothing.
CONSTANTS = 12

CONVERTERS: Mapping[str, Converter] = {
    "Add": _binary,
    "Clip": _clip,
    "Div": _divide,
    "Mul": _binary,
    "Sub": _binary,
}
