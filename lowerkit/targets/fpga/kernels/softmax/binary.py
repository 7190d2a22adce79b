"""Softmax as one bit per element: `lowerkit.passes.softmax.binary`."""

from __future__ import annotations

import math

import numpy as np

from lowerkit.passes.softmax.binary import Binary
from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.targets.fpga.formats import Fixed as Format
from lowerkit.targets.fpga.kernels.softmax.exponentials import check_rows, exact_method, exponentials
from lowerkit.targets.fpga.lang.expr import Const, Range, Select
from lowerkit.targets.fpga.lang.program import Builder, Kernel

#: Most bits of the threshold.
THRESHOLD_BITS = 30


def binary(
    rows: int,
    columns: int,
    source: Format,
    method: Binary | None = None,
    exponential: FixedMethod | None = None,
    *,
    target: Format | None = None,
    name: str = "softmax",
) -> Kernel:
    """x [rows, columns], codes of `source`, to bits [rows, columns]: 1 where e >= t S.

    e and S are the integers of `exponential`, a `Fixed`, and t is the method's threshold, rounded up to 2^-30: no
    division, one product per row. With `target`, codes of the method's scale in that format come in place of 1.

    Raises:
        ValueError: for a threshold or a scale per head, as rows do not tell their heads.
    """
    chosen, base = method or Binary(), exponential or exact_method(columns, source, 15)
    check_rows(columns, base)
    if not isinstance(chosen.threshold, (int, float)) or not isinstance(chosen.scale, (int, float)):
        raise ValueError("a threshold or a scale per head; one kernel has one: set per_head = false")
    one = 1 if target is None else int(target.quantise(np.array(chosen.scale)))
    k = Builder(
        name, f"Softmax over rows of {columns}, {source}: {one} from {chosen.threshold:g} on, else 0."
    )
    x = k.input("x", (rows, columns), source.range)
    y = k.output("y", (rows, columns), Range(0, 1) if target is None else target.range)
    with k.loop("row", rows) as row:
        e, total = exponentials(k, x, row, source, base)
        bits = min(THRESHOLD_BITS, 60 - total.range.bits)
        # An integer is not below a fraction where it is not below the next integer.
        factor = math.ceil(chosen.threshold * 2.0**bits)
        threshold = k.let("threshold", (total * factor + ((1 << bits) - 1)) >> bits)
        with k.loop("compare", columns, pipeline=True) as i:
            k.store(y, (row, i), Select(threshold <= e[i], Const(one), Const(0)))
    return k.finish()
