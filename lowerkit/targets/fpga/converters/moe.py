"""Mixture of experts as five layers: the gate's product, its choice, the queues, the experts and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.targets.fpga.design import Layer, Port
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import moe
from lowerkit.targets.fpga.kernels.linear import linear
from lowerkit.targets.fpga.kernels.schedule import Built
from lowerkit.targets.fpga.lowering import (
    Context,
    Converter,
    column_codes,
    column_formats,
    numbers,
    whole_bias,
)
from lowerkit.targets.fpga.stages import STAGES, stage

#: Weights that are brought each cycle, at most: a port of 256 bits has 16 of 16 bits.
PORT = 16
_GELU = next(each for each in ACTIVATIONS if each.op == "Gelu")


def _experts(context: Context, node: ir.Node) -> None:
    """Of one sample: a leading batch of 1."""
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    taken, given = x.fixed, y.fixed
    if x.shape[0] != 1:
        raise UnsupportedError(f"no kernel for experts of {x.shape}", node=describe_node(node))
    tokens, width = x.shape[1:]
    gate, gate_bias, w1, b1, w2, b2 = (numbers(node, i) for i in range(1, 7))
    size, count = gate.shape[1], node.attributes.get_int("k", 1)
    if missing := [what for what in STAGES if stage(node, what) not in context.formats]:
        raise UnsupportedError(
            f"value '{stage(node, missing[0])}' has no format",
            node=describe_node(node),
            hint="calibrate, or name it among the target's formats",
        )
    logits, hidden, active, out = (_fixed(context, stage(node, what)) for what in STAGES)
    share = Fixed(min(taken.width, 16), 0, signed=False)
    if stage(node, "share") in context.formats:
        share = _fixed(context, stage(node, "share"))
    places = {
        "expert": ((tokens, count), _whole(size - 1)),
        "token": ((size, tokens), _whole(tokens - 1)),
        "rank": ((size, tokens), _whole(count - 1)),
        "length": ((size,), _whole(tokens)),
        "logits": ((tokens, size), logits),
        "share": ((tokens, count), share),
        "out": ((tokens * count, width), out),
    }
    for what, (shape, form) in places.items():
        value = stage(node, what)
        context.ports[value] = Port(value, shape, form)

    def add(built: Built, reads: list[str], writes: list[str]) -> None:
        kernel, schedule = built
        context.layers.append(
            Layer(kernel.name, node.name or "", node.op_type, kernel, tuple(reads), tuple(writes), schedule)
        )

    def name(what: str) -> str:
        return f"{context.name(node)}_{what}"

    formats = column_formats(gate, context.weight_width)
    bias = whole_bias(gate_bias, taken, formats) if gate_bias.any() else None
    made = linear(
        name("gate"), (tokens,), column_codes(gate, formats), taken, formats, logits,
        bias=bias, reuse=context.reuse_of(node, gate.size),
    )  # fmt: skip
    add(made, [x.value], [stage(node, "logits")])
    normalise = bool(node.attributes.get_int("normalise", 0))
    made = moe.gate(name("choice"), tokens, size, count, logits, share, normalise)
    add(made, [stage(node, "logits")], [stage(node, "expert"), stage(node, "share")])
    queued = [stage(node, what) for what in ("token", "rank", "length")]
    add(moe.queues(name("queues"), tokens, size, count), [stage(node, "expert")], queued)
    made = moe.experts(
        name("experts"), tokens, count, _products(context, w1, b1, taken), _products(context, w2, b2, active),
        moe.Formats(taken, hidden, active, out), _GELU,
        variant=int(node.attributes.get_string("approximate", "none") == "tanh"),
        reuse=(context.reuse_of(node, w1[0].size),) * 2,
        port=math.gcd(PORT, math.gcd(width, w1.shape[2])),
    )  # fmt: skip
    add(made, [x.value, *queued], [stage(node, "out")])
    made = moe.combine(name("sum"), tokens, count, width, out, share, given)
    add(made, [stage(node, "out"), stage(node, "share")], [y.value])


def _fixed(context: Context, name: str) -> Fixed:
    """The format of a stage. Raises ValueError for one that is affine."""
    return Port(name, (), context.formats[name]).fixed


def _whole(most: int) -> Fixed:
    """Whole numbers up to `most`."""
    bits = max(most.bit_length(), 1)
    return Fixed(bits, bits, signed=False)


def _products(context: Context, weights: np.ndarray, bias: np.ndarray, x: Fixed) -> moe.Products:
    """The codes of every expert's layer, each column with its own format."""
    flat = weights.transpose(1, 0, 2).reshape(weights.shape[1], -1)
    formats = column_formats(flat, context.weight_width)
    codes = column_codes(flat, formats).reshape(weights.shape[1], weights.shape[0], -1).transpose(1, 0, 2)
    return moe.Products(codes, formats, whole_bias(bias.ravel(), x, formats).reshape(len(weights), -1))


CONVERTERS: Mapping[str, Converter] = {"MixtureOfExperts": _experts}
