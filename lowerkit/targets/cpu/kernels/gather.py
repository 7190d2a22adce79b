"""Gather that stays inside its memory, whatever the indices.

onnxruntime refuses an index out of range when it meets it; generated code has no way to. Such an element is
NaN where the data are floats, and the nearest one within range otherwise.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import relax, te, tirx
from tvm.tirx.script import builder as T

from lowerkit.targets.cpu.kernels.vectors import (
    PARALLEL_FROM,
    call_kernel,
    f32,
    flat,
    load,
    loop,
    pieces,
    store,
    vector_lanes,
)


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
    width = math.prod(shape[1:])
    if axis == 0 and 0 < extent * width < 2**31 and dtype == "float32" and width >= vector_lanes():
        return _rows(bb, data, indices, extent, width)

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


def _rows(
    bb: relax.BlockBuilder, data: relax.Expr, indices: relax.Expr, extent: int, width: int
) -> relax.Expr:
    """Whole rows of `width` float32, as embeddings are looked up."""
    taken = [int(n) for n in indices.ty.shape]
    count, lanes = math.prod(taken), vector_lanes()

    def body(x: tirx.Buffer, at: tirx.Buffer, out: tirx.Buffer) -> None:
        x, at, out = flat(x), flat(at), flat(out)
        parallel = count * width >= PARALLEL_FROM
        with T.parallel(0, count) if parallel else loop(count) as row:
            raw = T.bind(at[row].astype("int64"))
            index = T.bind(tirx.Select(raw < 0, raw + extent, raw))
            inside = tirx.all(index >= 0, index < extent)
            start = T.bind(tirx.Select(inside, index, tirx.const(0, "int64")).astype("int32") * width)
            with loop(width // lanes) as j:
                store(out, load(x, start + j * lanes, lanes), row * width + j * lanes, lanes)
            for j, rest in list(pieces(width, lanes))[width // lanes :]:
                store(out, load(x, start + j, rest), row * width + j, rest)
            with T.If(tirx.Not(inside)), T.Then(), loop(width) as j:
                T.buffer_store(out, f32(float("nan")), [row * width + j])

    return call_kernel(
        bb, "take", [data, indices], [*taken, *(int(n) for n in list(data.ty.shape)[1:])], body
    )
