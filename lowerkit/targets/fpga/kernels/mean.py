"""Means and sums over one axis."""

from __future__ import annotations

from collections.abc import Sequence

from lowerkit.targets.fpga.formats import Fixed, Format
from lowerkit.targets.fpga.kernels.divide import Quotient
from lowerkit.targets.fpga.kernels.requantise import Line, Requantise
from lowerkit.targets.fpga.kernels.schedule import Built, built
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.lang.program import Builder


def mean(
    name: str,
    before: int,
    count: int,
    after: int,
    x: Format,
    y: Format,
    rounding: str = "half-even",
    *,
    divisor: int | None = None,
) -> Built:
    """Over the middle axis: codes x [before, count, after], y [before, after]. An element is taken each cycle.

    Sums are exact, and rounded once with their quotient by `divisor`: `count` for a mean, 1 for a sum.
    """
    k = Builder(name, f"{'Sum' if divisor == 1 else 'Mean'} of {count}, {x} to {y}")
    source, target = k.input("x", (before, count, after), x.range), k.output("y", (before, after), y.range)
    each = x.range.less(x.zero)
    sums = Range(count * each.low, count * each.high)
    quotient = mean_of(k, sums, [count if divisor is None else divisor], x, y, rounding)
    with k.loop("i", before) as i, k.loop("j", after) as j:
        total = k.register("total", 0, sums)
        with k.loop("n", count, serial=True, pipeline=True) as n:
            k.update(total, total + (source[i, n, j] - x.zero if x.zero else source[i, n, j]))
        k.store(target, (i, j), quotient.of(total))
    return built(k.finish(), before * after)


def mean_of(
    k: Builder, sums: Range, counts: Sequence[int], x: Format, y: Format, rounding: str
) -> Quotient | Requantise:
    """Divides sums of codes of x, less the code of 0, by counts[index]; what it gives is a code of y."""
    if isinstance(x, Fixed) and isinstance(y, Fixed):
        return Quotient(k, "mean", sums, counts, y.fraction - x.fraction, rounding, y.range)
    return Requantise(k, "mean", [Line(sums, x.scale / y.scale / int(n)) for n in counts], y)
