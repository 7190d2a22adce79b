"""ReduceMax and ReduceMin over floats whose identities are the infinities.

TVM starts from the largest finite number, and so takes rows of infinities, as masks have them, for finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, te, tirx


def reduce_max(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr | None:
    """The largest along the constant axes of the second input; None for the front end to do others."""
    return _reduce(bb, inputs, attributes, lambda x, y: tirx.max(x, y), float("-inf"))


def reduce_min(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr | None:
    """The smallest, likewise."""
    return _reduce(bb, inputs, attributes, lambda x, y: tirx.min(x, y), float("inf"))


def _reduce(
    bb: relax.BlockBuilder,
    inputs: list[relax.Expr],
    attributes: dict[str, Any],
    combine: Callable[[tirx.Var, tirx.Var], tirx.Var],
    identity: float,
) -> relax.Expr | None:
    data, axes = inputs[0], inputs[1] if len(inputs) > 1 else None
    if not isinstance(data.ty, relax.TensorType) or not str(data.ty.dtype.dtype).startswith("float"):
        return None
    if axes is not None and not isinstance(axes, tvm.ir.GenericConst):
        return None
    rank = len(data.ty.shape)
    chosen = [int(axis) % rank for axis in axes.value.numpy().ravel()] if axes is not None else []
    if not chosen and attributes.get("noop_with_empty_axes", 0):
        return data
    reduced = sorted(chosen) or list(range(rank))
    keep = bool(attributes.get("keepdims", 1))
    if not reduced:
        return data

    def compute(x: te.Tensor) -> te.Tensor:
        reducer = te.comm_reducer(combine, lambda dtype: tirx.const(identity, dtype), name="extreme")
        loops = {axis: te.reduce_axis((0, x.shape[axis]), name=f"k{axis}") for axis in reduced}
        left = [axis for axis in range(rank) if keep or axis not in loops]
        shape = [1 if axis in loops else x.shape[axis] for axis in left]

        def element(*i: tirx.Var) -> tirx.Var:
            at = dict(zip(left, i, strict=True))
            index = [loops[axis].var if axis in loops else at[axis] for axis in range(rank)]
            return reducer(x(*index), axis=list(loops.values()))

        return te.compute(shape, element, name="extreme")

    return bb.emit_te(compute, data, primfunc_name_hint="extreme")
