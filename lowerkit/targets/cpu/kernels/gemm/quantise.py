"""Rows of float32 as 8-bit integers, for products in integers.

A row's numbers are q = clip(round(x / s) + z, 0, 255), rounded to nearest even. Where the product takes signed
integers, q - z is stored, and zeros fill a row up to whole steps of the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import relax, te, tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.gemm.dots import Dot
from lowerkit.targets.cpu.kernels.gemm.expressions import on_stack, ramp, row_indices, sequence, splat

#: Elements below which a loop is not worth the start of threads.
_PARALLEL_FROM = 1 << 14
#: Bits of float32's infinity; those of a NaN are larger.
INFINITE = 0x7F800000


def quantise_rows(
    bb: relax.BlockBuilder, dot: Dot, lanes: int, x: relax.Expr
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """Every row of float32 `x` [..., K] on a scale of its own, which takes its smallest and largest number and 0.

    Returns:
        Rows for `dot` [..., K in whole steps], scales float32 [..., 1] and zeros int32 [..., 1]. A row that is not
        finite has the scale NaN.
    """
    *lead, depth = (int(dim) for dim in x.ty.shape)
    padded = _padded(dot, depth)

    def quantised(data: te.Tensor) -> list[te.Tensor]:
        def body(inputs: list[tirx.Var], outputs: list[tirx.Var]) -> tirx.Stmt:
            q, scale, zero = outputs
            return _loop_over_rows(inputs[0], q, scale, zero, lanes)

        shapes, types = [(*lead, padded), (*lead, 1), (*lead, 1)], [dot.operand, "float32", "int32"]
        return list(te.extern(shapes, [data], body, dtype=types, name="quantise_rows"))

    out = bb.emit_te(quantised, x, primfunc_name_hint="quantise_rows", primfunc_attrs={"op_pattern": 8})
    q, scale, zero = (bb.emit(relax.TupleGetItem(out, i)) for i in range(3))
    return q, scale, zero


def quantise_with(
    bb: relax.BlockBuilder, dot: Dot, x: relax.Expr, scale: relax.Expr, zero: relax.Expr
) -> relax.Expr:
    """Float32 `x` [..., K] by a given `scale` float32 [] and `zero` uint8 []: rows for `dot`."""
    *lead, depth = (int(dim) for dim in x.ty.shape)
    padded = _padded(dot, depth)

    def quantised(x: te.Tensor, scale: te.Tensor, zero: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> Expr:
            z = zero().astype("float32")
            q = _clipped(tirx.nearbyint(x(*i) / scale()) + z, 1)
            q = (q if dot.operand == "uint8" else q - z).astype("int32").astype(dot.operand)
            return q if padded == depth else tirx.if_then_else(i[-1] < depth, q, tirx.const(0, dot.operand))

        return te.compute([*lead, padded], element, name="quantise")

    return bb.emit_te(quantised, x, scale, zero, primfunc_name_hint="quantise")


def _padded(dot: Dot, depth: int) -> int:
    return -(-depth // dot.step) * dot.step if dot.padded else depth


def _clipped(value: Expr, lanes: int) -> Expr:
    """`value` within 0 and 255; 0 for a NaN."""
    low, high = (splat(tirx.const(n, "float32"), lanes) for n in (0, 255))
    return tirx.min(tirx.max(value, low), high)


def _loop_over_rows(x: tirx.Var, q: tirx.Var, scale: tirx.Var, zero: tirx.Var, lanes: int) -> tirx.Stmt:
    *lead, depth = (int(dim) for dim in x.shape)
    padded, dtype = int(q.shape[-1]), str(q.dtype)
    rows = math.prod(lead)
    row = tirx.Var("row", "int64")
    place = row_indices(lead, row)
    low, high, largest = (
        tirx.decl_buffer((lanes,), dtype, name)
        for name, dtype in (("low", "float32"), ("high", "float32"), ("largest", "int32"))
    )
    scalars = tirx.decl_buffer((2,), "float32", "scalars")  # scale and zero of the row

    def const(value: int) -> Expr:
        return tirx.const(value, "int64")

    def at(buffer: tirx.Var, index: int = 0, count: int = 1) -> Expr:
        return tirx.BufferLoad(buffer, [ramp(const(index), count)])

    def put(buffer: tirx.Var, value: Expr, index: int = 0, count: int = 1) -> tirx.Stmt:
        return tirx.BufferStore(buffer, value, [ramp(const(index), count)])

    def widest_of(count: int, value: Expr) -> list[tirx.Stmt]:
        bits = tirx.reinterpret(f"int32x{count}" if count > 1 else "int32", value)
        magnitude = bits & splat(tirx.const(0x7FFFFFFF, "int32"), count)
        return [
            put(low, tirx.min(value, at(low, 0, count)), 0, count),
            put(high, tirx.max(value, at(high, 0, count)), 0, count),
            put(largest, tirx.max(magnitude, at(largest, 0, count)), 0, count),
        ]

    def quantised(count: int, value: Expr) -> Expr:
        z = splat(at(scalars, 1), count)
        number = _clipped(tirx.nearbyint(value / splat(at(scalars), count)) + z, count)
        number = number if dtype == "uint8" else number - z
        suffix = f"x{count}" if count > 1 else ""
        return number.astype(f"int32{suffix}").astype(f"{dtype}{suffix}")

    def over_row(body: Callable[[Expr, int], list[tirx.Stmt]]) -> list[tirx.Stmt]:
        """Whole vectors in a loop, the rest one by one."""
        chunk = tirx.Var("chunk", "int64")
        whole = depth // lanes
        out = []
        if whole:
            vector = sequence(body(ramp(chunk * lanes, lanes), lanes))
            out.append(tirx.For(chunk, const(0), const(whole), tirx.ForKind.SERIAL, vector))
        for k in range(whole * lanes, depth):
            out += body(const(k), 1)
        return out

    def load(k: Expr) -> Expr:
        return tirx.BufferLoad(x, [*place, k])

    step = (at(high) - at(low)) / tirx.const(255.0, "float32")
    step = tirx.Select(step == tirx.const(0.0, "float32"), tirx.const(1.0, "float32"), step)
    step = tirx.Select(at(largest) < tirx.const(INFINITE, "int32"), step, tirx.const(float("nan"), "float32"))
    offset = _clipped(tirx.nearbyint((tirx.const(0.0, "float32") - at(low)) / at(scalars)), 1)
    body = [
        *(on_stack(buffer) for buffer in (low, high, largest, scalars)),
        *(
            put(buffer, splat(tirx.const(0, str(buffer.dtype)), lanes), 0, lanes)
            for buffer in (low, high, largest)
        ),
        *over_row(lambda k, count: widest_of(count, load(k))),
        *(
            statement
            for lane in range(1, lanes)
            for statement in (
                put(low, tirx.min(at(low), at(low, lane))),
                put(high, tirx.max(at(high), at(high, lane))),
                put(largest, tirx.max(at(largest), at(largest, lane))),
            )
        ),
        put(scalars, step),
        put(scalars, offset, 1),
        *over_row(lambda k, count: [tirx.BufferStore(q, quantised(count, load(k)), [*place, k])]),
        *(tirx.BufferStore(q, tirx.const(0, dtype), [*place, const(k)]) for k in range(depth, padded)),
        tirx.BufferStore(scale, at(scalars), [*place, const(0)]),
        tirx.BufferStore(zero, at(scalars, 1).astype("int32"), [*place, const(0)]),
    ]
    parallel = rows > 1 and rows * depth >= _PARALLEL_FROM
    kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
    return tirx.For(row, const(0), const(rows), kind, sequence(body))
