"""Numbers brought to a format: rounded and saturated."""

from __future__ import annotations

from lowerkit.targets.fpga.formats import Format
from lowerkit.targets.fpga.lang.expr import Expr, Operand, clamp, expr, round_shift


def narrow(value: Operand, fraction: int, out: Format, rounding: str = "half-even") -> Expr:
    """value / 2^fraction as a code of `out`, of fixed point.

    Name the value with `let` first, as it is read more than once.
    """
    found, low, high = expr(value), out.range.low, out.range.high
    down = fraction - out.fraction
    if down > 0:
        # Two bits beyond the number's own, a longer shift has the same result.
        return clamp(round_shift(found, min(down, found.range.bits + 2), rounding), low, high)
    # What passes an end before the shift passes it after, so that the shift needs no more than the format's bits.
    up = min(-down, out.width + 1)
    if up:
        found = clamp(found, low >> up, (high >> up) + 1) << up
    return clamp(found, low, high)
