"""Rounding to bfloat16, which TVM leaves out: it takes a Cast there and back for nothing."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto
from tvm import relax, te, tirx


def cast(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: dict[str, Any]) -> relax.Expr | None:
    """A Cast from float32 to bfloat16, to nearest, ties to even; NaN stays NaN. None for other types."""
    (x,) = inputs
    if attrs["to"] != TensorProto.BFLOAT16 or str(x.ty.dtype) != "float32":
        return None
    return relax.op.astype(bb.call_te(_rounded, x, primfunc_name_hint="round_to_bfloat16"), "bfloat16")


def _rounded(x: te.Tensor) -> te.Tensor:
    """The upper half of each number's bits, after half of its last one, or a little less for an even one, is added."""

    def bits(value: int) -> tirx.PrimExpr:
        return tirx.const(value, "uint32")

    def rounded(*i: tirx.Var) -> tirx.PrimExpr:
        u = tirx.reinterpret("uint32", x(*i))
        up = (u + bits(0x7FFF) + ((u >> bits(16)) & bits(1))) & bits(0xFFFF0000)
        return tirx.Select(tirx.isnan(x(*i)), x(*i), tirx.reinterpret("float32", up))

    return te.compute(x.shape, rounded, name="round_to_bfloat16")
