"""Pooling, means and sums."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.graph.edit import uses_further_outputs
from lowerkit.targets.fpga.kernels import mean, pool
from lowerkit.targets.fpga.kernels.window import Window
from lowerkit.targets.fpga.lowering import Context, Converter, numbers, pads, pair


def _pool(context: Context, node: ir.Node) -> None:
    """Of one image: a leading batch of 1."""
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    if len(x.shape) != 4 or x.shape[0] != 1 or node.attributes.get_int("ceil_mode", 0) != 0:
        raise UnsupportedError(f"no kernel for this pooling of {x.shape}", node=describe_node(node))
    if uses_further_outputs(node):
        raise UnsupportedError("no kernel for the places of maxima", node=describe_node(node))
    image, name = (x.shape[2], x.shape[3]), context.name(node)
    window = Window(
        pair(node, "kernel_shape", 1), pair(node, "strides", 1), pads(node), pair(node, "dilations", 1)
    )
    if node.op_type == "MaxPool":
        made = pool.max_pool(name, x.shape[1], image, window, x.format, y.format)
    else:
        count = bool(node.attributes.get_int("count_include_pad", 0))
        made = pool.average_pool(name, x.shape[1], image, window, x.format, y.format, count_pads=count)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _global_average(context: Context, node: ir.Node) -> None:
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    if len(x.shape) != 4 or x.shape[0] != 1:
        raise UnsupportedError(f"no kernel for a pooling of {x.shape}", node=describe_node(node))
    image = (x.shape[2], x.shape[3])
    made = pool.global_average_pool(context.name(node), x.shape[1], image, x.format, y.format)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _mean(context: Context, node: ir.Node) -> None:
    """Or a sum, over neighbouring axes, which are one in row-major order."""
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    given = [int(a) % len(x.shape) for a in numbers(node, 1).ravel()] if len(node.inputs) > 1 else []
    if not given and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        context.view(node.inputs[0], node.outputs[0])
        return
    axes = sorted(given) or list(range(len(x.shape)))
    if axes != list(range(axes[0], axes[-1] + 1)):
        raise UnsupportedError(f"no kernel for a {node.op_type} over axes {axes}", node=describe_node(node))
    first, last = axes[0], axes[-1] + 1
    before, count, after = (math.prod(s) for s in (x.shape[:first], x.shape[first:last], x.shape[last:]))
    divisor = 1 if node.op_type == "ReduceSum" else None
    made = mean.mean(context.name(node), before, count, after, x.format, y.format, divisor=divisor)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


CONVERTERS: Mapping[str, Converter] = {
    "AveragePool": _pool,
    "GlobalAveragePool": _global_average,
    "MaxPool": _pool,
    "ReduceMean": _mean,
    "ReduceSum": _mean,
}
