"""Softmax and LogSoftmax spelled as Exp, ReduceSum and a division or logarithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lowerkit.graph.fusions.algebra import Formula, constant, shape_of
from lowerkit.graph.fusions.base import Found, Fusion


@dataclass(frozen=True)
class FuseSoftmax(Fusion):
    """exp(z) / sum(exp(z)) over one axis is Softmax.

    A term of z that is constant along the axis cancels: the maximum, guarded against infinity or not,
    that implementations subtract. So z = x - m becomes Softmax(x). Where nothing was subtracted the named
    operator does not overflow where the spelled one did.
    """

    name: ClassVar[str] = "fuse-softmax"
    roots: ClassVar[frozenset[str]] = frozenset({"Div", "Mul"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        coefficient, powers = formula.product(root.outputs[0])
        numerator = [value for value, power in powers.items() if power == 1]
        denominator = [value for value, power in powers.items() if power == -1]
        if coefficient != 1 or len(powers) != 2 or not numerator or not denominator:
            return None
        z = formula.argument(numerator[0], "Exp")
        axis = reduced_axis(formula, denominator[0], "ReduceSum", numerator[0])
        if z is None or axis is None:
            return None
        return Found("Softmax", [without_row_constant(formula, z, axis)], {"axis": axis})


@dataclass(frozen=True)
class FuseLogSoftmax(Fusion):
    """z - log(sum(exp(z))) over one axis is LogSoftmax; terms constant along the axis cancel."""

    name: ClassVar[str] = "fuse-log-softmax"
    roots: ClassVar[frozenset[str]] = frozenset({"Sub"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        z, log = root.inputs
        total = formula.argument(log, "Log")
        reduction = formula.node(total, "ReduceSum")
        if z is None or reduction is None:
            return None
        exp = reduction.inputs[0]
        axis = reduced_axis(formula, total, "ReduceSum", exp)
        if axis is None or formula.argument(exp, "Exp") is not z:
            return None
        return Found("LogSoftmax", [without_row_constant(formula, z, axis)], {"axis": axis})


def reduced_axis(formula: Formula, value: ir.Value | None, op_type: str, of: ir.Value | None) -> int | None:
    """The axis (negative) when `value` is `op_type` of `of` over one axis, dimension kept; else None."""
    node = formula.node(value, op_type)
    axes = reduced_axes(node) if node is not None else None
    if node is None or node.inputs[0] is not of or axes is None or len(axes) != 1:
        return None
    return axes[0]


def reduced_axes(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a reduction that keeps its dimensions: negative, ascending; None when unknown."""
    shape = shape_of(node.inputs[0])
    if shape is None or not node.attributes.get_int("keepdims", 1):
        return None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if axes is None:
        return None
    return tuple(sorted(int(axis) % len(shape) - len(shape) for axis in axes.reshape(-1)))


def without_row_constant(formula: Formula, z: ir.Value, axis: int) -> ir.Value:
    """x when `z` is x - m with m constant along `axis` and x alike in shape; else z itself."""
    difference, shape = Formula().node(z, "Sub"), shape_of(z)
    if difference is None or shape is None:
        return z
    x, m = difference.inputs
    m_shape = shape_of(m)
    row_constant = m_shape is not None and (len(m_shape) < -axis or m_shape[axis] == 1)
    if x is None or not row_constant or shape_of(x) != shape:
        return z
    formula.node(z, "Sub")
    formula.node(m, "ReduceMax")
    return x
