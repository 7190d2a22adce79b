"""Softmax as unsigned integers: the codes of `lowerkit.passes.softmax.quantised`."""

from __future__ import annotations

import numpy as np

from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.passes.softmax.quantised import Quantised
from lowerkit.targets.fpga.formats import Fixed as Format
from lowerkit.targets.fpga.kernels.softmax.division import Reciprocal, reciprocal
from lowerkit.targets.fpga.kernels.softmax.exponentials import check_rows, exact_method, exponentials
from lowerkit.targets.fpga.lang.expr import Array, Range, minimum
from lowerkit.targets.fpga.lang.program import Builder, Kernel


def quantised(
    rows: int,
    columns: int,
    source: Format,
    method: Quantised | None = None,
    exponential: FixedMethod | None = None,
    *,
    target: Format | None = None,
    name: str = "softmax",
) -> Kernel:
    """x [rows, columns], codes of `source`, to codes q [rows, columns] from 0 to L = 2^bits - 1.

    q stands for q / L + c = (q - z) / L, with c the method's correction and the zero point z = -c L of at most half
    a step: it belongs to the next product (see `zero_point`) and costs nothing here. q = floor(L e r / 2^s + 1/2)
    with e, r and s as in `fixed`; L goes into the row's reciprocal. q is that of `Quantised`, except where p L comes
    nearer to a half than `exponential` is exact.

    With `target`, its codes for q / L + c come out, by a table of L + 1 entries.

    Raises:
        ValueError: for corrections per head, as rows do not tell their heads.
    """
    chosen, base = method or Quantised(), exponential or exact_method(columns, source, 15)
    check_rows(columns, base)
    levels, correction = chosen.levels, _correction(chosen)
    codes = Range(0, levels) if target is None else target.range
    k = Builder(name, f"Softmax over rows of {columns}, {source}, in steps of 1 / {levels}.")
    x = k.input("x", (rows, columns), source.range)
    y = k.output("y", (rows, columns), codes)
    if target is not None:
        numbers = np.arange(levels + 1) / levels + correction
        meaning = k.constant(Array.constant(f"{k.name}_meaning", target.quantise(numbers)))
    with k.loop("row", rows) as row:
        e, total = exponentials(k, x, row, source, base)
        share = reciprocal(k, total, base.table_bits, base.reciprocal_bits)
        scaled = Reciprocal(k.let("step", share.factor * levels), share.octave, share.least)
        with k.loop("divide", columns, pipeline=True) as i:
            q = minimum(scaled.times(e[i], 0), levels)
            k.store(y, (row, i), q if target is None else meaning[q])
    return k.finish()


def zero_point(method: Quantised) -> float:
    """z of (q - z) / L, in steps. Raises ValueError for corrections per head."""
    return -_correction(method) * method.levels


def _correction(method: Quantised) -> float:
    if method.added.size != 1:
        raise ValueError("a correction per head; one kernel has one: set per_head = false")
    return float(method.added.reshape(()))
