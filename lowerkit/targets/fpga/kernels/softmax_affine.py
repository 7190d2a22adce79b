"""Softmax between affine formats, by tables of the exponentials of all differences of two codes.

A row's greatest code is subtracted, so that each exponential is an entry of a table. A second table has them divided by
the output's scale; its entry over the row's sum is the output in steps, by long division.
"""

from __future__ import annotations

import math

import numpy as np

from lowerkit.targets.fpga.formats import Bipolar, Format
from lowerkit.targets.fpga.kernels.schedule import Built, built
from lowerkit.targets.fpga.lang.expr import Array, Range, Select, Slice, clamp, equal, maximum
from lowerkit.targets.fpga.lang.program import Builder

#: Bits behind the point of an exponential.
FRACTION = 32
#: Tables have a word for each difference of two codes.
WIDEST = 12


def softmax(name: str, rows: int, columns: int, x: Format, y: Format) -> Built:
    """Over rows of codes x [rows, columns], to y [rows, columns].

    The quotient's relative error is below (columns + 2) 2^-32 where no exponential is below 2^-32: outputs are those
    of exact arithmetic, rounded half to even, but where that is so close to a tie. Raises ValueError for inputs of
    more than 12 bits, for signs, and for sums of more than 62 bits.
    """
    if isinstance(y, Bipolar) or x.range.bits > WIDEST:
        raise ValueError(f"no softmax of {x} to {y}")
    k = Builder(name, f"Softmax of rows of {columns}, {x} to {y}")
    source, target = k.input("x", (rows, columns), x.range), k.output("y", (rows, columns), y.range)
    distances = np.arange(x.range.high - x.range.low + 1)
    powers = np.exp(-x.step * distances)
    exponential = k.constant(Array.constant(f"{name}_exp", np.rint(powers * 2.0**FRACTION).astype(np.int64)))
    # Twice the steps, so that the last bit of the quotient rounds.
    steps = k.constant(
        Array.constant(f"{name}_steps", np.rint(powers * 2.0**FRACTION * (2 / y.step)).astype(np.int64))
    )
    bits = math.floor(2 / y.step).bit_length()
    sums = Range(0, columns * exponential.range.high)
    spread = Range(0, len(distances) - 1)
    with k.loop("row", rows) as row:
        peak = k.register("peak", x.range.low, x.range)
        with k.loop("i", columns, serial=True, pipeline=True) as i:
            k.update(peak, maximum(peak, source[row, i]))
        total = k.register("total", 0, sums)
        with k.loop("j", columns, serial=True, pipeline=True) as j:
            k.update(total, total + exponential[k.let("below", peak - source[row, j], spread)])
        with k.loop("c", columns, pipeline=True) as c:
            rest = k.register(
                "rest",
                steps[k.let("distance", peak - source[row, c], spread)],
                steps.range.union(Range(0, 0)),
            )
            doubled = k.register("doubled", 0, Range(0, (2 << bits) - 1))
            with k.loop("b", bits + 1, serial=True) as b:
                part = k.let("part", total << (bits - b))
                fits = k.let("fits", part <= rest)
                k.update(rest, rest - Select(fits, part, part * 0))
                k.update(doubled, doubled + (fits << (bits - b)))
            up = k.let("up", (doubled + 1) >> 1)
            # Half way: what is odd went up, and goes back.
            tie = k.let("tie", equal(rest, 0) + Slice(doubled, 0, 1) + Slice(up, 0, 1))
            found = Select(equal(tie, 3), up - 1, up) + y.zero
            k.store(target, (row, c), clamp(found, y.range.low, y.range.high))
    return built(k.finish(), rows)
