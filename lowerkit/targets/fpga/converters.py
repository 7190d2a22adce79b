"""Operators as layers, one function each: what the graph says in the words of the kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.graph.fusions.algebra import constant
from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import activation as activations
from lowerkit.targets.fpga.kernels import elementwise, layout, pool
from lowerkit.targets.fpga.kernels import linear as products
from lowerkit.targets.fpga.kernels import mean as means
from lowerkit.targets.fpga.kernels import norm as norms
from lowerkit.targets.fpga.kernels import softmax as softmaxes
from lowerkit.targets.fpga.kernels.conv import conv2d
from lowerkit.targets.fpga.kernels.schedule import built
from lowerkit.targets.fpga.kernels.window import Window
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


def _softmax(context: Context, node: ir.Node) -> None:
    """Fixed's integers: of the method where the node is one, and of its defaults where the plan keeps a Softmax."""
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    axis = node.attributes.get_int("axis", -1)
    if axis not in (-1, len(x.shape) - 1):
        raise UnsupportedError(f"no kernel for a softmax over axis {axis}", node=describe_node(node))
    rows = math.prod(x.shape[:-1])
    kernel = softmaxes.fixed(rows, x.shape[-1], x.format, y.format, name=context.name(node))
    context.add(node, built(kernel, rows), [node.inputs[0]], node.outputs[0])


def _activation(context: Context, node: ir.Node) -> None:
    """By table: of every code where those are few, of the core elsewhere."""
    of = _ACTIVATIONS[node.op_type]
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    variant = int(node.attributes.get_string("approximate", "none") == "tanh")
    name = context.name(node)
    if x.format.width <= FULL_TABLE:
        made = activations.full_table(name, of, x.shape, x.format, y.format, variant=variant)
    else:
        made = activations.activation(name, of, x.shape, x.format, y.format, variant=variant)
    context.add(node, built(made.kernel), [node.inputs[0]], node.outputs[0])


def _norm(context: Context, node: ir.Node) -> None:
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    axis = node.attributes.get_int("axis", -1)
    if axis not in (-1, len(x.shape) - 1):
        raise UnsupportedError(f"no kernel for a normalisation from axis {axis} on", node=describe_node(node))
    rms = node.op_type == "RMSNormalization"
    gamma = np.broadcast_to(numbers(node, 1).reshape(-1), x.shape[-1:])
    with_beta = not rms and len(node.inputs) > 2 and node.inputs[2] is not None
    beta = np.broadcast_to(numbers(node, 2).reshape(-1), x.shape[-1:]) if with_beta else None
    made = norms.normalise(
        context.name(node),
        x.shape,
        x.format,
        y.format,
        gamma=gamma,
        beta=beta,
        rms=rms,
        epsilon=node.attributes.get_float("epsilon", 1e-5),
        parameters=context.weight_width,
    )
    rows = math.prod(x.shape[:-1])
    context.add(node, built(made.kernel, rows), [node.inputs[0]], node.outputs[0])


def _relu(context: Context, node: ir.Node) -> None:
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    made = elementwise.relu(context.name(node), x.shape, x.format, y.format)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _binary(context: Context, node: ir.Node) -> None:
    """Add, Sub and Mul of two activations, or of one and a constant."""
    first, second = node.inputs[0], node.inputs[1]
    fixed = [constant(v) if v is not None else None for v in (first, second)]
    if fixed[0] is not None and fixed[1] is None and node.op_type != "Sub":
        first, second, fixed = second, first, fixed[::-1]
    if fixed[0] is not None:
        raise UnsupportedError("no kernel for a constant less an activation", node=describe_node(node))
    a, y = context.port(first), context.port(node.outputs[0])
    reads: list[ir.Value | None] = [first]
    if fixed[1] is not None:
        array = np.atleast_1d(fixed[1].astype(np.float64))
        form = Fixed.holding(
            min(float(array.min()), 0.0), max(float(array.max()), 1e-12), context.weight_width
        )
        other: np.ndarray | tuple[int, ...] = form.quantise(array)
    else:
        port = context.port(second)
        form, other = port.format, port.shape
        reads.append(second)
    name = context.name(node)
    if node.op_type == "Mul":
        made = elementwise.multiply(name, a.shape, other, a.format, form, y.format)
    else:
        made = elementwise.add(name, a.shape, other, a.format, form, y.format, negate=node.op_type == "Sub")
    context.add(node, made, reads, node.outputs[0])


def _transpose(context: Context, node: ir.Node) -> None:
    x = context.port(node.inputs[0])
    order = list(node.attributes.get_ints("perm", tuple(reversed(range(len(x.shape))))))
    # Codes move, and stay what they are.
    context.moved(node.inputs[0], node.outputs[0])
    made = layout.transpose(context.name(node), x.shape, order, x.format)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _conv(context: Context, node: ir.Node) -> None:
    """Of one image: a leading batch of 1."""
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    if len(x.shape) != 4 or x.shape[0] != 1:
        raise UnsupportedError(f"no kernel for a convolution of {x.shape}", node=describe_node(node))
    weights = numbers(node, 1)
    columns = weights.reshape(len(weights), -1).T
    formats = column_formats(columns, context.weight_width)
    codes = np.stack([f.quantise(filter) for f, filter in zip(formats, weights, strict=True)])
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        scales = np.array([2.0 ** (x.format.fraction + f.fraction) for f in formats])
        bias = np.round(numbers(node, 2) * scales).astype(np.int64)
    made = conv2d(
        context.name(node),
        (x.shape[2], x.shape[3]),
        codes,
        x.format,
        formats,
        y.format,
        stride=_pair(node, "strides", 1),
        pads=_pads(node),
        dilation=_pair(node, "dilations", 1),
        groups=node.attributes.get_int("group", 1),
        bias=bias,
        reuse=context.reuse.get(node.name or "", 1),
    )
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _pool(context: Context, node: ir.Node) -> None:
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    if len(x.shape) != 4 or x.shape[0] != 1 or node.attributes.get_int("ceil_mode", 0):
        raise UnsupportedError(f"no kernel for this pooling of {x.shape}", node=describe_node(node))
    image, name = (x.shape[2], x.shape[3]), context.name(node)
    window = Window(
        _pair(node, "kernel_shape", 1), _pair(node, "strides", 1), _pads(node), _pair(node, "dilations", 1)
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
    made = pool.global_average_pool(
        context.name(node), x.shape[1], (x.shape[2], x.shape[3]), x.format, y.format
    )
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _mean(context: Context, node: ir.Node) -> None:
    """Over one axis: the means of an image of one column, whose channels are what comes before and after."""
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    axes = [int(a) % len(x.shape) for a in numbers(node, 1).ravel()] if len(node.inputs) > 1 else []
    if len(axes) != 1:
        raise UnsupportedError(f"no kernel for a mean over axes {axes}", node=describe_node(node))
    axis = axes[0]
    before, count, after = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    made = means.mean(context.name(node), before, count, after, x.format, y.format)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


def _pair(node: ir.Node, name: str, default: int) -> tuple[int, int]:
    first, second = node.attributes.get_ints(name, (default, default))
    return int(first), int(second)


def _pads(node: ir.Node) -> tuple[tuple[int, int], tuple[int, int]]:
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("no kernel for automatic padding", node=describe_node(node))
    top, left, bottom, right = (int(p) for p in node.attributes.get_ints("pads", (0, 0, 0, 0)))
    return (top, bottom), (left, right)


#: Inputs of so many bits are tabulated code by code.
FULL_TABLE = 10
#: By operator: the canonical ones and those of the method that tabulates them.
_ACTIVATIONS = {name: a for a in ACTIVATIONS for name in (a.op, f"Table{a.op}")}

CONVERTERS: Mapping[str, Converter] = {
    "Add": _binary,
    "AveragePool": _pool,
    "Conv": _conv,
    "FixedSoftmax": _softmax,
    "Flatten": _view,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "Identity": _view,
    "LayerNormalization": _norm,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Mul": _binary,
    "RMSNormalization": _norm,
    "ReduceMean": _mean,
    "Relu": _relu,
    "Reshape": _view,
    "Softmax": _softmax,
    "Squeeze": _view,
    "Sub": _binary,
    "Transpose": _transpose,
    "Unsqueeze": _view,
    **dict.fromkeys(_ACTIVATIONS, _activation),
}
