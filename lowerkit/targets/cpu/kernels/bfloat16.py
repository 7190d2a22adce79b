"""Rounding to bfloat16, which TVM leaves out: it takes a Cast there and back for nothing."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto
from tvm import relax, te, tirx
from tvm.ir import Expr


def cast(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: dict[str, Any]) -> relax.Expr | None:
    """A Cast from float32 to bfloat16, to nearest, ties to even; NaN stays NaN. None for other types."""
    (x,) = inputs
    if attrs["to"] != TensorProto.BFLOAT16 or str(x.ty.dtype) != "float32":
        return None
    return relax.op.astype(bb.call_te(rounded, x, primfunc_name_hint="round_to_bfloat16"), "bfloat16")


def rounded(x: te.Tensor) -> te.Tensor:
    """Each number rounded, as float32."""

    def element(*i: tirx.Var) -> Expr:
        return tirx.reinterpret("float32", nearest(x(*i)))

    return te.compute(x.shape, element, name="round_to_bfloat16")


def nearest(value: Expr) -> Expr:
    """The bfloat16 nearest to a float32, ties to even, in the upper half of a uint32 whose lower half is 0.

    Half of the last place that is kept is added before the cut, a little less for an even one. A NaN stays one; it is
    found by its bits, for TVM has no `isnan` of vectors.
    """
    u = tirx.reinterpret("uint32", value)
    up = u + ((u >> _u32(16)) & _u32(1)) + _u32(0x7FFF)
    magnitude = tirx.reinterpret("int32", value) & tirx.const(0x7FFFFFFF, "int32")
    is_nan = magnitude > tirx.const(0x7F800000, "int32")
    return tirx.Select(is_nan, u | _u32(0x400000), up) & _u32(0xFFFF0000)


def _u32(number: int) -> Expr:
    return tirx.const(number, "uint32")
