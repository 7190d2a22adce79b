"""Softmax in fixed point: the integers of `lowerkit.passes.softmax.fixed`."""

from __future__ import annotations

from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.targets.fpga.formats import Fixed as Format
from lowerkit.targets.fpga.kernels.softmax.division import reciprocal
from lowerkit.targets.fpga.kernels.softmax.exponentials import (
    check_rows,
    exact_method,
    exponentials,
    with_output,
)
from lowerkit.targets.fpga.lang.expr import minimum
from lowerkit.targets.fpga.lang.program import Builder, Kernel


def fixed(
    rows: int,
    columns: int,
    source: Format,
    target: Format,
    method: FixedMethod | None = None,
    *,
    name: str = "softmax",
) -> Kernel:
    """x [rows, columns], codes of `source`, to y [rows, columns], codes of `target`.

    y is `Fixed.evaluate` of the numbers that x stands for, bit for bit, in units of 2^-output_bits; where `target`
    ends below 1, it saturates there. (The method reads float32 numbers, which hold codes of up to 24 bits.) Without a
    method, logits keep their steps, of 12 fractional bits at most. The larger table has up to
    (table_bits + 1) ln 2 2^input_bits words, 14907 for ap_fixed<16,6>: an eighth with 3 `input_bits` less.

    Raises:
        ValueError: where the method's output_bits are not those of `target`, rows are longer than it allows for,
            or numbers would not fit 63 bits.
    """
    chosen = method or exact_method(columns, source, target.fraction)
    check_rows(columns, chosen)
    one = with_output(chosen, target)
    k = Builder(name, f"Softmax over rows of {columns}, {source} to {target}: table, exact sum, reciprocal.")
    x = k.input("x", (rows, columns), source.range)
    y = k.output("y", (rows, columns), target.range)
    with k.loop("row", rows) as row:
        e, total = exponentials(k, x, row, source, chosen)
        # The largest element's exponential is 1.
        share = reciprocal(k, total, chosen.table_bits, chosen.reciprocal_bits)
        with k.loop("divide", columns, pipeline=True) as i:
            k.store(y, (row, i), minimum(share.times(e[i], chosen.output_bits), one))
    return k.finish()
