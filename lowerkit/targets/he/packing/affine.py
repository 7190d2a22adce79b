"""Ways of affine maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import sparse

from lowerkit.targets.he.packing import arrange, products
from lowerkit.targets.he.packing.diagonals import Diagonals, diagonals
from lowerkit.targets.he.packing.layout import Layout, power_of_two
from lowerkit.targets.he.packing.presum import Presum, equal_columns, presum
from lowerkit.targets.he.packing.tiles import group_counts, summed, tiles
from lowerkit.targets.he.packing.ways import Emit, Network, Way, plan_for, priced, seconds
from lowerkit.targets.he.program import Affine, Input, Polynomial, Product, Program
from lowerkit.targets.he.simplify import common_factor

#: How affine maps of a client's input may be computed.
PACKINGS = ("auto", "tiles", "diagonals")


def ways(
    program: Program, step: Affine, layouts: Mapping[str, Layout], slots: int, level: int, packing: str
) -> Iterator[Way]:
    """Ways of an affine step whose operands stand in `layouts`.

    Args:
        level: of its operands.
        packing: one of PACKINGS.
    """
    found = list(_ways(program, step, layouts, slots, level, packing))
    tidy = [way for way in found if way.layout.tidy] if _for_polynomials(program, step.name) else []
    return iter(tidy or found)


def _for_polynomials(program: Program, name: str) -> bool:
    """Whether a polynomial reads the value, or a sum of its products: only tidy layouts then save it a mask."""
    for step in program.steps:
        if name not in step.reads or (isinstance(step, Affine) and common_factor(step) != 1):
            continue
        if isinstance(step, Polynomial) or _for_polynomials(program, step.name):
            return True
    return False


def _ways(
    program: Program, step: Affine, layouts: Mapping[str, Layout], slots: int, level: int, packing: str
) -> Iterator[Way]:
    wanted = _wanted(program, step, slots)
    name, matrix = next(iter(step.terms.items()))
    sums: list[Way] = []
    if len(step.terms) == 1:
        sources = {s.name: s for s in program.inputs()}
        if name in sources and packing != "diagonals":
            yield from _tiled(program, step, sources[name], matrix, slots, level, wanted)
        if name in layouts:
            sums = list(_in_place(step, name, matrix, layouts[name], level))
    if all(value in layouts for value in step.terms):
        yield from sums or _diagonal(step, layouts, level, wanted)


def _wanted(program: Program, step: Affine, slots: int) -> list[Layout]:
    """Where a product of matrices wants the step's outputs to be; nothing where none reads them."""
    found: list[Layout] = []
    for reader in program.steps:
        if isinstance(reader, Product) and step.name in reader.reads:
            free = isinstance(program[reader.left], Affine)  # and not scores, whose frame is there already
            order = products.ALL_AROUND if free else products.AFTER_SCORES
            found += products.wanted(reader, step.name, len(step.bias), slots, order)
    return list({x.key(): x for x in found}.values())


def _in_place(step: Affine, name: str, matrix: sparse.csr_array, source: Layout, level: int) -> Iterator[Way]:
    """A plain sum of elements, or none but a move: rotations alone, and the sums stay where they come about."""
    if not bool((matrix.data == 1).all()):
        return
    before = Presum((), matrix, source) if equal_columns(matrix) is None else _presum(matrix, source)
    if before is None or not bool((np.diff(before.matrix.indptr) == 1).all()):
        return
    element = before.matrix.indices
    if len(np.unique(element)) < len(element):
        return
    summed = before.layout
    result = replace(
        summed, places=summed.places[element], clean=summed.clean and len(element) == len(summed.places)
    )

    def emit(network: Network) -> tuple[int, Layout]:
        return before.emit(network.program, network.values[name]), result

    count = len(before.steps)
    taken = seconds(source.slots, level, rotate=count, add=count)
    yield Way(f"{count} rotations", taken, result, {name: 0}, _with_bias(step, emit))


def _with_bias(step: Affine, made: Callable[[Network], tuple[int, Layout]]) -> Emit:
    def emit(network: Network) -> tuple[int, Layout]:
        x, layout = made(network)
        return network.program.add_plain(x, layout.spread(step.bias)), layout

    return emit


def _tiled(
    program: Program,
    step: Affine,
    source: Input,
    matrix: sparse.csr_array,
    slots: int,
    level: int,
    wanted: Sequence[Layout],
) -> Iterator[Way]:
    widest = int(np.diff(matrix.indptr).max(initial=1))
    for layout in wanted or _tile_layouts(program, step, matrix, slots):
        groups = layout.copies
        folds = groups.bit_length() - 1
        taken = seconds(slots, level, mul_plain=-(-widest // groups), add=-(-widest // groups))
        taken += seconds(slots, level - 1, rotate=folds, add=folds)
        emit = _with_bias(step, _tiles_emitter(source, matrix, layout))
        yield Way(f"tiles of {groups} groups", taken, layout, {source.name: 1}, emit)


def _tile_layouts(program: Program, step: Affine, matrix: sparse.csr_array, slots: int) -> Iterator[Layout]:
    """Where tiles may leave outputs that may stand anywhere."""
    for places in arrange.free(step.shape, _summed_later(program, step.name)):
        block = power_of_two(int(places.max()) + 1)
        for groups in group_counts(matrix, block, slots) if block <= slots else ():
            yield Layout(slots, places, slots // groups)


def _tiles_emitter(
    source: Input, matrix: sparse.csr_array, layout: Layout
) -> Callable[[Network], tuple[int, Layout]]:
    def emit(network: Network) -> tuple[int, Layout]:
        gather, weights = tiles(matrix, layout.places, layout.slots, layout.copies, layout.inner)
        inputs = [network.input(*source.sent(row)) for row in gather.index]
        return summed(network.program, inputs, weights, layout.copies), layout

    return emit


def _summed_later(program: Program, name: str) -> np.ndarray | None:
    """Sets of elements that the only affine reader of a value, or of its polynomials, just sums."""
    while True:
        readers = [step for step in program.steps if name in step.reads]
        if len(readers) != 1:
            return None
        if isinstance(readers[0], Affine):
            return equal_columns(readers[0].terms[name])
        if isinstance(readers[0], Product) and any(index is not None for _, index in readers[0].factors):
            return None
        name = readers[0].name


def _diagonal(
    step: Affine, layouts: Mapping[str, Layout], level: int, wanted: Sequence[Layout]
) -> Iterator[Way]:
    """A sum of maps by diagonals, into one layout; where columns are equal, of sums of their elements too."""
    plain = {name: Presum((), matrix, layouts[name]) for name, matrix in step.terms.items()}
    summed = {name: _presum(matrix, layouts[name]) or plain[name] for name, matrix in step.terms.items()}
    for starts in (plain,) if all(not start.steps for start in summed.values()) else (plain, summed):
        starts = _aligned(starts) if len(starts) > 1 else starts
        source = next(iter(starts.values()))
        extra = sum(len(start.steps) for start in starts.values())
        for plan in _plans(step, source.matrix, source.layout, wanted):
            maps = [(start.matrix, start.layout) for start in starts.values()]
            taken, count, plan = priced(maps, plan, level)
            yield Way(
                f"{count} diagonals, folded by {plan.fold}",
                taken + seconds(source.layout.slots, level, rotate=extra, add=extra),
                plan.layout(source.layout),
                dict.fromkeys(starts, 1),
                _with_bias(step, _diagonals_emitter(starts, plan)),
            )


def _aligned(starts: Mapping[str, Presum]) -> dict[str, Presum]:
    """With one period: copies that stand closer together stand that far apart as well."""
    period = max(start.layout.period for start in starts.values())
    return {
        name: replace(start, layout=replace(start.layout, period=period, clean=False, inner=0))
        for name, start in starts.items()
    }


def _presum(matrix: sparse.csr_array, source: Layout) -> Presum | None:
    sets = equal_columns(matrix)
    return None if sets is None else presum(matrix, sets, source)


def _plans(
    step: Affine, matrix: sparse.csr_array, source: Layout, wanted: Sequence[Layout]
) -> Iterator[Diagonals]:
    """Ways to place the outputs: as is wanted; in one copy of the source, over several, or at convolutions' windows."""
    if wanted:
        yield from (plan_for(layout, source) for layout in wanted)
        return
    size = matrix.shape[0]
    for output in arrange.orders(step.shape):
        fold = power_of_two(-(-size // source.copies))
        while fold <= source.period:
            copies = power_of_two(-(-size // fold))
            yield Diagonals(fold, output % fold + output // fold * source.period, copies)
            fold *= 2
    for fold, places in arrange.anchored(matrix, source):
        yield Diagonals(fold, places, power_of_two(int(places.max()) // source.period + 1))


def _diagonals_emitter(
    starts: Mapping[str, Presum], plan: Diagonals
) -> Callable[[Network], tuple[int, Layout]]:
    def emit(network: Network) -> tuple[int, Layout]:
        maps = [
            (start.emit(network.program, network.values[name]), start.matrix, start.layout)
            for name, start in starts.items()
        ]
        return diagonals(network.program, maps, plan)

    return emit
