"""Attention as one operator of this target, where the lowered graph spells it out.

    softmax(scale Q K' + masks) V

with any of the softmax operators that the kernel has an exponential for. Q, K, V and the masks are read where the
projections left them, and the result is written where the next product wants it, so that the transposes around
attention go. What is not of this form, or has an inner value that something else reads, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lowerkit.graph.domain import DOMAIN, VERSION
from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.algebra import constant, scalar, shape_of
from lowerkit.targets.cpu.views import Strided, contiguous, trace

NAME = "FusedAttention"
#: Softmax operators whose exponential is the exact one.
_EXACT = frozenset({"Softmax", "OnlineSoftmax", "TwoPassSoftmax", "UnifiedMaxSoftmax"})


def fuse_attention(model: ir.Model) -> None:
    """Replace, in place, every attention of the main graph that fits."""
    found = False
    for node in list(model.graph):
        if node.op_type == "MatMul" and node.domain == "":
            found |= _fuse(node)
    if found:
        model.opset_imports.setdefault(DOMAIN, VERSION)
        RemoveUnusedNodesPass()(model)


@dataclass(frozen=True)
class _Scores:
    """scale Q K' + masks; `key` is K transposed."""

    query: ir.Value
    key: ir.Value
    masks: tuple[ir.Value, ...]
    scale: float


def _fuse(product: ir.Node) -> bool:
    weights, values = product.inputs
    softmax = _private(weights)
    if softmax is None or values is None:
        return False
    # Rows of which a mask hides every key may be set to 0 after the softmax.
    shown: ir.Value | None = None
    if softmax.op_type == "Where" and scalar(softmax.inputs[2]) == 0:
        shown, weights = softmax.inputs[:2]
        softmax = _private(weights)
    if softmax is None:
        return False
    coefficients = _exponential(softmax)
    scores = _scores(softmax.inputs[0])
    if coefficients is None or scores is None:
        return False
    q, k, v = _heads(scores.query), _heads(scores.key), _heads(values, scaled=False)
    if q is None or k is None or v is None or k.repeats != v.repeats or q.repeats > 1 or v.strides[3] > 1:
        return False
    batch, heads, queries, size = q.sizes
    full = (batch, heads, queries, k.sizes[3])
    if any(x.sizes[:2] != (batch, heads // k.repeats) or x.repeated not in (-1, 1) for x in (k, v)):
        return False
    masks = [_broadcast(mask, full) for mask in scores.masks]
    if shown is not None:
        masks.append(_broadcast(shown, (*full[:3], 1)))
    views = [view for view in (q, replace(k, strides=_swapped(k.strides)), v, *masks) if view is not None]
    if len(views) < 3 + len(masks) or any(view.strides[3] > 1 for view in views[3:]):
        return False
    last, out = _merged(product)
    made = ir.node(
        NAME,
        [view.source for view in views],
        {
            "sizes": [batch, heads, k.repeats, queries, k.sizes[3], size, v.sizes[3]],
            "views": [number for view in views for number in (view.offset, *view.strides)],
            "out": out,
            "shape": list(shape_of(last.outputs[0]) or ()),
            "scale": scores.scale * q.scale * k.scale,
            **({"coefficients": coefficients} if coefficients else {}),
            "shown": int(shown is not None),
        },
        domain=DOMAIN,
        name=product.name,
    )
    take_place(last, [made])
    return True


def _private(value: ir.Value | None) -> ir.Node | None:
    """The node that makes `value`, where nothing else reads that."""
    node = value.producer() if value is not None else None
    if node is None or value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return node


def _exponential(softmax: ir.Node) -> list[float] | None:
    """The polynomial of a softmax over the last axis of float32, highest power first, none for the exact exponential;
    None for what is no such softmax."""
    x = softmax.inputs[0]
    shape = shape_of(x)
    if shape is None or x is None or x.dtype != ir.DataType.FLOAT:
        return None
    if softmax.attributes.get_int("axis", -1) not in (-1, len(shape) - 1):
        return None
    if softmax.op_type in _EXACT:
        return []
    if softmax.op_type == "PolySoftmax":
        found = constant(softmax.inputs[1])
        return None if found is None else [float(c) for c in np.trim_zeros(found, "f")]
    return None


def _scores(value: ir.Value | None) -> _Scores | None:
    """Read upwards from the softmax: masks that are added, then factors, then the product."""
    masks: list[ir.Value] = []
    scale = 1.0
    while (node := _private(value)) is not None and node.domain == "" and value is not None:
        if node.op_type == "MatMul":
            query, key = node.inputs
            return None if query is None or key is None else _Scores(query, key, tuple(masks[::-1]), scale)
        if node.op_type not in ("Add", "Mul", "Div") or (node.op_type == "Add" and scale != 1):
            return None
        below = shape_of(value)
        for inner, other in (node.inputs, node.inputs[::-1]):
            number = scalar(other)
            made = _private(inner)
            if made is None or other is None or shape_of(inner) != below:
                continue
            if node.op_type == "Add" and made.op_type in ("Add", "Mul", "Div", "MatMul"):
                masks.append(other)
            elif node.op_type == "Mul" and number is not None:
                scale *= number
            elif node.op_type == "Div" and number and inner is node.inputs[0]:
                scale /= number
            else:
                continue
            value = inner
            break
        else:
            return None
    return None


def _heads(value: ir.Value, *, scaled: bool = True) -> Strided | None:
    """`value` traced, with axes (batch, head, token, channel); those that it lacks are of size 1."""
    view = trace(value, scaled=scaled)
    if view is None or not 2 <= len(view.sizes) <= 4 or view.source.dtype != ir.DataType.FLOAT:
        return None
    lead = len(view.sizes) - 2
    fill = (0,) * (2 - lead)
    sizes = (*view.sizes[:lead], *(1 for _ in fill), *view.sizes[lead:])
    return replace(view, sizes=sizes, strides=(*view.strides[:lead], *fill, *view.strides[lead:]))


def _broadcast(value: ir.Value, full: tuple[int, ...]) -> Strided | None:
    """`value` broadcast to (batch, head, query, key); of fewer axes the scores' own are the last."""
    view = trace(value)
    if view is None or len(view.sizes) > 4:
        return None
    missing = 4 - len(view.sizes)
    sizes, strides = (1,) * missing + view.sizes, (0,) * missing + view.strides
    if any(n not in (1, whole) for n, whole in zip(sizes, full, strict=True)):
        return None
    return replace(view, sizes=full, strides=strides)


def _swapped(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The last two axes exchanged."""
    return (*axes[:2], axes[3], axes[2])


def _merged(product: ir.Node) -> tuple[ir.Node, list[int]]:
    """The node whose output the kernel writes, past a merge of heads; strides of (batch, head, token, channel)."""
    shape = shape_of(product.outputs[0]) or ()
    strides = list(contiguous(shape))
    lead = len(shape) - 2
    last = product
    transpose = _only_use(product)
    if transpose is not None and transpose.op_type == "Transpose":
        order = list(transpose.attributes.get_ints("perm", ()))
        to = contiguous(shape_of(transpose.outputs[0]) or ())
        strides = [to[order.index(axis)] for axis in range(len(shape))]
        last = transpose
        reshape = _only_use(transpose)
        if reshape is not None and reshape.op_type == "Reshape":
            last = reshape
    return last, [*strides[:lead], *(0,) * (2 - lead), *strides[lead:]]


def _only_use(node: ir.Node) -> ir.Node | None:
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) != 1 or node.outputs[0].is_graph_output():
        return None
    return users[0] if users[0].domain == "" else None
