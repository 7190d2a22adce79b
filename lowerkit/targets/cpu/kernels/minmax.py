"""Max and Min element by element, where a NaN stays one.

TVM's front end stacks the inputs and reduces, which nothing can be fused with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax


def elementwise_max(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr | None:
    """The largest of the inputs, broadcast; None for the front end to do what are no tensors."""
    return _extreme(bb, inputs, relax.op.maximum)


def elementwise_min(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr | None:
    """The smallest, likewise."""
    return _extreme(bb, inputs, relax.op.minimum)


def _extreme(
    bb: relax.BlockBuilder,
    inputs: list[relax.Expr],
    choose: Callable[[relax.Expr, relax.Expr], relax.Expr],
) -> relax.Expr | None:
    if not all(isinstance(x.ty, relax.TensorType) for x in inputs):
        return None
    # The instruction gives its right argument where either is NaN: constants, which are none, go to the left.
    first, *others = sorted(inputs, key=lambda x: not _is_number(x))
    clean = _is_number(first)
    for x in others:
        y = bb.normalize(choose(first, x))
        if not clean and str(first.ty.dtype.dtype).startswith("float"):
            y = bb.normalize(relax.op.where(relax.op.isnan(first), first, y))
        first, clean = y, clean and _is_number(x)
    return first


def _is_number(x: relax.Expr) -> bool:
    return isinstance(x, tvm.ir.GenericConst) and not np.isnan(x.value.numpy()).any()
