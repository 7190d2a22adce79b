"""Reading a tensor where another left it: strides through transposes, reshapes, splits and repeated heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from lowerkit.graph.fusions.algebra import constant, shape_of


@dataclass(frozen=True)
class Strided:
    """Elements of `source`, read flat: axis i of `sizes` moves by `strides[i]`, from `offset` on.

    Each element of the axis `repeated` stands for `repeats` neighbours. All are multiplied by `scale`.
    """

    source: ir.Value
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    repeated: int = -1
    repeats: int = 1
    scale: float = 1.0


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor of `shape`."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def trace(value: ir.Value, *, scaled: bool = False) -> Strided | None:
    """`value` read from as far up as strides tell; `scaled`: also past products with one constant number.

    None where its shape is not known.
    """
    shape = shape_of(value)
    if shape is None:
        return None
    strides = tuple(s if n > 1 else 0 for n, s in zip(shape, contiguous(shape), strict=True))
    view = Strided(value, tuple(shape), strides)
    while (above := _above(view, scaled)) is not None:
        view = above
    return view


def _above(view: Strided, scaled: bool) -> Strided | None:
    """The same elements, read from an input of the node that makes their source."""
    node = view.source.producer()
    if node is None or node.domain or not node.inputs or node.inputs[0] is None:
        return None
    source, below = shape_of(node.inputs[0]), shape_of(view.source)
    if source is None or below is None:
        return None
    kind = node.op_type
    if kind == "Mul" and scaled:
        return _unscaled(view, node)
    if kind in ("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"):
        return replace(view, source=node.inputs[0])
    to = contiguous(source)
    if kind == "Transpose":
        return _moved(view, node, below, [to[axis] for axis in node.attributes.get_ints("perm", ())])
    if kind == "Split":
        axis = node.attributes.get_int("axis", 0) % len(source)
        parts = [shape_of(part) for part in node.outputs[: view.source.index()]]
        if any(part is None for part in parts):
            return None
        start = sum(part[axis] for part in parts if part is not None)
        return _moved(view, node, below, to, start * to[axis])
    index = constant(node.inputs[1]) if kind == "Gather" else None
    if index is None:
        return None
    axis = node.attributes.get_int("axis", 0) % len(source)
    if index.ndim == 0:
        start = int(index) % source[axis]
        return _moved(view, node, below, [*to[:axis], *to[axis + 1 :]], start * to[axis])
    return _repeated(view, node, below, axis, index)


def _moved(
    view: Strided, node: ir.Node, shape: Sequence[int], strides: Sequence[int], offset: int = 0
) -> Strided | None:
    """`view` of a tensor of `shape`, whose axes lie at `strides` in the node's first input from `offset` on."""
    if len(strides) != len(shape):
        return None
    source = node.inputs[0]
    found = [_place(n, s, shape, strides) for n, s in zip(view.sizes, view.strides, strict=True)]
    places = tuple(place for place in found if place is not None)
    if source is None or len(places) < len(found):
        return None
    start = _place_of_offset(view.offset, shape, strides)
    return replace(view, source=source, strides=places, offset=start + offset)


def _place(size: int, stride: int, shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """What becomes of an axis: it has to stay within one axis of the tensor of `shape`."""
    if size == 1 or stride == 0:
        return 0
    for n, own, new in zip(shape, contiguous(shape), strides, strict=True):
        if own <= stride < own * n and stride % own == 0 and stride * size <= own * n:
            return stride // own * new
    return None


def _place_of_offset(offset: int, shape: Sequence[int], strides: Sequence[int]) -> int:
    return sum(
        offset // own % n * new for n, own, new in zip(shape, contiguous(shape), strides, strict=True) if n
    )


def _repeated(
    view: Strided, node: ir.Node, shape: Sequence[int], axis: int, index: np.ndarray
) -> Strided | None:
    """Past a Gather that takes each element of `axis` several times over, as heads of queries share keys."""
    source = node.inputs[0]
    above = shape_of(source)
    if source is None or above is None or view.repeats != 1 or view.offset or index.ndim != 1:
        return None
    times = len(index) // above[axis]
    own = contiguous(shape)
    matches = [i for i, (n, s) in enumerate(zip(view.sizes, view.strides, strict=True)) if s == own[axis] and n > 1]
    if not np.array_equal(index, np.repeat(np.arange(above[axis]), times)) or len(matches) != 1:
        return None
    if view.sizes[matches[0]] != shape[axis]:
        return None
    moved = _moved(view, node, shape, contiguous(above))
    if moved is None:
        return None
    sizes = tuple(above[axis] if i == matches[0] else n for i, n in enumerate(view.sizes))
    return replace(moved, sizes=sizes, repeated=matches[0], repeats=times)


def _unscaled(view: Strided, node: ir.Node) -> Strided | None:
    for x, factor in (node.inputs, node.inputs[::-1]):
        number = constant(factor)
        if x is not None and number is not None and number.size == 1 and shape_of(x) == shape_of(view.source):
            return replace(view, source=x, scale=view.scale * float(number.reshape(())))
    return None
