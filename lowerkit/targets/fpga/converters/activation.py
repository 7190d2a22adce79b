"""Activations by table: of every code where those are few, of the function's core elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.passes import registry
from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.passes.activation.table import TableActivation
from lowerkit.targets.fpga.formats import Bipolar, Fixed
from lowerkit.targets.fpga.kernels import activation as activations
from lowerkit.targets.fpga.kernels import affine, elementwise
from lowerkit.targets.fpga.kernels.schedule import built
from lowerkit.targets.fpga.lowering import Context, Converter, replaced

#: Inputs of so many bits are tabulated code by code.
FULL_TABLE = 10
#: Kernels' tables have at most 2^12 words.
LARGEST = 12

#: By operator: the canonical ones and those of the method that tabulates them.
_ACTIVATIONS = {name: a for a in ACTIVATIONS for name in (a.op, f"Table{a.op}")}


def _activation(context: Context, node: ir.Node) -> None:
    """The table has the method's size where the node is one's."""
    of = _ACTIVATIONS[node.op_type]
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    tanh = {node.attributes.get_string("approximate", "none"), replaced(node).get("approximate")}
    variant = int("tanh" in tanh)
    name, method = context.name(node), registry.method_of(node)
    exact = not (isinstance(x.format, Fixed) and isinstance(y.format, Fixed))
    if x.format.width <= (LARGEST if exact else FULL_TABLE):
        made = activations.full_table(name, of, x.shape, x.format, y.format, variant=variant)
    elif isinstance(method, TableActivation):
        made = activations.activation(
            name, of, x.shape, x.fixed, y.fixed, variant=variant,
            index_bits=min(method.segments.bit_length() - 1, LARGEST), interpolate=method.interpolate,
        )  # fmt: skip
    else:
        made = activations.activation(name, of, x.shape, x.fixed, y.fixed, variant=variant)
    context.add(node, built(made.kernel), [node.inputs[0]], node.outputs[0])


def _relu(context: Context, node: ir.Node) -> None:
    x, y = context.port(node.inputs[0]), context.port(node.outputs[0])
    if isinstance(x.format, Fixed) and isinstance(y.format, Fixed):
        made = elementwise.relu(context.name(node), x.shape, x.fixed, y.fixed)
    elif isinstance(x.format, Bipolar):
        raise UnsupportedError("no kernel for a relu of signs", node=describe_node(node))
    else:
        within = (x.format.zero, x.format.range.high)
        made = affine.scaled(context.name(node), x.shape, x.format, y.format, within=within)
    context.add(node, made, [node.inputs[0]], node.outputs[0])


CONVERTERS: Mapping[str, Converter] = {**dict.fromkeys(_ACTIVATIONS, _activation), "Relu": _relu}
