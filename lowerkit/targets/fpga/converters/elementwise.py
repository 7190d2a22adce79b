"""Arithmetic of elements, with constants and with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.targets.fpga.constants import known
from lowerkit.targets.fpga.formats import Fixed, Format
from lowerkit.targets.fpga.kernels import affine, elementwise
from lowerkit.targets.fpga.lowering import Context, Converter


def _binary(context: Context, node: ir.Node) -> None:
    """Add, Sub and Mul of two activations, or of one and a constant."""
    first, second = node.inputs[0], node.inputs[1]
    if known(first) is not None and node.op_type != "Sub":
        first, second = second, first
    if known(first) is not None:
        raise UnsupportedError("no kernel for a constant less an activation", node=describe_node(node))
    fixed = known(second)
    if fixed is None:
        _activations(context, node)
        return
    if node.op_type == "Mul" and _shifted(
        context, first, node, float(fixed.item()) if fixed.size == 1 else None
    ):
        return
    _constant(context, node, first, np.atleast_1d(fixed))


def _divide(context: Context, node: ir.Node) -> None:
    """By a constant: multiply by its inverse."""
    divisor = known(node.inputs[1])
    if divisor is None or not np.all(divisor):
        raise UnsupportedError("no kernel for a division by what is no constant", node=describe_node(node))
    if _any_affine(context.port(node.inputs[0]).format, context.port(node.outputs[0]).format):
        raise UnsupportedError("no exact kernel for a division", node=describe_node(node))
    inverse = 1 / divisor
    if not _shifted(context, node.inputs[0], node, float(inverse.item()) if inverse.size == 1 else None):
        _constant(context, node, node.inputs[0], np.atleast_1d(inverse))


def _shifted(context: Context, source: ir.Value | None, node: ir.Node, factor: float | None) -> bool:
    """A power of two moves the point, and costs nothing."""
    own = context.formats.get(node.outputs[0].name or "")
    if own is not None and _any_affine(context.port(source).format, own):
        return False
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
    if _any_affine(a.format, y.format):
        if node.op_type == "Mul":
            made = affine.scaled(name, a.shape, a.format, y.format, factor=array)
        else:
            offset = -array if node.op_type == "Sub" else array
            made = affine.scaled(name, a.shape, a.format, y.format, offset=offset)
        context.add(node, made, [first], node.outputs[0])
        return
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    form = Fixed.holding(low, high if high > low else 2.0**-40, max(context.weight_width, CONSTANTS))
    codes = form.quantise(array)
    if node.op_type in ("Mul", "Div"):
        made = elementwise.multiply(name, a.shape, codes, a.fixed, form, y.fixed)
    else:
        made = elementwise.add(name, a.shape, codes, a.fixed, form, y.fixed, negate=node.op_type == "Sub")
    context.add(node, made, [first], node.outputs[0])


def _activations(context: Context, node: ir.Node) -> None:
    a, b, y = (context.port(v) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))
    name, negate = context.name(node), node.op_type == "Sub"
    if _any_affine(a.format, b.format, y.format):
        if node.op_type == "Mul":
            made = affine.multiply(name, a.shape, b.shape, a.format, b.format, y.format)
        else:
            made = affine.add(name, a.shape, b.shape, a.format, b.format, y.format, negate=negate)
    elif node.op_type == "Mul":
        made = elementwise.multiply(name, a.shape, b.shape, a.fixed, b.fixed, y.fixed)
    else:
        made = elementwise.add(name, a.shape, b.shape, a.fixed, b.fixed, y.fixed, negate=negate)
    context.add(node, made, [node.inputs[0], node.inputs[1]], node.outputs[0])


def _clip(context: Context, node: ir.Node) -> None:
    """To the codes within both ends."""
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    given = [known(v) for v in (*node.inputs[1:3], None, None)[:2]]
    if any(v is not None and end is None for v, end in zip(node.inputs[1:3], given, strict=False)):
        raise UnsupportedError("no kernel for limits that are no constants", node=describe_node(node))
    if _any_affine(x.format, y.format):
        _clip_exactly(context, node, given)
        return
    codes = x.format.range
    low = codes.low if given[0] is None else math.ceil(float(given[0].item()) / x.format.step)
    high = codes.high if given[1] is None else math.floor(float(given[1].item()) / x.format.step)
    low, high = max(min(low, codes.high), codes.low), min(max(high, codes.low), codes.high)
    made = elementwise.limit(context.name(node), x.shape, low, high, x.fixed, y.fixed)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _clip_exactly(context: Context, node: ir.Node, given: Sequence[np.ndarray | None]) -> None:
    """To numbers that are codes of what is read; others lie between two, and are refused."""
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    ends = [x.format.range.low, x.format.range.high]
    for i, end in enumerate(given):
        if end is not None:
            exact = Fraction(float(end.item())) / x.format.scale + x.format.zero
            beyond = exact < ends[0] if i == 0 else exact > ends[1]
            if exact.denominator != 1 and not beyond:
                raise UnsupportedError("a limit is no number of the input's format", node=describe_node(node))
            ends[i] = ends[i] if beyond else int(exact)
    made = affine.scaled(context.name(node), x.shape, x.format, y.format, within=(ends[0], ends[1]))
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _any_affine(*formats: Format) -> bool:
    return not all(isinstance(found, Fixed) for found in formats)


#: Constants are few: narrower than this saves nothing.
CONSTANTS = 12

CONVERTERS: Mapping[str, Converter] = {
    "Add": _binary,
    "Clip": _clip,
    "Div": _divide,
    "Mul": _binary,
    "Sub": _binary,
}
