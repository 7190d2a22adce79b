"""Gather that stays inside its memory, whatever the indices.

onnxruntime refuses an index out of range when it meets it; generated code has no way to. Such an element is
NaN where the data are floats, and the nearest one within range otherwise.
"""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx


def gather(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr | None:
    """`data` taken along `axis` at `indices`, negative ones counting from the end."""
    data, indices = inputs
    if not all(isinstance(value.ty, relax.TensorType) for value in inputs):
        return None  # of the dimensions of a tensor
    shape = [int(dim) for dim in data.ty.shape]
    rank = len([*indices.ty.shape])
    axis = int(attributes.get("axis", 0)) % len(shape)
    extent = shape[axis]
    dtype = str(data.ty.dtype.dtype)

    def take(x: te.Tensor, at: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> tirx.Var:
            raw = at(*i[axis : axis + rank]).astype("int64")
            index = tirx.if_then_else(raw < 0, raw + extent, raw)
            inside = tirx.max(tirx.min(index, extent - 1), 0)
            value = x(*i[:axis], inside, *i[axis + rank :])
            if not dtype.startswith("float"):
                return value
            return tirx.if_then_else(
                tirx.all(index >= 0, index < extent), value, tirx.const(float("nan"), dtype)
            )

        return te.compute((*shape[:axis], *indices.ty.shape, *shape[axis + 1 :]), element, name="take")

    return bb.emit_te(take, data, indices, primfunc_name_hint="take")
