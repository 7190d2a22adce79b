"""lowerkit::ConvBf16: convolutions of numbers that are rounded to bfloat16, summed in float32.

Where the processor multiplies bfloat16, these are products of narrow numbers. Elsewhere, as products of two bfloat16
are exact in float32, rounding the operands is all there is to it: the convolution is the float32 one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.importer import Converter
from lowerkit.targets.cpu.kernels.bfloat16 import nearest, rounded
from lowerkit.targets.cpu.kernels.conv_narrow import FIRST, LAST, NO_WINDOW, bordered, convolve, window_of
from lowerkit.targets.cpu.kernels.gemm.dots import Instruction
from lowerkit.targets.cpu.kernels.gemm.machine import Machine

#: TVM's OpPatternKind of what is fused with other elementwise operators, but not into a convolution: that one's tile
#: has no registers left for the constants.
_INJECTIVE = {"op_pattern": 2}


def converters(machine: Machine) -> dict[str, Converter]:
    """The operator of the domain `lowerkit` -> its kernel."""

    def conv(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr:
        """Float32 `inputs[0]` [N, C, H, W] by constant bfloat16 `inputs[1]` [O, C / group, kh, kw]."""
        x, weight = inputs[0], inputs[1].value.numpy()
        window, group = window_of(weight, attributes), int(attributes["group"])
        pixels = math.prod(int(x.ty.shape[axis]) for axis in (0, 2, 3))
        x = bb.emit(relax.op.permute_dims(x, LAST))
        if isinstance(machine.bf16, Instruction) and group == 1:

            def image(x: te.Tensor) -> te.Tensor:
                return bordered(x, window, machine.bf16, _bits, lambda _: tirx.const(0, "uint16"))

            x = bb.emit_te(image, x, primfunc_name_hint="round_image")
            return relax.op.permute_dims(
                convolve(bb, machine, "bf16", x, weight.view(np.uint16), window), FIRST
            )
        x = bb.emit_te(rounded, x, primfunc_name_hint="round_to_bfloat16", primfunc_attrs=_INJECTIVE)
        if group == 1 and window == NO_WINDOW and pixels == 1:
            # One pixel takes as long as it takes to read the weights.
            return relax.op.permute_dims(
                convolve(bb, machine, "bf16", x, weight.view(np.uint16), window), FIRST
            )
        x = bb.emit(relax.op.permute_dims(x, FIRST))
        filters = relax.const(weight.astype(np.float32))
        padding, (strides, dilations) = list(window.padding), (window.strides, window.dilations)
        return relax.op.nn.conv2d(x, filters, strides, padding, dilations, group)

    return {"ConvBf16": conv}


def _bits(_: Expr, value: Expr) -> Expr:
    """The bfloat16 nearest to a float32, as uint16."""
    return (nearest(value) >> tirx.const(16, "uint32")).astype("uint16")
