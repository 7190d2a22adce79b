"""Products of one left operand by several constant weights as one product, where the parts are read with strides.

Queries, keys and values of fused attention are such: x [Wq Wk Wv] + [bq bk bv] has the same elements as the three
products, computed the same way, and reads (or quantises) x once.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lowerkit.graph.domain import DOMAIN
from lowerkit.graph.fusions.algebra import constant, shape_of
from lowerkit.graph.shapes import infer_shapes
from lowerkit.graph.weights import initializer
from lowerkit.targets.cpu.fuse_attention import NAME

#: Product -> its inputs that have an element per column of the result, on their last axis.
_BY_COLUMN = {
    "MatMul": (1,),
    "MatMulBf16": (1,),
    "MatMulInt8": (1, 2),
    "MatMulInt8Static": (3, 4),
    "MatMulWeightInt8": (1, 2),
    "MatMulWeightInt4": (1, 2),
}
#: Numbers of a view: offset, then strides of batch, head, token and channel.
_NUMBERS = 5


@dataclass(frozen=True)
class _Part:
    """A product with its bias, if it has one; `result` is what attention reads."""

    result: ir.Value
    product: ir.Node
    bias: ir.Value | None

    def key(self) -> Hashable:
        """Equal for those that can be merged."""
        columns = _BY_COLUMN[self.product.op_type]
        rest = tuple(x for i, x in enumerate(self.product.inputs) if i not in columns)
        return self.product.domain, self.product.op_type, rest, self.bias is None


def merge_products(model: ir.Model) -> None:
    """Merge, in place, the projections that fused attentions of the main graph read."""
    merged = False
    for node in list(model.graph):
        if node.op_type != NAME or node.domain != DOMAIN:
            continue
        groups: dict[Hashable, list[_Part]] = {}
        for value in dict.fromkeys(node.inputs[:3]):
            part = _part(value, node)
            if part is not None:
                groups.setdefault(part.key(), []).append(part)
        for parts in groups.values():
            if len(parts) > 1 and all(_within_rows(node, part.result) for part in parts):
                _merge(model.graph, node, parts)
                merged = True
    if merged:
        RemoveUnusedNodesPass()(model)
        infer_shapes(model)


def _part(value: ir.Value | None, reader: ir.Node) -> _Part | None:
    made = _alone(value, reader)
    if made is None or value is None:
        return None
    bias: ir.Value | None = None
    product: ir.Node | None = made
    if made.op_type == "Add" and made.domain == "":
        for x, other in (made.inputs, made.inputs[::-1]):
            shape = shape_of(other)
            if constant(other) is not None and shape and shape == shape_of(value)[-1:]:  # type: ignore[index]
                bias, product = other, _alone(x, made)
                break
        else:
            return None
    if product is None or product.op_type not in _BY_COLUMN or product.domain not in ("", DOMAIN):
        return None
    if any(constant(product.inputs[i]) is None for i in _BY_COLUMN[product.op_type]):
        return None
    return _Part(value, product, bias)


def _alone(value: ir.Value | None, reader: ir.Node) -> ir.Node | None:
    """The node that makes `value`, where only `reader` reads that."""
    node = value.producer() if value is not None else None
    if node is None or value is None or value.is_graph_output():
        return None
    return node if all(use.node is reader for use in value.uses()) else None


def _views(node: ir.Node) -> list[list[int]]:
    numbers = list(node.attributes.get_ints("views", ()))
    return [numbers[i : i + _NUMBERS] for i in range(0, len(numbers), _NUMBERS)]


def _extents(node: ir.Node, operand: int) -> list[int]:
    batch, heads, group, queries, keys, size, values = node.attributes.get_ints("sizes", ())
    return [
        batch,
        heads if operand == 0 else heads // group,
        queries if operand == 0 else keys,
        values if operand == 2 else size,
    ]


def _within_rows(node: ir.Node, value: ir.Value) -> bool:
    """Whether the views of `value` step either by whole rows or inside of one."""
    width = (shape_of(value) or (0,))[-1]
    for operand, view in enumerate(_views(node)[:3]):
        if node.inputs[operand] is not value:
            continue
        steps = list(zip(view[1:], _extents(node, operand), strict=True))
        inside = view[0] % width + sum((n - 1) * s for s, n in steps if s < width)
        if inside >= width or any(s >= width and s % width for s, _ in steps):
            return False
    return True


def _merge(graph: ir.Graph, node: ir.Node, parts: list[_Part]) -> None:
    """One product, and one bias, in place of those of `parts`."""
    first = parts[0].product
    inputs: list[ir.Value | None] = list(first.inputs)
    for i in _BY_COLUMN[first.op_type]:
        inputs[i] = _joined(graph, [part.product.inputs[i] for part in parts])
    product = ir.node(
        first.op_type, inputs, dict(first.attributes), domain=first.domain, name=f"{first.name}/merged"
    )
    made = [product]
    if parts[0].bias is not None:
        bias = _joined(graph, [part.bias for part in parts])
        made.append(ir.node("Add", [product.outputs[0], bias], name=f"{first.name}/merged_bias"))
    widths = [(shape_of(part.result) or (0,))[-1] for part in parts]
    rows = (shape_of(parts[0].result) or (0,))[:-1]
    for new in made:
        new.outputs[0].name = f"{new.name}_output"
        new.outputs[0].type = parts[0].result.type
        new.outputs[0].shape = ir.Shape((*rows, sum(widths)))
    last = max((part.result.producer() for part in parts), key=list(graph).index)
    graph.insert_after(last, made)  # type: ignore[arg-type]
    views = _views(node)
    for index, part in enumerate(parts):
        start, width = sum(widths[:index]), widths[index]
        for operand in range(3):
            if node.inputs[operand] is part.result:
                views[operand] = _moved(views[operand], width, sum(widths), start)
                node.replace_input_with(operand, made[-1].outputs[0])
    node.attributes["views"] = ir.AttrInt64s("views", [n for view in views for n in view])


def _moved(view: list[int], width: int, whole: int, start: int) -> list[int]:
    """A view of rows of `width` in rows of `whole`, from column `start` on."""
    offset, *strides = view
    return [
        offset // width * whole + offset % width + start,
        *(s if s < width else s // width * whole for s in strides),
    ]


def _joined(graph: ir.Graph, values: list[ir.Value | None]) -> ir.Value:
    """The constants side by side, as an initializer."""
    arrays = [constant(value) for value in values]
    whole = np.concatenate([array for array in arrays if array is not None], axis=-1)
    name = next(value.name for value in values if value is not None)
    return initializer(graph, f"{name}/merged", whole)
