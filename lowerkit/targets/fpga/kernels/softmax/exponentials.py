"""A row's exponentials below its maximum by table, and their exact sum: what most softmax kernels begin with."""

from __future__ import annotations

import numpy as np

from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.targets.fpga.formats import Fixed as Format
from lowerkit.targets.fpga.kernels.softmax.division import not_negative
from lowerkit.targets.fpga.lang.expr import Array, Range, Var, clamp, maximum, round_shift
from lowerkit.targets.fpga.lang.program import Builder


def input_bits(source: Format) -> int:
    """The method's fractional bits of logits that lose least: those of the format, from 1 to 12."""
    return min(max(source.fraction, 1), 12)


def exact_method(columns: int, source: Format, output_bits: int) -> FixedMethod:
    """`Fixed` with the format's own steps, for rows of that length."""
    return FixedMethod(input_bits=input_bits(source), output_bits=output_bits, longest=columns)


def check_rows(columns: int, method: FixedMethod) -> None:
    """Raises ValueError for rows longer than the method's bound is for."""
    if columns > method.longest:
        raise ValueError(f"rows of {columns} elements to sum, more than longest = {method.longest}")


def with_output(method: FixedMethod, target: Format) -> int:
    """The code of 1, or the greatest there is. Raises ValueError for a format of other steps."""
    if target.fraction != method.output_bits:
        raise ValueError(f"{target} has {target.fraction} fractional bits, not {method.output_bits}")
    return min(1 << method.output_bits, target.range.high)


def exponentials(k: Builder, x: Array, row: Var, source: Format, method: FixedMethod) -> tuple[Array, Var]:
    """The integers e [columns] of `Fixed.exponentials`, and their sum, at least 2^table_bits.

    Logits with more fractional bits than `input_bits` are rounded to these, halves to even, as the method does;
    with fewer, differences are multiples of 2^(input_bits - fraction), and the table has no entries between.
    """
    columns = x.shape[1]
    drop = max(0, source.fraction - method.input_bits)
    table = k.constant(Array.constant(f"{k.name}_exponentials", _table(source, method)))
    end = table.shape[0] - 1

    # Rounding keeps the order: the largest rounded logit is the largest logit, rounded.
    best = k.register("best", source.range.low, source.range)
    with k.loop("find", columns, serial=True, pipeline=True) as i:
        k.update(best, maximum(best, x[row, i]))
    top = k.let("top", round_shift(best, drop, "half-even"))

    e = k.local("e", (columns,), table.range)
    # A sum of `columns` entries of the table.
    total = k.register("total", 0, Range(0, columns * table.range.high))
    with k.loop("add", columns, serial=True, pipeline=True) as i:
        below = k.let("below", not_negative(top - round_shift(x[row, i], drop, "half-even")))
        entry = k.let("entry", table[clamp(below, 0, end)])
        k.store(e, i, entry)
        k.update(total, total + entry)
    return e, total


def _table(source: Format, method: FixedMethod) -> np.ndarray:
    """Entries for the differences that the format has, int64; the last is 0 unless none gets there."""
    entries = method.tables()[0].astype(np.int64)
    last = len(entries) - 1
    stride = 1 << max(0, method.input_bits - source.fraction)
    # Rounding up may lengthen the largest difference by one.
    reach = (((1 << source.width) - 1) >> max(0, source.fraction - method.input_bits)) + 1
    count = min(-(-last // stride), reach) + 1
    return entries[np.minimum(np.arange(count) * stride, last)]
