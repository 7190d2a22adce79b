"""A convolution and what scales and shifts its channels as one convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.batch_norm import channel_affine
from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.shapes import static_shape
from lowerkit.graph.weights import initializer


@dataclass(frozen=True)
class FoldConvAffine:
    """Fold BatchNormalization, and Add, Sub, Mul and Div by constants per channel, into Conv or ConvTranspose.

    Exact in real arithmetic, rounding differs. Valid before and after: any graph with inferred shapes.
    """

    name: ClassVar[str] = "fold-conv-affine"

    def __call__(self, model: ir.Model) -> int:
        """Fold, in place; the number of operators folded."""
        return sum(_fold(node) for node in list(model.graph) if node.domain == "" and node.op_type in _AFFINE)


_AFFINE = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub"})


def _fold(node: ir.Node) -> int:
    for value in node.inputs[:2]:
        conv = value.producer() if value is not None else None
        if (
            value is None
            or conv is None
            or conv.domain != ""
            or conv.op_type not in ("Conv", "ConvTranspose")
        ):
            continue
        shape = static_shape(value)
        if len(value.uses()) != 1 or value.is_graph_output() or shape is None:
            continue
        has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
        weight, bias = constant(conv.inputs[1]), constant(conv.inputs[2]) if has_bias else None
        affine = _affine(node, value, shape) if static_shape(node.outputs[0]) == shape else None
        if weight is None or affine is None or (has_bias and bias is None):
            continue
        _write(node, conv, weight, np.zeros(shape[1], weight.dtype) if bias is None else bias, *affine)
        return 1
    return 0


def _affine(
    node: ir.Node, value: ir.Value, shape: tuple[int, ...]
) -> tuple[np.ndarray | None, np.ndarray] | None:
    """(factor, offset) per channel, in float64, when `node` is value * factor + offset; no factor is 1."""
    zero = np.zeros(shape[1])
    if node.op_type == "BatchNormalization":
        return channel_affine(node)
    first = node.inputs[0] is value
    number = _per_channel(constant(node.inputs[1 if first else 0]), shape)
    if number is None:
        return None
    match node.op_type:
        case "Add":
            return None, number
        case "Mul":
            return number, zero
        case "Sub" if first:
            return None, -number
        case "Div" if first and number.all():
            return 1 / number, zero
    return None


def _per_channel(number: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """`number` as a float64 vector of the channels (axis 1 of `shape`), when it varies over nothing else."""
    if number is None:
        return None
    spread = number.reshape((1,) * (len(shape) - number.ndim) + number.shape)
    if any(size != 1 for axis, size in enumerate(spread.shape) if axis != 1):
        return None
    return np.broadcast_to(spread.reshape(-1).astype(np.float64), (shape[1],))


def _write(
    node: ir.Node,
    conv: ir.Node,
    weight: np.ndarray,
    bias: np.ndarray,
    factor: np.ndarray | None,
    offset: np.ndarray,
) -> None:
    graph, old = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    kernel, shift = conv.inputs[1], bias.astype(np.float64)
    if factor is not None:
        # The output channels are axis 0 of a Conv's weight, and axes (group, 1) of a ConvTranspose's.
        groups = conv.attributes.get_int("group", 1) if conv.op_type == "ConvTranspose" else len(factor)
        grouped = weight.astype(np.float64).reshape(groups, -1, len(factor) // groups, *weight.shape[2:])
        scaled = (grouped * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)
        kernel = initializer(graph, f"{old.name}/weight", scaled.astype(weight.dtype))
        shift = shift * factor
    shifted = initializer(graph, f"{old.name}/bias", (shift + offset).astype(weight.dtype))
    made = ir.node(conv.op_type, [conv.inputs[0], kernel, shifted], dict(conv.attributes), name=conv.name)
    take_place(node, [made])
