"""Operators as layers, one function each: what the graph says in the words of the kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.graph.fusions.algebra import constant
from lowerkit.targets.fpga.kernels import linear as products
from lowerkit.targets.fpga.kernels import softmax as softmaxes
from lowerkit.targets.fpga.kernels.schedule import built
from lowerkit.targets.fpga.lowering import Context, Converter, added_constant, column_formats, numbers


def _view(context: Context, node: ir.Node) -> None:
    context.view(node.inputs[0], node.outputs[0])


def _gemm(context: Context, node: ir.Node) -> None:
    """alpha x W + beta c: alpha and beta go into the constants."""
    if node.attributes.get_int("transA", 0):
        raise UnsupportedError("no kernel for a transposed left operand", node=describe_node(node))
    weights = numbers(node, 1) * node.attributes.get_float("alpha", 1.0)
    weights = weights.T if node.attributes.get_int("transB", 0) else weights
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = numbers(node, 2) * node.attributes.get_float("beta", 1.0)
        bias = np.broadcast_to(bias.reshape(-1), (weights.shape[1],))
    _linear(context, node, weights, bias, node.outputs[0])


def _matmul(context: Context, node: ir.Node) -> None:
    """By a constant, with what is added to it; or of two activations."""
    second = constant(node.inputs[1]) if node.inputs[1] is not None else None
    if second is not None:
        if second.ndim != 2:
            raise UnsupportedError(
                f"no kernel for a constant of {second.ndim} axes", node=describe_node(node)
            )
        added = added_constant(node, second.shape[1])
        last = added[0] if added else node
        context.done.add(last)
        _linear(context, node, second.astype(np.float64), added[1] if added else None, last.outputs[0])
        return
    a, b, y = (context.port(v) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if len(a.shape) < 2 or a.shape[:-2] != b.shape[:-2]:
        raise UnsupportedError(
            f"no kernel for a product of {a.shape} and {b.shape}", node=describe_node(node)
        )
    sizes = (a.shape[-2], a.shape[-1], b.shape[-1])
    made = products.matmul(context.name(node), a.shape[:-2], sizes, a.format, b.format, y.format)
    context.add(node, made, [node.inputs[0], node.inputs[1]], node.outputs[0])


def _linear(
    context: Context, node: ir.Node, weights: np.ndarray, bias: np.ndarray | None, output: ir.Value
) -> None:
    """The constants as codes: weights of a format for each column, the bias at the accumulator's precision."""
    x, y = context.port(node.inputs[0]), context.port(output)
    formats = column_formats(weights, context.weight_width)
    codes = np.stack([f.quantise(column) for f, column in zip(formats, weights.T, strict=True)], axis=1)
    whole = None
    if bias is not None:
        scales = np.array([2.0 ** (x.format.fraction + f.fraction) for f in formats])
        whole = np.round(bias * scales).astype(np.int64)
    made = products.linear(
        context.name(node),
        x.shape[:-1],
        codes,
        x.format,
        formats,
        y.format,
        bias=whole,
        reuse=context.reuse.get(node.name or "", 1),
    )
    context.add(node, made, [node.inputs[0]], output)


def _fixed_softmax(context: Context, node: ir.Node) -> None:
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    axis = node.attributes.get_int("axis", -1)
    if axis not in (-1, len(x.shape) - 1):
        raise UnsupportedError(f"no kernel for a softmax over axis {axis}", node=describe_node(node))
    rows = math.prod(x.shape[:-1])
    kernel = softmaxes.fixed(rows, x.shape[-1], x.format, y.format, name=context.name(node))
    context.add(node, built(kernel, rows), [node.inputs[0]], node.outputs[0])


CONVERTERS: Mapping[str, Converter] = {
    "FixedSoftmax": _fixed_softmax,
    "Flatten": _view,
    "Gemm": _gemm,
    "Identity": _view,
    "MatMul": _matmul,
    "Reshape": _view,
    "Squeeze": _view,
    "Unsqueeze": _view,
}
