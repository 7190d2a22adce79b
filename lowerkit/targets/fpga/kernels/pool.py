"""Pooling of images. Averages are exact quotients, rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from lowerkit.targets.fpga.formats import Format
from lowerkit.targets.fpga.kernels.mean import mean_of
from lowerkit.targets.fpga.kernels.requantise import converted
from lowerkit.targets.fpga.kernels.schedule import Built, built
from lowerkit.targets.fpga.kernels.window import Window, read
from lowerkit.targets.fpga.lang.expr import Array, Range, Var, maximum
from lowerkit.targets.fpga.lang.program import Builder


def max_pool(
    name: str,
    channels: int,
    image: tuple[int, int],
    window: Window,
    x: Format,
    y: Format,
    rounding: str = "half-even",
) -> Built:
    """The greatest of each window; codes x [channels, height, width], y [channels, out height, out width].

    The border never wins; a window with nothing else has the format's least number.
    """
    out = window.out(image)
    k = Builder(name, f"Greatest of {window.kernel[0]} x {window.kernel[1]}, {x} to {y}")
    source = k.input("x", (channels, *image), x.range)
    target = k.output("y", (channels, *out), y.range)
    convert = converted(k, x, y, rounding)
    with _pixels(k, channels, out) as place:
        best = k.register("best", x.range.low, x.range)
        with k.loop("i", window.kernel[0], serial=True) as i, k.loop("j", window.kernel[1], serial=True) as j:
            rows, columns = window.at(0, place[1], i), window.at(1, place[2], j)
            k.update(best, maximum(best, read(source, (place[0],), rows, columns, x.range.low)))
        k.store(target, place, convert(best))
    return built(k.finish())


def average_pool(
    name: str,
    channels: int,
    image: tuple[int, int],
    window: Window,
    x: Format,
    y: Format,
    *,
    count_pads: bool = False,
    rounding: str = "half-even",
) -> Built:
    """The mean of each window; codes x [channels, height, width], y [channels, out height, out width].

    The sum is exact, and its quotient by the number of elements is rounded once, to what the exact mean rounds to.

    Args:
        count_pads: the border counts as zeros; otherwise the mean is of the image's elements alone.
    """
    out, size = window.out(image), window.kernel[0] * window.kernel[1]
    k = Builder(name, f"Mean of {window.kernel[0]} x {window.kernel[1]}, {x} to {y}")
    source = k.input("x", (channels, *image), x.range)
    target = k.output("y", (channels, *out), y.range)
    each = x.range.less(x.zero)
    sums = Range(min(0, size * each.low), size * each.high)
    counts, table = [size], None
    if not count_pads:
        high, wide = (
            np.array([window.inside(image, axis, p) for p in range(out[axis])], np.int64) for axis in (0, 1)
        )
        found = high[:, None] * wide
        if not found.all():
            raise ValueError(f"{name}: a window lies in the border, and has no mean")
        counts = sorted({int(n) for n in found.ravel()})
        if len(counts) > 1:
            table = k.constant(Array.constant(f"{name}_count", np.searchsorted(counts, found)))
    quotient = mean_of(k, sums, counts, x, y, rounding)
    with _pixels(k, channels, out) as place:
        total = k.register("total", 0, sums)
        with k.loop("i", window.kernel[0], serial=True) as i, k.loop("j", window.kernel[1], serial=True) as j:
            rows, columns = window.at(0, place[1], i), window.at(1, place[2], j)
            element = read(source, (place[0],), rows, columns, x.zero)
            k.update(total, total + (element - x.zero if x.zero else element))
        mean = quotient.of(total, 0 if table is None else table[place[1], place[2]])
        k.store(target, place, mean)
    return built(k.finish())


def global_average_pool(
    name: str, channels: int, image: tuple[int, int], x: Format, y: Format, rounding: str = "half-even"
) -> Built:
    """The mean of each channel; codes x [channels, height, width], y [channels]. An element is taken each cycle."""
    k = Builder(name, f"Mean of {image[0]} x {image[1]}, {x} to {y}")
    source = k.input("x", (channels, *image), x.range)
    target = k.output("y", (channels,), y.range)
    size = image[0] * image[1]
    each = x.range.less(x.zero)
    sums = Range(size * each.low, size * each.high)
    quotient = mean_of(k, sums, [size], x, y, rounding)
    with k.loop("c", channels) as c:
        total = k.register("total", 0, sums)
        with k.loop("i", image[0], serial=True) as i, k.loop("j", image[1], serial=True, pipeline=True) as j:
            k.update(total, total + (source[c, i, j] - x.zero if x.zero else source[c, i, j]))
        k.store(target, c, quotient.of(total))
    return built(k.finish(), channels)


@contextmanager
def _pixels(k: Builder, channels: int, out: tuple[int, int]) -> Iterator[tuple[Var, Var, Var]]:
    """Loops over channels, rows and columns, a pixel each cycle."""
    with (
        k.loop("c", channels) as c,
        k.loop("row", out[0]) as row,
        k.loop("col", out[1], pipeline=True) as col,
    ):
        yield c, row, col
