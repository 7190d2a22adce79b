"""Softmax with a running maximum and a sum that is rescaled by a product: Milakov and Gimelshein's single pass.

Sources: Milakov and Gimelshein, Online normalizer calculation for softmax (2018), Alg. 3; exponentials as a product of
two tables: Muller, Elementary Functions (3rd ed. 2016), section 6.2.

An element x after the maximum m and the sum S of those before gives max(m, x) and

    S exp(m - x) + 1  where x > m,      S + exp(x - m)  elsewhere,

so that one exponential, of the distance |x - m|, serves both. It is a product of two table entries, one for the high
and one for the low half of the distance's bits: 2 x 2^7 words for 14 bits, where one table has 2^14.

Error. Logits are rounded by at most h; softmax then moves by at most h / 2 (see `Fixed`). An exponential is off by at
most d = 3 u, u = 2^-(FRACTION + 1): by u for each entry and u for their product, none being above 1. With S and S' the
sums computed before and after a step, S' >= 1, the step adds an error of at most d, or of S d + u where x > m; its
share of the sum never grows afterwards while n d + u < 1, for what scales it scales the sum, which then gains 1. So the
last sum's relative error is at most the sum over all steps of d / S' or (S d + u) / S'.
- Where the factor is 1/2 or more, S / S' is at most 2.
- Where it is less, S' <= S / 2 + 1; as other steps add at most 1 each and no sum is negative, the S of these steps add
  up to at most 2 n.
In all e = 4 n d + n u, and y is off by h / 2 + d + e, and what the division adds.
"""

from __future__ import annotations

import math

import numpy as np

from lowerkit.passes.softmax.fixed import RECIPROCAL
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.softmax.division import not_negative, reciprocal
from lowerkit.targets.fpga.kernels.softmax.exponentials import input_bits
from lowerkit.targets.fpga.lang.expr import (
    Array,
    Const,
    Expr,
    Range,
    Select,
    Slice,
    clamp,
    maximum,
    minimum,
    round_shift,
)
from lowerkit.targets.fpga.lang.program import Builder, Kernel

#: Fractional bits of exponentials: with 1 itself, an operand of 18 bits.
FRACTION = 17
RECIPROCAL_BITS = 10


def online(rows: int, columns: int, source: Fixed, target: Fixed, *, name: str = "softmax") -> Kernel:
    """x [rows, columns], codes of `source`, to y [rows, columns], codes of `target`, within `bound` of softmax.

    Logits keep their steps, of 12 fractional bits at most, rounded half to even. Where `target` ends below 1, results
    saturate there. Raises ValueError for rows too long for 63 bits.
    """
    bits = input_bits(source)
    drop = max(0, source.fraction - bits)
    one = 1 << FRACTION

    k = Builder(name, f"Softmax over rows of {columns}, {source} to {target}: one pass, a rescaled sum.")
    x = k.input("x", (rows, columns), source.range)
    y = k.output("y", (rows, columns), target.range)
    rounded = round_shift(x[0, 0], drop, "half-even").range
    low, coarse, fine = _tables(rounded.high - rounded.low, 2.0 ** -min(bits, source.fraction))
    coarsely = k.constant(Array.constant(f"{name}_coarse", coarse))
    finely = k.constant(Array.constant(f"{name}_fine", fine))

    def exponential(label: str, distance: Expr) -> Expr:
        """exp of minus a distance, from 0 on; 0 beyond the tables."""
        near = k.let(f"{label}_near", clamp(distance, 0, (len(coarse) << low) - 1))
        return k.let(
            label, round_shift(coarsely[near >> low] * finely[Slice(near, 0, low)], FRACTION), Range(0, one)
        )

    with k.loop("row", rows) as row:
        kept = k.local("u", (columns,), rounded)
        top = k.register("top", rounded.low, rounded)
        total = k.register("total", 0, Range(0, columns * one))
        with k.loop("gather", columns, serial=True, pipeline=True) as i:
            u = k.let("rounded", round_shift(x[row, i], drop, "half-even"))
            k.store(kept, i, u)
            rises = k.let("rises", top < u)
            e = exponential("e", not_negative(Select(rises, u - top, top - u)))
            factor = k.let("factor", Select(rises, e, Const(one)))
            term = k.let("term", Select(rises, Const(one), e))
            k.update(total, round_shift(total * factor + (term << FRACTION), FRACTION))
            k.update(top, maximum(top, u))
        # The largest element's exponential is 1.
        share = reciprocal(k, total, FRACTION, RECIPROCAL_BITS)
        with k.loop("divide", columns, pipeline=True) as i:
            e = exponential("last", not_negative(top - kept[i]))
            k.store(
                y,
                (row, i),
                minimum(share.times(e, target.fraction), min(1 << target.fraction, target.range.high)),
            )
    return k.finish()


def bound(columns: int, source: Fixed, target: Fixed) -> float:
    """The largest difference of `online` to softmax in real numbers, saturated to the target; see above."""
    unit = 2.0 ** -(FRACTION + 1)
    logit = 0.0 if source.fraction <= input_bits(source) else 2.0 ** -(input_bits(source) + 1)
    exponential = 3 * unit
    total = columns * (4 * exponential + unit)
    division = 2.0 ** -(RECIPROCAL_BITS + 1) + 2.0**-RECIPROCAL
    return logit / 2 + exponential + total + division + target.step / 2


def _tables(largest: int, step: float) -> tuple[int, np.ndarray, np.ndarray]:
    """Bits of the low half of distances up to `largest` steps, and both tables; behind the last distance comes 0."""
    end = min(math.ceil((FRACTION + 1) * math.log(2) / step), largest)
    low = (end.bit_length() + 1) // 2
    coarse = np.rint(np.exp(-np.arange((end >> low) + 1) * 2.0**low * step) * 2.0**FRACTION)
    fine = np.rint(np.exp(-np.arange(1 << low) * step) * 2.0**FRACTION)
    if end < largest:
        coarse = np.append(coarse, 0)
    return low, coarse.astype(np.int64), fine.astype(np.int64)
