"""Products of two encrypted values whose elements have to meet in the same slots.

A product of matrices is first a product of each element of the one with each of the other that it meets, and these
stand in a *frame*: its four axes, batch, rows, columns and summed, each padded to a power of two, one after another.
Rows lie innermost. With the summed axis outermost, a sum over it goes round the whole vector and leaves its result
everywhere; with the columns outermost, a sum over the second axis is what a sum over the scores of a row leaves room
for. So scores and their softmax, and the product with V, can all stand in one frame, and none of the sums between
takes a product with a mask.

Operands get copies along the axes that they do not have. The left one, which has the rows, is made in that layout; it
costs its matrix no more. The right one does not have the rows, and is made with another of its axes in their place,
which costs no more either; masks, as many as there are diagonals in a matrix of rows and columns, then move it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from lowerkit.targets.he.packing.diagonals import Diagonals, diagonals
from lowerkit.targets.he.packing.layout import Layout, power_of_two
from lowerkit.targets.he.packing.ways import Emit, Network, Way, plan_for, priced, seconds
from lowerkit.targets.he.program import Product

BATCH, ROWS, COLUMNS, SUMMED = range(4)
Order = tuple[int, int, int, int]
#: Orders of a frame's axes, outermost first.
ALL_AROUND: Order = (SUMMED, COLUMNS, BATCH, ROWS)
AFTER_SCORES: Order = (COLUMNS, SUMMED, BATCH, ROWS)


@dataclass(frozen=True)
class Frame:
    """Where the elements of a product of matrices stand; see the module.

    Attributes:
        axes: lengths of the axes.
        strides: distance in slots between neighbours along each.
    """

    axes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def period(self) -> int:
        """Slots that it takes."""
        return max(s * power_of_two(n) for s, n in zip(self.strides, self.axes, strict=True))

    def bits(self, axis: int) -> int:
        """Those bits of a slot's number that say where it is along an axis."""
        return (power_of_two(self.axes[axis]) - 1) * self.strides[axis]

    def places(self, *moves: tuple[int, int]) -> np.ndarray:
        """int64 [elements]: slots of the elements; `moves` (axis, other) put an axis in the place of another."""
        strides = list(self.strides)
        for axis, other in moves:
            strides[axis], strides[other] = strides[other], 0
        index = np.indices(self.axes).reshape(len(self.axes), -1)
        found: np.ndarray = np.array(strides) @ index
        return found


def frame(step: Product, order: Order) -> Frame:
    """The frame for a product of matrices."""
    strides, stride = [0] * 4, 1
    for axis in reversed(order):
        strides[axis] = stride
        stride *= power_of_two(step.axes[axis])
    return Frame(step.axes, tuple(strides))


def wanted(step: Product, name: str, size: int, slots: int, order: Order) -> Iterator[Layout]:
    """Layouts in which a factor of `size` elements of a product of matrices should be made."""
    if not step.axes or (found := frame(step, order)).period > slots:
        return
    second = order[1]
    for factor, index, missing in zip(*zip(*step.factors, strict=True), (COLUMNS, ROWS), strict=True):
        if factor != name:
            continue
        yield from _layout(found.places(), index, size, found.bits(missing), found.period, slots)
        if missing == ROWS and power_of_two(step.axes[second]) <= power_of_two(step.axes[ROWS]):
            places = found.places((second, ROWS))
            yield from _layout(places, index, size, found.bits(second), found.period, slots)


def _layout(
    places: np.ndarray, index: np.ndarray | None, size: int, inner: int, period: int, slots: int
) -> Iterator[Layout]:
    """Where the factor's elements stand if they shall be in `places` and their copies; nothing where two collide."""
    first = np.full(size, period)
    np.minimum.at(first, np.arange(size) if index is None else index, places & ~inner)
    if first.max() < period and len(np.unique(first)) == size:
        # A period is what lies below the highest of the bits in which there are no copies.
        while inner & period >> 1:
            inner, period = inner & ~(period >> 1), period >> 1
        yield Layout(slots, first, period, inner=inner)


@dataclass(frozen=True)
class _Factor:
    """How a factor comes to where the product stands.

    Attributes:
        move: the matrix that picks its elements, and how that is computed; None where they stand there already.
        zero: bool [slots]: where it is known to be 0.
    """

    move: tuple[sparse.csr_array, Diagonals] | None
    zero: np.ndarray
    seconds: float = 0.0


def product(step: Product, layouts: Mapping[str, Layout], slots: int, level: int) -> Iterator[Way]:
    """Ways of a product: its factors as they are where they meet, or else moved by masks.

    Args:
        level: at which a factor would be moved.
    """
    for layout in _candidates(step, layouts, slots):
        factors = [_factor(layouts[name], index, layout, level) for name, index in step.factors]
        zero = np.logical_or(*(factor.zero for factor in factors))
        result = replace(layout, clean=bool((zero | (layout.held() >= 0)).all()))
        levels: dict[str, int] = {}
        for (name, _), factor in zip(step.factors, factors, strict=True):
            levels[name] = max(levels.get(name, 1), 1 if factor.move is None else 2)
        taken = sum(factor.seconds for factor in factors)
        taken += seconds(slots, level - 1, mul=1, relinearise=1, rescale=1)
        yield Way("product", taken, result, levels, _emitter(step, factors, result))


def _factor(source: Layout, index: np.ndarray | None, layout: Layout, level: int) -> _Factor:
    held, holds = layout.held(), source.held()
    used = held >= 0
    index = np.arange(len(layout.places)) if index is None else index
    if np.array_equal(holds[used], index[held[used]]):
        return _Factor(None, (holds < 0) & source.tidy)
    rows = len(index)
    matrix = sparse.csr_array((np.ones(rows), index, np.arange(rows + 1)), shape=(rows, len(source.places)))
    taken, _, plan = priced([(matrix, source)], plan_for(layout, source), level)
    return _Factor((matrix, plan), ~used & plan.layout(source).clean, taken)


def _emitter(step: Product, factors: Sequence[_Factor], result: Layout) -> Emit:
    def emit(network: Network) -> tuple[int, Layout]:
        operands = []
        for (name, _), factor in zip(step.factors, factors, strict=True):
            x = network.values[name]
            if factor.move is not None:
                matrix, plan = factor.move
                x, _ = diagonals(network.program, [(x, matrix, network.layouts[name])], plan)
            operands.append(x)
        return network.program.mul(*operands), result

    return emit


def _candidates(step: Product, layouts: Mapping[str, Layout], slots: int) -> Iterator[Layout]:
    """Where the product may stand: in a frame, or as the factor that has its elements does."""
    for order in (ALL_AROUND, AFTER_SCORES) if step.axes else ():
        if (found := frame(step, order)).period <= slots:
            yield Layout(slots, found.places(), found.period)
    whole = [layouts[name] for name, index in step.factors if index is None]
    period = max(layouts[name].period for name, _ in step.factors)
    for layout in whole:
        yield Layout(slots, layout.places, period, inner=layout.inner)
        if layout.inner:
            yield Layout(slots, layout.places, period)
    if not whole and not step.axes and (size := int(np.prod(step.shape))) <= slots:
        yield Layout(slots, np.arange(size), power_of_two(size))
