"""Codes moved, and views of them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.graph.edit import uses_further_outputs
from lowerkit.targets.fpga.constants import known
from lowerkit.targets.fpga.kernels import layout
from lowerkit.targets.fpga.lowering import Context, Converter, numbers


def _view(context: Context, node: ir.Node) -> None:
    context.view(node.inputs[0], node.outputs[0])


def _dropout(context: Context, node: ir.Node) -> None:
    """Nothing, as long as nothing is trained."""
    asked = node.inputs[2] if len(node.inputs) > 2 else None
    training = known(asked)
    if asked is not None and (training is None or bool(training.item())):
        raise UnsupportedError("no kernel for a dropout in training", node=describe_node(node))
    if uses_further_outputs(node):
        raise UnsupportedError("no kernel for a dropout's mask", node=describe_node(node))
    _view(context, node)


def _transpose(context: Context, node: ir.Node) -> None:
    """A view where only axes of 1 move."""
    x = context.port(node.inputs[0])
    order = list(node.attributes.get_ints("perm", tuple(reversed(range(len(x.shape))))))
    moving = [axis for axis in order if x.shape[axis] > 1]
    if moving == sorted(moving):
        context.view(node.inputs[0], node.outputs[0])
        return
    context.moved(node.inputs[0], node.outputs[0])
    made = layout.transpose(context.name(node), x.shape, order, x.format)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _gather(context: Context, node: ir.Node) -> None:
    """Rows of a constant table by ids, or one place along an axis of an activation."""
    table, index = known(node.inputs[0]), known(node.inputs[1])
    if table is not None and table.ndim == 2 and node.attributes.get_int("axis", 0) in (0, -2):
        ids, y = context.port(node.inputs[1]), context.port(node.outputs[0])
        codes = y.format.quantise(table)
        made = layout.embedding(context.name(node), ids.shape, codes, ids.format.range, y.format)
        context.add(node, made, [node.inputs[1]], node.outputs[0])
        return
    x = context.port(node.inputs[0])
    if index is None or index.size != 1:
        raise UnsupportedError(
            "no kernel for a gather of an activation by many ids", node=describe_node(node)
        )
    axis, at = node.attributes.get_int("axis", 0) % len(x.shape), int(index.item())
    starts, counts = [0] * len(x.shape), list(x.shape)
    starts[axis], counts[axis] = at % x.shape[axis], 1
    _slices(context, node, starts, counts, [1] * len(x.shape))


def _slice(context: Context, node: ir.Node) -> None:
    x = context.port(node.inputs[0])
    first, last = ([int(v) for v in numbers(node, i).ravel()] for i in (1, 2))
    given = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = [int(a) % len(x.shape) for a in numbers(node, 3).ravel()] if given else list(range(len(first)))
    stepped = len(node.inputs) > 4 and node.inputs[4] is not None
    by = [int(v) for v in numbers(node, 4).ravel()] if stepped else [1] * len(axes)
    starts, counts, steps = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
    for axis, start, end, step in zip(axes, first, last, by, strict=True):
        starts[axis], stop, steps[axis] = slice(start, end, step).indices(x.shape[axis])
        counts[axis] = len(range(starts[axis], stop, step))
    if not all(counts):
        raise UnsupportedError("a slice takes nothing", node=describe_node(node))
    _slices(context, node, starts, counts, steps)


def _slices(context: Context, node: ir.Node, starts: list[int], counts: list[int], steps: list[int]) -> None:
    x = context.port(node.inputs[0])
    context.moved(node.inputs[0], node.outputs[0])
    made = layout.slices(context.name(node), x.shape, starts, counts, steps, x.format)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _split(context: Context, node: ir.Node) -> None:
    """A slice for each output."""
    x = context.port(node.inputs[0])
    axis, start = node.attributes.get_int("axis", 0) % len(x.shape), 0
    for output in node.outputs:
        starts, counts = [0] * len(x.shape), list(x.shape)
        starts[axis], counts[axis] = start, int((output.shape or ())[axis])  # type: ignore[arg-type]
        start += counts[axis]
        context.moved(node.inputs[0], output)
        made = layout.slices(context.name(node), x.shape, starts, counts, [1] * len(x.shape), x.format)
        context.add(node, made, [node.inputs[0]], output)


def _concat(context: Context, node: ir.Node) -> None:
    """Of activations, and of constants as codes of the result's format."""
    y = context.port(node.outputs[0])
    fixed = [known(v) for v in node.inputs]
    data = [v for v, array in zip(node.inputs, fixed, strict=True) if array is None]
    if not data:
        raise UnsupportedError("no kernel for joining constants alone", node=describe_node(node))
    made = layout.concat(
        context.name(node),
        [
            context.port(v).shape if array is None else y.format.quantise(array)
            for v, array in zip(node.inputs, fixed, strict=True)
        ],
        node.attributes.get_int("axis", 0),
        [
            context.port(v).format if array is None else y.format
            for v, array in zip(node.inputs, fixed, strict=True)
        ],
        y.format,
    )
    context.add(node, made, data, node.outputs[0])


CONVERTERS: Mapping[str, Converter] = {
    "Concat": _concat,
    "Dropout": _dropout,
    "Flatten": _view,
    "Gather": _gather,
    "Identity": _view,
    "Reshape": _view,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _view,
    "Transpose": _transpose,
    "Unsqueeze": _view,
}
