"""lowerkit::ConvBf16: convolutions of numbers that are rounded to bfloat16, summed in float32.

Where the processor multiplies bfloat16, these are products of narrow numbers. Elsewhere, as products of two bfloat16
are exact in float32, rounding the operands is all there is to it: the convolution is the float32 one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.importer import Converter
from lowerkit.targets.cpu.kernels.bfloat16 import nearest, rounded
from lowerkit.targets.cpu.kernels.conv_narrow import FIRST, LAST, bordered, convolve, window_of
from lowerkit.targets.cpu.kernels.gemm.dots import Instruction
from lowerkit.targets.cpu.kernels.gemm.machine import Machine


def converters(machine: Machine) -> dict[str, Converter]:
    """The operator of the domain `lowerkit` -> its kernel."""

    def conv(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr:
        """Float32 `inputs[0]` [N, C, H, W] by constant bfloat16 `inputs[1]` [O, C / group, kh, kw]."""
        x, weight = inputs[0], inputs[1].value.numpy()
        window, group = window_of(weight, attributes), int(attributes["group"])
        x = bb.emit(relax.op.permute_dims(x, LAST))
        if isinstance(machine.bf16, Instruction) and group == 1:

            def image(x: te.Tensor) -> te.Tensor:
                return bordered(x, window, machine.bf16, _bits, lambda _: tirx.const(0, "uint16"))

            rows = bb.emit_te(image, x, primfunc_name_hint="round_image")
            y = convolve(bb, machine, "bf16", rows, weight.view(np.uint16), window)
            return relax.op.permute_dims(bb.emit(y), FIRST)
        x = bb.emit_te(rounded, x, primfunc_name_hint="round_to_bfloat16", primfunc_attrs={"op_pattern": 0})
        x = bb.emit(relax.op.permute_dims(x, FIRST))
        filters = relax.const(weight.astype(np.float32))
        padding, (strides, dilations) = list(window.padding), (window.strides, window.dilations)
        return relax.op.nn.conv2d(x, filters, strides, padding, dilations, group)

    return {"ConvBf16": conv}


def _bits(_: Expr, value: Expr) -> Expr:
    """The bfloat16 nearest to a float32, as uint16."""
    return (nearest(value) >> tirx.const(16, "uint32")).astype("uint16")
