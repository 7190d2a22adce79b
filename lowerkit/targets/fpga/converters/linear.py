"""Products: with constants, which take in the constant added to them, and of two activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.targets.fpga.constants import coded, known
from lowerkit.targets.fpga.formats import Affine, Bipolar, Fixed, Format
from lowerkit.targets.fpga.kernels import linear as products
from lowerkit.targets.fpga.kernels.conv import conv2d
from lowerkit.targets.fpga.kernels.unit import Job
from lowerkit.targets.fpga.lowering import (
    Context,
    Converter,
    added_constant,
    column_codes,
    column_formats,
    numbers,
    pads,
    pair,
    rectified,
    whole_bias,
)
from lowerkit.targets.fpga.narrow_weights import coding


def _gemm(context: Context, node: ir.Node) -> None:
    """alpha x W + beta c: alpha and beta go into the constants."""
    if node.attributes.get_int("transA", 0):
        raise UnsupportedError("no kernel for a transposed left operand", node=describe_node(node))
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha != 1 and coded(node.inputs[1]) is not None:
        raise UnsupportedError("no kernel for alpha on quantised weights", node=describe_node(node))
    weights = numbers(node, 1) * alpha
    weights = weights.T if node.attributes.get_int("transB", 0) else weights
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = numbers(node, 2) * node.attributes.get_float("beta", 1.0)
        if bias.size not in (1, weights.shape[1]):
            raise UnsupportedError("no kernel for a bias for each row", node=describe_node(node))
        bias = np.broadcast_to(bias.reshape(-1), (weights.shape[1],))
    _linear(context, node, weights, bias, node.outputs[0])


def _matmul(context: Context, node: ir.Node) -> None:
    """By a constant, or of two activations."""
    second = known(node.inputs[1])
    if second is None:
        _activations(context, node)
        return
    if second.ndim != 2:
        raise UnsupportedError(f"no kernel for a constant of {second.ndim} axes", node=describe_node(node))
    added = added_constant(node, second.shape[1])
    last = added[0] if added else node
    context.done.add(last)
    _linear(context, node, second, added[1] if added else None, last.outputs[0])


def _activations(context: Context, node: ir.Node) -> None:
    a, b, y = (context.port(v) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if len(a.shape) < 2 or a.shape[:-2] != b.shape[:-2]:
        raise UnsupportedError(
            f"no kernel for a product of {a.shape} and {b.shape}", node=describe_node(node)
        )
    made = products.matmul(
        context.name(node),
        a.shape[:-2],
        (a.shape[-2], a.shape[-1], b.shape[-1]),
        a.format,
        b.format,
        y.format,
        reuse=context.reuse_of(node, a.shape[-1] * b.shape[-1], math.prod(a.shape[:-1])),
        at_once=context.at_once(node),
    )
    context.add(node, made, [node.inputs[0], node.inputs[1]], node.outputs[0])


def _linear(
    context: Context, node: ir.Node, weights: np.ndarray, bias: np.ndarray | None, output: ir.Value
) -> None:
    """The constants as codes."""
    output = rectified(context, output)
    x, y = context.port(node.inputs[0]), context.port(output)
    codes, formats = _codes(context, node, weights)
    whole, offset = _bias(bias, x.format, formats, y.format)
    fixed = [f for f in formats if isinstance(f, Fixed)]
    if isinstance(x.format, Fixed) and isinstance(y.format, Fixed) and len(fixed) == len(formats):
        rows = math.prod(x.shape[:-1])
        context.jobs[context.name(node)] = Job(rows, codes, x.format, fixed, y.format, whole)
    made = products.linear(
        context.name(node),
        x.shape[:-1],
        codes,
        x.format,
        formats,
        y.format,
        bias=whole,
        offset=offset,
        reuse=context.reuse_of(node, weights.size, math.prod(x.shape[:-1])),
        at_once=context.at_once(node),
    )
    context.add(node, made, [node.inputs[0]], output)


def _conv(context: Context, node: ir.Node) -> None:
    """Of one image: a leading batch of 1."""
    output = rectified(context, node.outputs[0])
    x, y = context.port(node.inputs[0]), context.port(output)
    if len(x.shape) != 4 or x.shape[0] != 1:
        raise UnsupportedError(f"no kernel for a convolution of {x.shape}", node=describe_node(node))
    weights = numbers(node, 1)
    columns, formats = _codes(context, node, weights.reshape(len(weights), -1).T)
    codes = columns.T.reshape(weights.shape)
    bias = numbers(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    whole, offset = _bias(bias, x.format, formats, y.format)
    made = conv2d(
        context.name(node),
        (x.shape[2], x.shape[3]),
        codes,
        x.format,
        formats,
        y.format,
        stride=pair(node, "strides", 1),
        pads=pads(node),
        dilation=pair(node, "dilations", 1),
        groups=node.attributes.get_int("group", 1),
        bias=whole,
        offset=offset,
        reuse=context.reuse_of(node, math.prod(weights.shape), math.prod(y.shape[2:])),
    )
    context.add(node, made, [node.inputs[0]], output)


def _codes(context: Context, node: ir.Node, weights: np.ndarray) -> tuple[np.ndarray, list[Format]]:
    """Codes of weights [inner, columns], and a format for each column: what the plan says, what the graph says, or
    the finest that holds the column.
    """
    kind, stored = context.weights.get(node.name or ""), coded(node.inputs[1])
    if kind is not None:
        return coding(kind)(weights)
    if stored is None:
        fixed = column_formats(weights, context.weight_width)
        return column_codes(weights, fixed), list(fixed)
    # Laid out as the numbers are; a scale has to be that of its whole column.
    shape = stored.codes.shape
    whole, scales = stored.codes, np.broadcast_to(stored.scales, shape)
    if node.op_type == "Conv":
        whole, scales = whole.reshape(shape[0], -1).T, scales.reshape(shape[0], -1).T
    elif node.attributes.get_int("transB", 0):
        whole, scales = whole.T, scales.T
    if (scales != scales[:1]).any():
        raise UnsupportedError(
            "no kernel for weights with scales along the summed axis", node=describe_node(node)
        )
    steps = [float(scale) for scale in scales[0]]
    return whole, [Bipolar(s) if stored.bipolar else Affine(stored.width, s) for s in steps]


def _bias(
    bias: np.ndarray | None, x: Format, formats: Sequence[Format], y: Format
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Whole numbers of as many fraction bits as the products have; the numbers themselves where a format is affine."""
    if bias is None:
        return None, None
    fixed = [f for f in formats if isinstance(f, Fixed)]
    if isinstance(x, Fixed) and isinstance(y, Fixed) and len(fixed) == len(formats):
        return whole_bias(bias, x, fixed), None
    return None, bias


CONVERTERS: Mapping[str, Converter] = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}
