"""Rows on the last axis, for the softmax kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax


def by_rows(
    bb: relax.BlockBuilder,
    compute: Callable[[relax.Expr], relax.Expr],
    x: relax.Expr,
    attributes: dict[str, Any],
) -> relax.Expr:
    """`compute` on `x` as [rows, width], the attribute `axis` last and all others flattened; and back."""
    shape = [int(dim) for dim in x.ty.shape]
    axis = int(attributes.get("axis", -1)) % len(shape)
    return from_rows(bb, compute(to_rows(bb, x, axis)), shape, axis)


def to_rows(bb: relax.BlockBuilder, x: relax.Expr, axis: int) -> relax.Expr:
    """`x` as [rows, width], with `axis`, not negative, last and all others flattened."""
    shape = [int(dim) for dim in x.ty.shape]
    order = [*(i for i in range(len(shape)) if i != axis), axis]
    if order == [0, 1]:  # a reshape would be a copy
        return x
    moved = x if axis == len(shape) - 1 else bb.normalize(relax.op.permute_dims(x, order))
    rows = math.prod(shape) // max(shape[axis], 1)
    return bb.normalize(relax.op.reshape(moved, (rows, shape[axis])))


def from_rows(bb: relax.BlockBuilder, y: relax.Expr, shape: Sequence[int], axis: int) -> relax.Expr:
    """`to_rows` undone: `y` in the shape `shape`."""
    order = [*(i for i in range(len(shape)) if i != axis), axis]
    if order == [0, 1]:
        return y
    y = bb.normalize(relax.op.reshape(y, [shape[i] for i in order]))
    if axis == len(shape) - 1:
        return y
    return bb.normalize(relax.op.permute_dims(y, [order.index(i) for i in range(len(shape))]))
