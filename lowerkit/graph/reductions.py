"""Reductions in one spelling: axes kept where they come back, a sum over its count as a mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.algebra import constant, scalar
from lowerkit.graph.shapes import static_shape
from lowerkit.graph.weights import initializer

_REDUCTIONS = frozenset(
    {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"}
)


@dataclass(frozen=True)
class KeepReducedAxes:
    """Write reductions as fusions read them: axes kept where they come back, means as ReduceMean.

    A mean is also a sum divided by the count, of squares or not, and a GlobalAveragePool over one axis.
    Valid before and after: any graph with inferred shapes.
    """

    name: ClassVar[str] = "keep-reduced-axes"

    def __call__(self, model: ir.Model) -> int:
        """Rewrite, in place; the number of nodes written anew."""
        count = 0
        for node in list(model.graph.all_nodes()):
            if node.domain != "" or not isinstance(node.graph, ir.Graph):
                continue
            if node.op_type in ("Reshape", "Unsqueeze"):
                count += _keep(node, node.graph)
            elif node.op_type == "Div":
                count += _mean(node, node.graph)
            elif node.op_type == "GlobalAveragePool" and len(static_shape(node.inputs[0]) or ()) == 3:
                x = node.inputs[0]
                assert x is not None
                _replace(node, node.graph, "ReduceMean", x, (-1,))
                count += 1
        return count


def _keep(node: ir.Node, graph: ir.Graph) -> int:
    reduced = node.inputs[0]
    reduction = reduced.producer() if reduced is not None else None
    if reduction is None or reduction.domain != "" or reduction.op_type not in _REDUCTIONS:
        return 0
    x = reduction.inputs[0]
    shape = static_shape(x)
    given = constant(reduction.inputs[1]) if len(reduction.inputs) > 1 else None
    if x is None or shape is None or given is None or reduction.attributes.get_int("keepdims", 1) != 0:
        return 0
    axes = {int(axis) % len(shape) for axis in given.reshape(-1)}
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    if static_shape(node.outputs[0]) != kept:
        return 0
    _replace(node, graph, reduction.op_type, x, tuple(sorted(axes)))
    return 1


def _mean(node: ir.Node, graph: ir.Graph) -> int:
    total, count = node.inputs[0], scalar(node.inputs[1])
    reduction = total.producer() if total is not None else None
    if (
        reduction is None
        or reduction.domain != ""
        or reduction.op_type not in ("ReduceSum", "ReduceSumSquare")
    ):
        return 0
    x = reduction.inputs[0]
    shape = static_shape(x)
    given = constant(reduction.inputs[1]) if len(reduction.inputs) > 1 else None
    if x is None or shape is None or given is None or reduction.attributes.get_int("keepdims", 1) == 0:
        return 0
    axes = sorted(int(axis) % len(shape) for axis in given.reshape(-1))
    if count != math.prod(shape[axis] for axis in axes):
        return 0
    if reduction.op_type == "ReduceSumSquare":
        square = ir.node("Mul", [x, x], name=f"{node.name}.square")
        squared = square.outputs[0]
        squared.name, squared.type, squared.shape = f"{node.outputs[0].name}/square", x.type, x.shape
        graph.insert_before(node, square)
        x = squared
    _replace(node, graph, "ReduceMean", x, tuple(axes))
    return 1


def _replace(node: ir.Node, graph: ir.Graph, op_type: str, x: ir.Value, axes: tuple[int, ...]) -> None:
    wanted = initializer(graph, f"{node.outputs[0].name}/axes", np.array(axes, np.int64))
    take_place(node, [ir.node(op_type, [x, wanted], {"keepdims": 1}, name=node.name)])
