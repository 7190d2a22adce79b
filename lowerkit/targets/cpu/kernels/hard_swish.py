"""HardSwish as ONNX defines it: TVM's front end divides, which takes longer than a small convolution before it."""

from __future__ import annotations

from typing import Any

from tvm import relax


def hard_swish(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr:
    """x max(0, min(1, x / 6 + 1/2)) of float `inputs[0]`, by multiplication with the float next to 1/6."""
    x = inputs[0]
    dtype = str(x.ty.dtype.dtype)
    line = relax.op.add(relax.op.multiply(x, relax.const(1 / 6, dtype)), relax.const(0.5, dtype))
    return relax.op.multiply(x, relax.op.clip(bb.normalize(line), 0, 1))
