"""lowerkit::ConvBf16: a float32 convolution of numbers that are rounded to bfloat16.

Products of two bfloat16 are exact in float32, so rounding the operands is all there is to it; the convolution itself
is the float32 one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from lowerkit.targets.cpu.kernels.bfloat16 import rounded
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
    """`x` rounded with its channels last, where an image that has them so already needs no move."""
    moved = bb.emit(relax.op.permute_dims(x, last(rank)))
    return bb.emit(
        relax.op.permute_dims(bb.emit_te(rounded, moved, primfunc_name_hint="round_to_bfloat16"), first(rank))
    )
