"""lowerkit::ConvBf16: a float32 convolution of numbers that are rounded to bfloat16.

Products of two bfloat16 are exact in float32, so rounding the operands is all there is to it; the convolution itself
is the float32 one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.layout import first, last

_CONVOLUTIONS = {3: relax.op.nn.conv1d, 4: relax.op.nn.conv2d, 5: relax.op.nn.conv3d}


def conv_bf16(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr:
    """Float32 `inputs[0]` [N, C, ...], rounded, convolved by constant bfloat16 `inputs[1]` [O, C / group, ...]."""
    x, w = inputs
    rank = len(x.ty.shape)
    window = {name: [int(n) for n in attributes[name]] for name in ("strides", "pads", "dilations")}
    return _CONVOLUTIONS[rank](
        _rounded(bb, x, rank),
        relax.const(w.value.numpy().astype(np.float32)),
        window["strides"],
        window["pads"],
        window["dilations"],
        int(attributes["group"]),
    )


def _rounded(bb: relax.BlockBuilder, x: relax.Expr, rank: int) -> relax.Expr:
    """`x` with the nearest bfloat16 for every number, ties to even, channels last where an image has them so."""

    def nearest(data: te.Tensor) -> te.Tensor:
        def element(*i: Expr) -> Expr:
            bits = tirx.reinterpret("uint32", data(*i))
            half = tirx.const(0x7FFF, "uint32") + ((bits >> 16) & tirx.const(1, "uint32"))
            kept = (bits + half) & tirx.const(0xFFFF0000, "uint32")
            # Rounding would carry a NaN into the sign, or to infinity.
            return tirx.Select(tirx.isnan(data(*i)), data(*i), tirx.reinterpret("float32", kept))

        return te.compute(data.shape, element, name="bf16")

    moved = bb.emit(relax.op.permute_dims(x, last(rank)))
    return bb.emit(
        relax.op.permute_dims(bb.emit_te(nearest, moved, primfunc_name_hint="round_bf16"), first(rank))
    )
