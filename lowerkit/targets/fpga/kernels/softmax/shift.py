"""Softmax in base 2 in one pass over an integer running maximum: the integers of `lowerkit.passes.softmax.shift`."""

from __future__ import annotations

import math

import numpy as np

from lowerkit.passes.softmax.shift import Shift
from lowerkit.targets.fpga.formats import Fixed as Format
from lowerkit.targets.fpga.kernels.softmax.division import half_up, not_negative, reciprocal
from lowerkit.targets.fpga.kernels.softmax.exponentials import check_rows, input_bits, with_output
from lowerkit.targets.fpga.lang.expr import (
    Array,
    Expr,
    Range,
    Slice,
    clamp,
    expr,
    maximum,
    minimum,
    round_shift,
)
from lowerkit.targets.fpga.lang.program import Builder, Kernel

#: Formats up to this width have their scaling by log2(e) checked, code by code.
CHECKED = 20


def shift(
    rows: int,
    columns: int,
    source: Format,
    target: Format,
    method: Shift | None = None,
    *,
    octaves: bool = False,
    name: str = "softmax",
) -> Kernel:
    """x [rows, columns], codes of `source`, to y [rows, columns], codes of `target`.

    The sum S is that of the single pass in the docstring of `Shift`; exponentials are taken again below the last
    maximum, and divided by S as `Shift.divide` does: y is `Shift.divide(e, S)`, bit for bit, within
    `Shift.streaming_bound` of softmax. It is `Shift.evaluate` where no element raises the integer maximum of the
    first.

    With `octaves`, x is scaled by log2(e) already (a constant that folds into the layer before), and is rounded to
    `input_bits` fractional bits, halves to even. Without, it is multiplied by a constant here, of as many bits as
    give `Shift.logits` for every code of the format.

    Raises:
        ValueError: as for `fixed`; and for formats of more than 20 bits without `octaves`.
    """
    chosen = method or Shift(input_bits=input_bits(source), output_bits=target.fraction, longest=columns)
    check_rows(columns, chosen)
    one = with_output(chosen, target)
    b, unit = chosen.input_bits, chosen.table_bits
    factor, drop = (1, source.fraction - b) if octaves else multiplier(source, chosen)

    k = Builder(name, f"Softmax over rows of {columns}, {source} to {target}: base 2, one pass, shifts.")
    x = k.input("x", (rows, columns), source.range)
    y = k.output("y", (rows, columns), target.range)
    table = k.constant(Array.constant(f"{k.name}_powers", chosen.tables()[0].astype(np.int64)))

    def scaled(code: Expr) -> Expr:
        if octaves:
            return round_shift(code, drop, "half-even")
        # log2(e) is irrational: there are no ties but in the constant's last bits.
        return round_shift(code * factor, drop, "half-up")

    def exponential(label: str, top: Expr, u: Expr) -> Expr:
        """2^(u - top), at most 1."""
        near = k.let(label, clamp(not_negative((top << b) - u), 0, int(chosen.last)))
        return half_up(table[Slice(near, 0, b)], near >> b)

    logits = _image(scaled(x[0, 0]).range, b)
    with k.loop("row", rows) as row:
        kept = k.local("u", (columns,), scaled(x[row, 0]).range)
        top = k.register("top", logits.low, logits)
        # An element adds 1 at most, and a shift, though rounded up, makes no sum of 1 or more larger.
        total = k.register("total", 0, Range(0, columns << unit))
        gone = total.range.bits + 1
        with k.loop("gather", columns, serial=True, pipeline=True) as i:
            u = k.let("scaled", scaled(x[row, i]))
            k.store(kept, i, u)
            above = k.let("above", maximum(top, _ceiling(u, b)))
            rise = k.let("rise", clamp(not_negative(above - top), 0, gone))
            k.update(total, half_up(total, rise) + exponential("below", above, u))
            k.update(top, above)
        # The largest element is less than an octave below its integer maximum.
        share = reciprocal(k, total, unit - 1, chosen.reciprocal_bits)
        with k.loop("divide", columns, pipeline=True) as i:
            e = k.let("e", exponential("last", top, kept[i]))
            k.store(y, (row, i), minimum(share.times(e, chosen.output_bits), one))
    return k.finish()


def multiplier(source: Format, method: Shift) -> tuple[int, int]:
    """The least constant c and shift s with round(code c / 2^s) = `Shift.logits` for every code of the format."""
    if source.width > CHECKED:
        raise ValueError(f"{source} has more than {CHECKED} bits: scale the logits by log2(e) before")
    codes = np.arange(source.range.low, source.range.high + 1)
    wanted = method.logits(source.dequantise(codes)).astype(np.int64)
    for bits in range(1, 62 - source.width):
        c, s = round(math.log2(math.e) * 2.0**bits), source.fraction + bits - method.input_bits
        if s < 1:
            continue
        if np.array_equal((codes * c + (1 << (s - 1))) >> s, wanted):
            return c, s
    raise ValueError(f"no constant of 62 bits scales {source} by log2(e) as float64 does")


def _ceiling(u: Expr, bits: int) -> Expr:
    return (expr(u) + ((1 << bits) - 1)) >> bits


def _image(u: Range, bits: int) -> Range:
    """The integers that logits of that range have for a maximum."""
    return Range(-(-u.low >> bits), -(-u.high >> bits))
