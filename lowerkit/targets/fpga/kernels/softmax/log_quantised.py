"""Softmax as powers of 2 or of its root: the codes of `lowerkit.passes.softmax.log_quantised`."""

from __future__ import annotations

import functools
import math
import operator

import numpy as np

from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.passes.softmax.log_quantised import PER_OCTAVE, LogQuantised
from lowerkit.targets.fpga.formats import Fixed as Format
from lowerkit.targets.fpga.kernels.softmax.exponentials import check_rows, exact_method, exponentials
from lowerkit.targets.fpga.lang.expr import (
    Array,
    BitLength,
    Const,
    Expr,
    Range,
    Select,
    Slice,
    Var,
    clamp,
    equal,
    maximum,
)
from lowerkit.targets.fpga.lang.program import Builder, Kernel

#: Most bits of the constants that thresholds are made with.
CONSTANT_BITS = 30


def log_quantised(
    rows: int,
    columns: int,
    source: Format,
    method: LogQuantised | None = None,
    exponential: FixedMethod | None = None,
    *,
    target: Format | None = None,
    name: str = "softmax",
) -> Kernel:
    """x [rows, columns], codes of `source`, to codes k [rows, columns] from 0 to K + 1.

    k stands for b^-k, and K + 1 for 0 (K = 2^bits - 1 is the method's last code): k = round(-log_b(e / S)) for the
    integers e and S of `exponential`, a `Fixed`. There is no reciprocal: for b = 2, k counts the j >= 0 with
    e 2^j <= S / sqrt(2), which the positions of both leading ones and a comparison tell; for b = sqrt(2) there are
    two such counts, with S 2^(-1/4) and S 2^(-3/4). The thresholds are rounded down to integers from a constant of
    up to 30 bits, so that a code may be the next where e / S is within about 2^-30 of the place where codes part.

    With `target`, its codes for b^-k come out, by a table of K + 2 entries.
    """
    chosen, base = method or LogQuantised(), exponential or exact_method(columns, source, 15)
    check_rows(columns, base)
    per_octave, zero = PER_OCTAVE[chosen.base], chosen.last + 1
    k = Builder(name, f"Softmax over rows of {columns}, {source}, as codes of {chosen.base}^-k; {zero} is 0.")
    x = k.input("x", (rows, columns), source.range)
    y = k.output("y", (rows, columns), Range(0, zero) if target is None else target.range)
    if target is not None:
        numbers = np.append(chosen.factor ** -np.arange(zero, dtype=np.float64), 0.0)
        meaning = k.constant(Array.constant(f"{k.name}_meaning", target.quantise(numbers)))
    with k.loop("row", rows) as row:
        e, total = exponentials(k, x, row, source, base)
        bits = min(CONSTANT_BITS, 61 - total.range.bits)
        thresholds = [
            k.let(
                f"threshold{i}", (total * math.floor(2.0 ** (bits - (2 * i + 1) / (2 * per_octave)))) >> bits
            )
            for i in range(per_octave)
        ]
        with k.loop("encode", columns, pipeline=True) as i:
            entry = k.let("exponential", e[i])
            counts = [_octaves(k, f"octaves{j}", entry, t) for j, t in enumerate(thresholds)]
            code = functools.reduce(operator.add, counts)
            code = k.let("code", Select(equal(entry, 0), Const(zero), clamp(code, 0, zero)))
            k.store(y, (row, i), code if target is None else meaning[code])
    return k.finish()


def _octaves(k: Builder, name: str, e: Var, threshold: Var) -> Expr:
    """How many j >= 0 have e 2^j <= threshold, for e > 0."""
    ahead = k.let(name, BitLength(threshold) - BitLength(e))
    # Where e is not the longer one, it becomes as long as the threshold.
    aligned = Slice(e << maximum(ahead, 0), 0, threshold.range.bits)
    return Select(ahead < 0, Const(0), maximum(ahead, 0) + (aligned <= threshold))
