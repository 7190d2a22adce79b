"""TopK by the runtime's own function (`runtime/topk.c`): a heap of the k best of each row."""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax, tirx

#: The runtime's function that computes it.
FUNCTION = "lk_topk"


def top_k(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr | None:
    """The `k` largest or smallest elements along `axis`, and their indices; sorted whether asked or not."""
    x, k = inputs
    if not isinstance(k, tvm.ir.GenericConst):
        return None  # for the front end to refuse
    axis, largest = int(attributes.get("axis", -1)), bool(attributes.get("largest", 1))
    return select(bb, x, int(k.value.numpy().item()), axis, largest=largest)


def select(bb: relax.BlockBuilder, x: relax.Expr, count: int, axis: int, *, largest: bool = True) -> relax.Expr:
    """(values, int64 indices) of the `count` largest or smallest elements of `x` along `axis`, sorted."""
    shape = [int(dim) for dim in x.ty.shape]
    axis %= len(shape)
    dtype = x.ty.dtype.dtype
    kind = {"float": "f", "int": "i", "uint": "u"}[str(dtype).rstrip("0123456789")]
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    numbers = (ord(kind), dtype.bits // 8, outer, shape[axis], inner, count, int(largest))
    taken = [*shape[:axis], count, *shape[axis + 1 :]]
    results = [relax.TensorType(taken, str(dtype)), relax.TensorType(taken, "int64")]
    arguments = relax.Tuple([x, *(tirx.IntImm("int64", number) for number in numbers)])
    return bb.emit(relax.call_dps_packed(FUNCTION, arguments, results))
