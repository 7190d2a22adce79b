"""Normalisation over the last axis."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.graph.edit import uses_further_outputs
from lowerkit.targets.fpga.formats import Affine, Bipolar, Fixed, Format
from lowerkit.targets.fpga.kernels.norm import GUARD, normalise
from lowerkit.targets.fpga.kernels.schedule import built
from lowerkit.targets.fpga.lowering import Context, Converter, numbers


def _norm(context: Context, node: ir.Node) -> None:
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    axis = node.attributes.get_int("axis", -1)
    if axis not in (-1, len(x.shape) - 1):
        raise UnsupportedError(f"no kernel for a normalisation from axis {axis} on", node=describe_node(node))
    if uses_further_outputs(node):
        raise UnsupportedError("no kernel for a row's mean and deviation", node=describe_node(node))
    rms = node.op_type == "RMSNormalization"
    with_beta = not rms and len(node.inputs) > 2 and node.inputs[2] is not None
    gamma = np.broadcast_to(numbers(node, 1).reshape(-1), x.shape[-1:])
    beta = np.broadcast_to(numbers(node, 2).reshape(-1), x.shape[-1:]) if with_beta else None
    epsilon, bits = node.attributes.get_float("epsilon", 1e-5), max(context.weight_width, PARAMETERS)
    source, target = x.format, y.format
    if not isinstance(source, Fixed):
        # Neither the scale nor, of a mean that is subtracted, the zero matters but to epsilon.
        if rms and source.zero:
            raise UnsupportedError("no kernel for root mean squares of this format", node=describe_node(node))
        epsilon, source = epsilon / source.step**2, _whole(source)
    if not isinstance(target, Fixed):
        offset = np.zeros(x.shape[-1]) if beta is None else beta / target.step
        gamma, beta, bits = gamma / target.step, offset + target.zero, max(bits, EXACTER)
        target = _whole(target)
        if rms and not offset.any() and not y.format.zero:
            beta = None
        elif rms:
            raise UnsupportedError("no kernel for root mean squares to this format", node=describe_node(node))
    made = normalise(
        context.name(node), x.shape, source, target, gamma=gamma, beta=beta, rms=rms, epsilon=epsilon,
        parameters=bits, guard=GUARD if isinstance(y.format, Fixed) else FINER,
    )  # fmt: skip
    rows = math.prod(x.shape[:-1])
    context.add(node, built(made.kernel, rows), [node.inputs[0]], node.outputs[0])


def _whole(form: Format) -> Fixed:
    """The codes as whole numbers."""
    if isinstance(form, Bipolar) or (isinstance(form, Affine) and form.narrow):
        raise ValueError(f"there is no normalisation of codes without their least, {form}")
    return Fixed(form.width, form.width, form.signed)


#: Bits of products behind an output step where it is to be what exact arithmetic rounds to, but close to ties.
FINER = 10
#: With the output's scale among them, they decide how many results round as exact ones do.
EXACTER = 20
#: Gamma and beta are few: narrower than this saves nothing.
PARAMETERS = 12

CONVERTERS: Mapping[str, Converter] = {"LayerNormalization": _norm, "RMSNormalization": _norm}
