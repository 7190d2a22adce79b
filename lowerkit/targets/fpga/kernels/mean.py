"""Means over one axis."""

from __future__ import annotations

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.divide import Quotient
from lowerkit.targets.fpga.kernels.schedule import Built, built
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.lang.program import Builder


def mean(
    name: str, before: int, count: int, after: int, x: Fixed, y: Fixed, rounding: str = "half-even"
) -> Built:
    """Over the middle axis: codes x [before, count, after], y [before, after]. An element is taken each cycle."""
    k = Builder(name, f"Mean of {count}, {x} to {y}")
    source, target = k.input("x", (before, count, after), x.range), k.output("y", (before, after), y.range)
    sums = Range(count * x.range.low, count * x.range.high)
    quotient = Quotient(k, "mean", sums, [count], y.fraction - x.fraction, rounding, y.range)
    with k.loop("i", before) as i, k.loop("j", after) as j:
        total = k.register("total", 0, sums)
        with k.loop("n", count, serial=True, pipeline=True) as n:
            k.update(total, total + source[i, n, j])
        k.store(target, (i, j), quotient.of(total))
    return built(k.finish(), before * after)
