"""Elements moved, unchanged but for their format where that is said. `lanes` elements move each cycle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lowerkit.targets.fpga.formats import Format
from lowerkit.targets.fpga.kernels.divide import Division
from lowerkit.targets.fpga.kernels.lanes import elements
from lowerkit.targets.fpga.kernels.requantise import converted
from lowerkit.targets.fpga.kernels.schedule import Built, built
from lowerkit.targets.fpga.lang.expr import Array, Expr, Operand, Range, clamp
from lowerkit.targets.fpga.lang.program import Builder

Shape = Sequence[int]


def transpose(name: str, shape: Shape, order: Sequence[int], x: Format, *, lanes: int = 1) -> Built:
    """y with x's axes in the given order, as numpy's transpose."""
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"{name}: {list(order)} is no order of {len(shape)} axes")
    k = Builder(name, f"Axes in the order {', '.join(map(str, order))}, {x}")
    source = k.input("x", shape, x.range)
    out = [shape[axis] for axis in order]
    target = k.output("y", out, x.range)
    with elements(k, out, lanes) as index:
        k.store(target, index, source[tuple(index[list(order).index(axis)] for axis in range(len(shape)))])
    return built(k.finish())


def reshape(name: str, shape: Shape, out: Shape, x: Format) -> Built:
    """y with x's elements, in order, in another shape; an element each cycle.

    Axes that split or merge become loops over the parts that both shapes have. Other shapes, 4 x 6 and 6 x 4 for
    example, need places divided by constants.
    """
    if math.prod(shape) != math.prod(out):
        raise ValueError(f"{name}: {list(shape)} does not reshape to {list(out)}")
    k = Builder(name, f"From {' x '.join(map(str, shape))} to {' x '.join(map(str, out))}, {x}")
    source, target = k.input("x", shape, x.range), k.output("y", out, x.range)
    strides = sorted({*_strides(shape), *_strides(out), math.prod(out)}, reverse=True)
    if all(big % small == 0 for big, small in pairwise(strides)):
        parts = [big // small for big, small in pairwise(strides)] or [1]
        with elements(k, parts) as index:
            places = [_composed(index, strides[-len(parts) :], each) for each in (shape, out)]
            k.store(target, places[1], source[places[0]])
        return built(k.finish())
    with elements(k, out) as index:
        flat: Operand = 0
        for i, stride in zip(index, _strides(out), strict=True):
            flat = i * stride + flat
        k.store(target, index, source[_unravelled(k, flat, shape)])
    return built(k.finish())


def embedding(
    name: str, ids: Sequence[int], table: np.ndarray, x: Range, y: Format, *, lanes: int = 1
) -> Built:
    """y[i] = table[x[i]], the table of codes [rows, width]; x [*ids] are row numbers, y is [*ids, width].

    A number past the table reads its last row.
    """
    k = Builder(name, f"Rows of a table of {table.shape[0]} x {table.shape[1]}, {y}")
    source, target = k.input("ids", ids, x), k.output("y", (*ids, table.shape[1]), y.range)
    rows = k.constant(Array.constant(f"{name}_table", table))
    with elements(k, (*ids, table.shape[1]), lanes) as (*place, j):
        row = clamp(source[tuple(place)], 0, len(table) - 1)
        k.store(target, (*place, j), rows[row, j])
    return built(k.finish())


def slices(
    name: str, shape: Shape, starts: Sequence[int], counts: Sequence[int], steps: Sequence[int], x: Format,
    *, lanes: int = 1,
) -> Built:  # fmt: skip
    """y[i, ...] = x[start + i step, ...]: `counts` elements along each axis; steps may be negative."""
    k = Builder(name, f"From {list(starts)} on, steps {list(steps)}, {x}")
    source, target = k.input("x", shape, x.range), k.output("y", counts, x.range)
    with elements(k, counts, lanes) as index:
        moves = zip(index, starts, steps, strict=True)
        k.store(target, index, source[tuple(i * step + start for i, start, step in moves)])
    return built(k.finish())


def concat(
    name: str, parts: Sequence[Shape | np.ndarray], axis: int, formats: Sequence[Format], y: Format,
    *, rounding: str = "half-even", lanes: int = 1,
) -> Built:  # fmt: skip
    """Inputs x0, x1, ... one after the other along an axis, each brought from its format to y's.

    A part is the shape of an input, or constant codes of its format.
    """
    shapes = [tuple(part.shape) if isinstance(part, np.ndarray) else tuple(part) for part in parts]
    axis %= len(shapes[0])
    k = Builder(name, f"{len(shapes)} arrays along axis {axis}, to {y}")
    sources = [
        k.constant(Array.constant(f"{name}_x{n}", part))
        if isinstance(part, np.ndarray)
        else k.input(f"x{n}", part, formats[n].range)
        for n, part in enumerate(parts)
    ]
    out = list(shapes[0])
    out[axis] = sum(shape[axis] for shape in shapes)
    target = k.output("y", out, y.range)
    start = 0
    for n, (source, found) in enumerate(zip(sources, formats, strict=True)):
        if [*source.shape[:axis], *source.shape[axis + 1 :]] != [*out[:axis], *out[axis + 1 :]]:
            raise ValueError(
                f"{name}: {list(source.shape)} does not join {list(shapes[0])} along axis {axis}"
            )
        convert = converted(k, found, y, rounding, f"y{n}")
        with elements(k, source.shape, lanes, prefix=f"i{n}_") as index:
            place = [i + start if a == axis and start else i for a, i in enumerate(index)]
            value = k.let(f"value{n}", source[index])
            k.store(target, tuple(place), convert(value))
        start += source.shape[axis]
    return built(k.finish())


def _strides(shape: Shape) -> list[int]:
    """Elements from one index to the next, for each axis."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _composed(index: Sequence[Operand], strides: Sequence[int], shape: Shape) -> tuple[Operand, ...]:
    """An index in a shape, from counters with strides that are finer."""
    places = []
    for size, stride in zip(shape, _strides(shape), strict=True):
        place: Operand = 0
        for i, own in zip(index, strides, strict=True):
            if stride <= own < stride * size:
                place = _plus(place, i, own // stride)
        places.append(place)
    return tuple(places)


def _plus(total: Operand, counter: Operand, factor: int) -> Operand:
    term = counter * factor if factor > 1 else counter
    return term if isinstance(total, int) and total == 0 else total + term


def _unravelled(k: Builder, flat: Operand, shape: Shape) -> tuple[Operand, ...]:
    """An index in a shape from a place in C order: quotients by the strides, and what remains."""
    places: list[Expr] = []
    rest = k.let("flat", flat)
    for axis, stride in enumerate(_strides(shape)):
        if stride == 1:
            place = k.let(f"place{axis}", rest, Range(0, shape[axis] - 1))
        else:
            quotient = Division(k, f"axis{axis}", rest.range, [stride]).floor(rest)
            place = k.let(f"place{axis}", quotient, Range(0, shape[axis] - 1))
            rest = k.let(f"rest{axis}", rest - place * stride, Range(0, stride - 1))
        places.append(place)
    return tuple(places)
