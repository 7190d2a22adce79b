"""Normalised even powers: `lowerkit.passes.softmax.power` in integers."""

from __future__ import annotations

import math

from lowerkit.passes.softmax.power import MASKED, Power
from lowerkit.targets.fpga.formats import Fixed as Format
from lowerkit.targets.fpga.kernels.softmax.division import reciprocal
from lowerkit.targets.fpga.lang.expr import Const, Expr, Range, Select, Var, maximum, minimum, round_shift
from lowerkit.targets.fpga.lang.program import Builder, Kernel


def power(
    rows: int,
    columns: int,
    source: Format,
    target: Format,
    method: Power | None = None,
    *,
    fraction: int = 20,
    reciprocal_bits: int = 10,
    name: str = "softmax",
) -> Kernel:
    """x [rows, columns], codes of `source`, to y [rows, columns], codes of `target`.

    |x| / scale and its powers have `fraction` fractional bits each, rounded, halves up, after every product; the
    sum, with epsilon, is exact, and division is that of `fixed`. A row whose powers all round to 0 gives zeros where
    epsilon does too. `plain` has no scale of its own, and is unchanged by one: it takes the power of two that
    brings the format's numbers to [-1, 1].

    Raises:
        ValueError: where powers, or their sum, would not fit 63 bits.
    """
    chosen = method or Power()
    plain = chosen.form == "plain"
    scale = 2.0 ** (source.integer - source.signed) if plain else chosen.scale
    epsilon = 0.0 if plain else chosen.epsilon
    if chosen.form == "length-agnostic":
        # The same quotient with `columns` times either part.
        epsilon *= columns
    k = Builder(name, f"x^{chosen.power} over its sum in rows of {columns}, {source} to {target}.")
    x = k.input("x", (rows, columns), source.range)
    y = k.output("y", (rows, columns), target.range)
    one = min(1 << target.fraction, target.range.high)

    # |code| 2^-fraction(source) / scale in units of 2^-fraction, by a constant of 20 bits.
    bits = 20 + math.ceil(math.log2(scale))
    factor, drop = round(2.0**bits / scale), bits + source.fraction - fraction
    masked = math.floor(MASKED * 2.0**source.fraction)

    def raised(k: Builder, code: Expr) -> Expr:
        size = maximum(maximum(code, 0 - code), 0) if source.signed else code
        found = _power(k, k.let("size", round_shift(size * factor, drop)), chosen.power, fraction)
        return Select(code <= masked, Const(0), found) if code.range.low <= masked else found

    entry = Range(0, raised(Builder("range", ""), Var("code", source.range)).range.high)
    start = round(epsilon * 2.0**fraction)
    with k.loop("row", rows) as row:
        powers = k.local("powers", (columns,), entry)
        # Epsilon and `columns` powers.
        total = k.register("total", start, Range(start, start + columns * entry.high))
        with k.loop("add", columns, serial=True, pipeline=True) as i:
            found = k.let("found", raised(k, k.let("code", x[row, i])))
            k.store(powers, i, found)
            k.update(total, total + found)
        share = reciprocal(k, k.let("divisor", maximum(total, 1)), 0, reciprocal_bits)
        with k.loop("divide", columns, pipeline=True) as i:
            k.store(y, (row, i), minimum(share.times(powers[i], target.fraction), one))
    return k.finish()


def _power(k: Builder, v: Expr, exponent: int, fraction: int) -> Expr:
    """v^exponent, every product rounded."""
    found: Expr | None = None
    square = 1
    while True:
        if exponent & square:
            found = v if found is None else k.let(f"product{square}", round_shift(found * v, fraction))
        square *= 2
        if square > exponent:
            assert found is not None
            return found
        v = k.let(f"power{square}", round_shift(v * v, fraction))
