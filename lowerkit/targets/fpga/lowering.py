"""From the lowered graph to a design: one converter for each operator.

A converter makes one layer of a node, or declares its output a view of its input's codes. Products take in the constant
that is added to them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import describe_node
from lowerkit.graph.shapes import static_shape
from lowerkit.passes.base import ATTRIBUTES
from lowerkit.targets.fpga.constants import known
from lowerkit.targets.fpga.design import Design, Layer, Port
from lowerkit.targets.fpga.formats import Fixed, Format
from lowerkit.targets.fpga.kernels.layout import reshape
from lowerkit.targets.fpga.kernels.schedule import Built, greatest_reuse, least_reuse
from lowerkit.targets.fpga.kernels.unit import Job


@dataclass
class Context:
    """What converters read and write.

    Attributes:
        formats: of every value.
        weight_width: bits of weights; each column has its own fraction.
        reuse: by node name, how often each multiplier of a layer is used.
        weights: by node name, the kind of format that its weights have instead; see `narrow_weights`.
        multipliers: how many a layer of which `reuse` says nothing may have.
        cycles: how many a product may take for a sample, instead, if not 0; it has as few multipliers as that allows.
        parallel: by node name, how many rows of a product are computed at once, 1 elsewhere.
        jobs: by layer, what a linear layer computes, for a unit that many share.
    """

    formats: Mapping[str, Format]
    weight_width: int
    reuse: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    multipliers: int = 64
    cycles: int = 0
    parallel: Mapping[str, int] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)
    views: dict[str, str] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    done: set[ir.Node] = field(default_factory=set)
    jobs: dict[str, Job] = field(default_factory=dict)
    #: By node name, the reuse factors that layers got.
    factors: dict[str, int] = field(default_factory=dict)

    def port(self, value: ir.Value | None) -> Port:
        """The port of a value, made on first use."""
        assert value is not None
        name = value.name or ""
        if name not in self.ports:
            shape = static_shape(value)
            if shape is None or name not in self.formats:
                raise UnsupportedError(f"value '{name}' has no static shape or no format")
            self.ports[name] = Port(name, shape, self.formats[name])
        return self.ports[name]

    def name(self, node: ir.Node) -> str:
        """A C identifier for the node's layer, unique in the design."""
        text = re.sub(r"[^0-9A-Za-z]+", "_", node.name or node.op_type).strip("_").lower()
        return f"l{len(self.layers)}_{text}"

    def reuse_of(self, node: ir.Node, products: int, positions: int | None = None) -> int:
        """How often each multiplier of a layer is used, of which an output position needs `products` products."""
        factor, together = self.reuse.get(node.name or ""), self.at_once(node)
        if factor is None and self.cycles and positions:
            factor = greatest_reuse(products, self.cycles // -(-positions // together))
        elif factor is None:
            factor = least_reuse(products, max(self.multipliers // together, 1))
        self.factors[node.name or ""] = factor
        return factor

    def at_once(self, node: ir.Node) -> int:
        """How many rows of a product are computed at once."""
        return self.parallel.get(node.name or "", 1)

    def add(self, node: ir.Node, built: Built, reads: list[ir.Value | None], write: ir.Value) -> None:
        """A layer of a node."""
        kernel, schedule = built
        names = tuple(self.port(value).value for value in reads)
        written = self.port(write).value
        self.layers.append(
            Layer(kernel.name, node.name or "", node.op_type, kernel, names, (written,), schedule)
        )

    def moved(self, source: ir.Value | None, value: ir.Value) -> None:
        """`value` has other places for the codes of `source`, and so its format."""
        shape = static_shape(value)
        assert shape is not None
        self.ports[value.name or ""] = Port(value.name or "", shape, self.port(source).format)

    def view(
        self, source: ir.Value | None, value: ir.Value, exponent: int = 0, form: Format | None = None
    ) -> None:
        """`value` has the codes of `source`, which stand for 2^exponent times the numbers, or are of another format."""
        port = self.port(source)
        shape = static_shape(value)
        assert shape is not None
        shown = form or port.format.times(exponent)
        self.ports[value.name or ""] = Port(value.name or "", shape, shown)
        self.views[value.name or ""] = port.value


Converter = Callable[[Context, ir.Node], None]


#: Chooses the formats of what a node writes, before its layers are made.
Chooser = Callable[[Context, ir.Node, Converter], Mapping[str, Fixed]]


def design_of(
    model: ir.Model, context: Context, converters: Mapping[str, Converter], choose: Chooser | None = None
) -> Design:
    """The design of a lowered graph. Raises UnsupportedError, which names the node, for what has no converter."""
    for value in model.graph.inputs:
        context.port(value)
    for node in model.graph:
        if node in context.done:
            continue
        converter = converters.get(node.op_type)
        if converter is None:
            raise UnsupportedError(
                f"the fpga target has no kernel for {node.op_type}", node=describe_node(node)
            )
        try:
            if choose is not None:
                context.formats = {**context.formats, **choose(context, node, converter)}
            converter(context, node)
        except ValueError as error:
            raise UnsupportedError(str(error), node=describe_node(node)) from None
    for value in model.graph.outputs:
        _stored(context, value)
    return Design(
        re.sub(r"[^0-9A-Za-z]+", "_", model.graph.name or "design").strip("_").lower() or "design",
        tuple(context.port(value) for value in model.graph.inputs),
        tuple(context.port(value) for value in model.graph.outputs),
        context.ports,
        context.views,
        tuple(context.layers),
    )


def _stored(context: Context, value: ir.Value) -> None:
    """An output that is a view has codes of its own: they are copied."""
    port, source = context.port(value), context.views.pop(value.name or "", None)
    if source is not None:
        name = f"l{len(context.layers)}_out"
        shape = context.ports[source].shape
        kernel, schedule = reshape(name, shape, port.shape, port.format)
        context.layers.append(
            Layer(name, value.name or "", "Identity", kernel, (source,), (port.value,), schedule)
        )


def numbers(node: ir.Node, index: int) -> np.ndarray:
    """A constant input in float64. Raises UnsupportedError for data."""
    value = node.inputs[index] if index < len(node.inputs) else None
    found = known(value)
    if found is None:
        raise UnsupportedError(f"input {index} is not a constant", node=describe_node(node))
    return found


def pair(node: ir.Node, name: str, default: int) -> tuple[int, int]:
    """An attribute of two numbers: height and width."""
    first, second = node.attributes.get_ints(name, (default, default))
    return int(first), int(second)


def pads(node: ir.Node) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)). Raises UnsupportedError for automatic padding."""
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("no kernel for automatic padding", node=describe_node(node))
    top, left, bottom, right = (int(p) for p in node.attributes.get_ints("pads", (0, 0, 0, 0)))
    return (top, bottom), (left, right)


def replaced(node: ir.Node) -> dict[str, Any]:
    """The attributes of the node whose place a method's operator took."""
    found: dict[str, Any] = json.loads(node.metadata_props.get(ATTRIBUTES, "{}"))
    return found


def alone(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node of that operator which alone reads a value, or None."""
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or uses[0].node.op_type != op_type:
        return None
    return uses[0].node


def rectified(context: Context, value: ir.Value) -> ir.Value:
    """The output of the Relu that alone reads a value, where its format has no negative numbers; else the value.

    A layer that writes codes of that format saturates at 0: that is the Relu, and the value before it, which may be far
    wider, has no format.
    """
    relu = alone(value, "Relu")
    if relu is None:
        return value
    form = context.formats.get(relu.outputs[0].name or "")
    if not isinstance(form, Fixed) or form.signed:
        return value
    context.done.add(relu)
    return relu.outputs[0]


def column_formats(weights: np.ndarray, width: int) -> list[Fixed]:
    """For each column of [inner, columns] the format of `width` bits that holds it with the most fraction bits."""
    return [Fixed.holding(min(float(c.min()), -1e-12), max(float(c.max()), 1e-12), width) for c in weights.T]


def column_codes(weights: np.ndarray, formats: Sequence[Fixed]) -> np.ndarray:
    """Codes of [inner, columns] in the columns' formats."""
    return np.stack([f.quantise(column) for f, column in zip(formats, weights.T, strict=True)], axis=1)


def whole_bias(bias: np.ndarray, x: Fixed, formats: Sequence[Fixed]) -> np.ndarray:
    """A number for each column as whole numbers of as many fraction bits as the products have."""
    whole: np.ndarray = np.round(bias * np.array([2.0 ** (x.fraction + f.fraction) for f in formats]))
    return whole.astype(np.int64)


def added_constant(node: ir.Node, columns: int) -> tuple[ir.Node, np.ndarray] | None:
    """The Add of a constant for each column that alone reads a node, and the constant."""
    add = alone(node.outputs[0], "Add")
    if add is None:
        return None
    other = next((known(v) for v in add.inputs if v is not None and v is not node.outputs[0]), None)
    if other is None or other.size not in (1, columns) or other.size != math.prod(other.shape[-1:] or (1,)):
        return None
    return add, np.broadcast_to(other.reshape(-1), (columns,))
