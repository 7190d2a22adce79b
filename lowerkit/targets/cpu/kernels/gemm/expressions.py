"""Small pieces of TIR that the templates share."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr


def on_stack(buffer: tirx.Var) -> tirx.AllocBuffer:
    """Memory of a tile's own, which LLVM keeps in registers where it can."""
    return tirx.AllocBuffer(buffer, {"disable_lower_builtin": tirx.const(1, "int32")})


def ramp(start: Expr, lanes: int) -> Expr:
    """The indices of `lanes` elements from `start` on."""
    return tirx.Ramp(start, tirx.const(1, start.ty.dtype), lanes) if lanes > 1 else start


def splat(value: Expr, lanes: int) -> Expr:
    """`value` in all lanes."""
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def row_indices(shape: Sequence[int], row: Expr) -> list[Expr]:
    """The indices into axes of these sizes of `row`, which counts through all of them."""
    dtype = row.ty.dtype
    if sum(size > 1 for size in shape) <= 1:
        return [row if size > 1 else tirx.const(0, dtype) for size in shape]
    out = []
    for size in reversed(shape):
        out.append(tirx.floormod(row, tirx.const(size, dtype)))
        row = tirx.floordiv(row, tirx.const(size, dtype))
    return out[::-1]


def sequence(statements: Sequence[tirx.Stmt]) -> tirx.Stmt:
    """The statements, one after the other."""
    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]
