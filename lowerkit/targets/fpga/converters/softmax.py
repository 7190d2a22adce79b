"""Softmax over the last axis, by the method that the plan chose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.graph.fusions.algebra import constant
from lowerkit.passes import registry
from lowerkit.passes.softmax.binary import Binary
from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.passes.softmax.log_quantised import LogQuantised
from lowerkit.passes.softmax.online import Online
from lowerkit.passes.softmax.power import Power
from lowerkit.passes.softmax.quantised import Quantised
from lowerkit.passes.softmax.shift import Shift
from lowerkit.targets.fpga.design import Port
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import softmax as kernels
from lowerkit.targets.fpga.kernels import softmax_affine
from lowerkit.targets.fpga.kernels.schedule import built
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.lowering import Context, Converter, alone, replaced

Make = Callable[[int, int, Port, Port, Any, str], Kernel]


def _fixed(rows: int, columns: int, x: Port, y: Port, method: FixedMethod | None, name: str) -> Kernel:
    chosen = None if method is None else replace(method, output_bits=y.fixed.fraction)
    return kernels.fixed(rows, columns, x.fixed, y.fixed, chosen, name=name)


def _shift(rows: int, columns: int, x: Port, y: Port, method: Shift, name: str) -> Kernel:
    chosen = replace(method, output_bits=y.fixed.fraction)
    return kernels.shift(rows, columns, x.fixed, y.fixed, chosen, name=name)


def _online(rows: int, columns: int, x: Port, y: Port, method: Online, name: str) -> Kernel:
    return kernels.online(rows, columns, x.fixed, y.fixed, name=name)


def _quantised(rows: int, columns: int, x: Port, y: Port, method: Quantised, name: str) -> Kernel:
    return kernels.quantised(rows, columns, x.fixed, method, target=y.fixed, name=name)


def _log(rows: int, columns: int, x: Port, y: Port, method: LogQuantised, name: str) -> Kernel:
    return kernels.log_quantised(rows, columns, x.fixed, method, target=y.fixed, name=name)


def _binary(rows: int, columns: int, x: Port, y: Port, method: Binary, name: str) -> Kernel:
    return kernels.binary(rows, columns, x.fixed, method, target=y.fixed, name=name)


def _power(rows: int, columns: int, x: Port, y: Port, method: Power, name: str) -> Kernel:
    return kernels.power(rows, columns, x.fixed, y.fixed, method, name=name)


_KERNELS: Mapping[type, Make] = {
    FixedMethod: _fixed,
    Shift: _shift,
    Online: _online,
    Quantised: _quantised,
    LogQuantised: _log,
    Binary: _binary,
    Power: _power,
}


def _softmax(context: Context, node: ir.Node) -> None:
    """By the method's own integers; by those of `fixed`, sized for the formats, where the plan keeps a Softmax.

    Between affine formats, `fixed` and a Softmax that is kept are tables of all codes.
    """
    x = context.port(node.inputs[0])
    axis = node.attributes.get_int("axis", replaced(node).get("axis", -1))
    if axis not in (-1, len(x.shape) - 1):
        raise UnsupportedError(f"no kernel for a softmax over axis {axis}", node=describe_node(node))
    method, y = registry.method_of(node), context.port(node.outputs[0])
    if method is None and node.op_type not in ("Softmax", "FixedSoftmax"):
        raise UnsupportedError("the node does not say which method's it is", node=describe_node(node))
    plain = method is None or isinstance(method, FixedMethod)
    if plain and not (isinstance(x.format, Fixed) and isinstance(y.format, Fixed)):
        rows = math.prod(x.shape[:-1])
        made = softmax_affine.softmax(context.name(node), rows, x.shape[-1], x.format, y.format)
        context.add(node, made, [node.inputs[0]], node.outputs[0])
        return
    make = _fixed if method is None else _KERNELS[type(method)]
    _rows(context, node, node.inputs[0], node.outputs[0], make, method)


def _rows(
    context: Context, node: ir.Node, source: ir.Value | None, output: ir.Value, make: Make, method: Any
) -> None:
    x, y = context.port(source), context.port(output)
    rows = math.prod(x.shape[:-1])
    kernel = make(rows, x.shape[-1], x, y, method, context.name(node))
    context.add(node, built(kernel, rows), [source], output)


def _pow(context: Context, node: ir.Node) -> None:
    """x^p / (sum x^p + epsilon) with p even, as models trained with it spell it; no other power has a kernel."""
    exponent = constant(node.inputs[1]) if node.inputs[1] is not None else None
    if exponent is None or exponent.size != 1 or float(exponent.item()) % 2:
        raise UnsupportedError(
            "a power has a kernel only as an even power over its sum", node=describe_node(node)
        )
    found = _normalised(node)
    if found is None:
        raise UnsupportedError("a power has a kernel only over its sum", node=describe_node(node))
    nodes, epsilon = found
    context.done.update(nodes)
    form = "stable" if epsilon else "plain"
    method = Power(power=int(exponent.item()), form=form, scale=1.0, epsilon=epsilon)
    _rows(context, node, node.inputs[0], nodes[-1].outputs[0], _power, method)


def _normalised(node: ir.Node) -> tuple[list[ir.Node], float] | None:
    """What divides a power by its sum over the last axis, and epsilon; None for anything else."""
    uses = {use.node.op_type: use.node for use in node.outputs[0].uses()}
    total, quotient = uses.get("ReduceSum"), uses.get("Div")
    if total is None or quotient is None or len(node.outputs[0].uses()) != 2:
        return None
    axes = constant(total.inputs[1]) if len(total.inputs) > 1 and total.inputs[1] is not None else None
    rank = len(node.outputs[0].shape or ())
    if axes is None or [int(a) % rank for a in np.ravel(axes)] != [rank - 1]:
        return None
    if not total.attributes.get_int("keepdims", 1):
        return None
    found, value, epsilon = [total], total.outputs[0], 0.0
    add = alone(value, "Add")
    if add is not None:
        other = next((constant(v) for v in add.inputs if v is not None and v is not value), None)
        if other is None or other.size != 1:
            return None
        found, value, epsilon = [*found, add], add.outputs[0], float(other.item())
    if alone(value, "Div") is not quotient or quotient.inputs[1] is not value:
        return None
    return [*found, quotient], epsilon


CONVERTERS: Mapping[str, Converter] = {
    **{
        operator.name: _softmax
        for method in _KERNELS
        for operator in method.functions.values()  # type: ignore[attr-defined]
    },
    "Pow": _pow,
    "Softmax": _softmax,
}
