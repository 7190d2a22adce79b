"""Packs a whole tensor program: a beam search over the ways of each affine map, by estimated time.

The ways differ in what they cost and in the layout that they leave to the next one, so that the cheapest next way
alone is not the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.targets.he import cost, polynomial
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing import arrange
from lowerkit.targets.he.packing.diagonals import Diagonals, diagonals, giant_steps, offsets, rotations
from lowerkit.targets.he.packing.layout import Layout, power_of_two
from lowerkit.targets.he.packing.presum import Presum, equal_columns, presum
from lowerkit.targets.he.packing.tiles import group_counts, tiles
from lowerkit.targets.he.program import Affine, Input, Polynomial, Product, Program, Step

#: Partial packings that the search keeps.
BEAM = 6
#: How affine maps of a client's input may be computed.
PACKINGS = ("auto", "tiles", "diagonals")


@dataclass
class Network:
    """A packed program with what client and server need to know of it.

    Attributes:
        gathers: for each input vector, in order of the program's inputs: graph input, and slot -> element.
        layouts: layout of every packed tensor, by value name.
        values: packed value of every tensor, by value name.
        outputs: names of the graph's outputs, in the order of the program's.
    """

    program: Packed
    gathers: list[tuple[str, np.ndarray]] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


#: Emits one way of computing a step.
Emit = Callable[[Network], tuple[int, Layout]]


@dataclass(frozen=True)
class Way:
    """One way of computing a step: what it would cost, where it leaves the result, and how to emit it."""

    what: str
    seconds: float
    layout: Layout
    emit: Emit


@dataclass(frozen=True)
class _State:
    seconds: float
    layouts: dict[str, Layout]
    ways: tuple[tuple[Step, Way], ...]


def pack(program: Program, slots: int, packing: str = "auto") -> Network:
    """The network in vectors of `slots`.

    Raises UnsupportedError for a tensor that does not fit, PlanError for an unknown packing.
    """
    if packing not in PACKINGS:
        raise PlanError(f"option packing must be one of {', '.join(PACKINGS)}, not {packing!r}")
    below = _depth_below(program)
    states = [_State(0.0, {}, ())]
    for step in program.steps:
        if isinstance(step, Input) and not _read_whole(program, step, packing):
            continue
        grown = [
            _State(s.seconds + way.seconds, {**s.layouts, step.name: way.layout}, (*s.ways, (step, way)))
            for s in states
            for way in _ways(program, step, s.layouts, slots, below[step.name], packing)
        ]
        if not grown:
            raise UnsupportedError(
                f"target 'he': its numbers do not fit into {slots} slots",
                node=f"value '{step.name}'",
                hint="compile for a smaller --shape, or a larger ring with the option ring",
            )
        states = _best(grown)
    network = Network(Packed(slots), outputs=program.outputs)
    for step, way in states[0].ways:
        network.program.layer = step.node
        network.values[step.name], network.layouts[step.name] = way.emit(network)
    network.program.outputs = [network.values[name] for name in program.outputs]
    return _live(network)


def _live(network: Network) -> Network:
    """Without what no output needs."""
    program = network.program
    kept = program.needed()
    number = {old: new for new, old in enumerate(kept)}
    inputs = [i for i, op in enumerate(program.ops) if op.kind == "input"]
    ops = [replace(program.ops[i], args=tuple(number[a] for a in program.ops[i].args)) for i in kept]
    return Network(
        Packed(program.slots, ops, program.plains, [number[i] for i in program.outputs]),
        [gather for gather, i in zip(network.gathers, inputs, strict=True) if i in number],
        network.layouts,
        {name: number[i] for name, i in network.values.items() if i in number},
        network.outputs,
    )


def _best(states: Sequence[_State]) -> list[_State]:
    kept: dict[tuple[str, int, bool, bytes], _State] = {}
    for state in sorted(states, key=lambda s: s.seconds):
        name, layout = list(state.layouts.items())[-1]
        kept.setdefault((name, layout.period, layout.clean, layout.places.tobytes()), state)
    return list(kept.values())[:BEAM]


def _depth_below(program: Program) -> dict[str, int]:
    """By value, how many levels the longest way from it to an output takes."""
    found = dict.fromkeys((step.name for step in program.steps), 0)
    for step in reversed(program.steps):
        for name in step.reads:
            found[name] = max(found[name], found[step.name] + depth(step))
    return found


def depth(step: Step) -> int:
    """Levels that a step takes."""
    if isinstance(step, Polynomial):
        return polynomial.depth(step)
    return 0 if isinstance(step, Input) else 1


def _read_whole(program: Program, step: Input, packing: str) -> bool:
    """Whether the input is packed as it is, for at least one reader."""
    readers = [s for s in program.steps if step.name in s.reads]
    tiled = all(isinstance(r, Affine) and len(r.terms) == 1 for r in readers)
    return packing != "tiles" or step.name in program.outputs or not tiled


def _ways(
    program: Program, step: Step, layouts: dict[str, Layout], slots: int, below: int, packing: str
) -> Iterator[Way]:
    if isinstance(step, Input):
        size = int(np.prod(step.shape))
        if (period := power_of_two(size)) <= slots:
            layout = Layout(slots, np.arange(size), period)
            yield Way("input", 0.0, layout, lambda network: _whole(network, step.name, layout))
    elif isinstance(step, Product):
        left, right = layouts[step.left], layouts[step.right]
        if left.period == right.period and np.array_equal(left.places, right.places):
            yield Way(
                "product",
                0.0,
                left,
                lambda n: (n.program.mul(n.values[step.left], n.values[step.right]), left),
            )
    elif isinstance(step, Polynomial):
        layout = layouts[step.value]
        if layout.clean:  # beyond [-1, 1] a polynomial may be huge
            yield Way(
                "polynomial",
                0.0,
                replace(layout, clean=False),
                lambda n: (
                    polynomial.emit(n.program, n.values[step.value], step),
                    replace(layout, clean=False),
                ),
            )
    else:
        yield from _affine(program, step, layouts, slots, below + 1, packing)


def _whole(network: Network, name: str, layout: Layout) -> tuple[int, Layout]:
    index = np.full(layout.slots, -1, np.int32)
    for copy in range(layout.copies):
        index[layout.places + copy * layout.period] = np.arange(layout.places.size)
    network.gathers.append((name, index))
    return network.program.input(), layout


def _affine(
    program: Program, step: Affine, layouts: dict[str, Layout], slots: int, level: int, packing: str
) -> Iterator[Way]:
    if len(step.terms) > 1:
        yield from _several(step, layouts, level)
        return
    ((name, matrix),) = step.terms.items()
    inputs = {s.name for s in program.inputs()}
    if name in inputs and packing != "diagonals":
        yield from _tiled(program, step, name, matrix, slots, level)
    if name in layouts:
        yield from _diagonal(step, name, matrix, layouts[name], level)


def _with_bias(step: Affine, made: Callable[[Network], tuple[int, Layout]]) -> Emit:
    def emit(network: Network) -> tuple[int, Layout]:
        x, layout = made(network)
        return network.program.add_plain(x, layout.spread(step.bias)), layout

    return emit


def _tiled(
    program: Program, step: Affine, name: str, matrix: sparse.csr_array, slots: int, level: int
) -> Iterator[Way]:
    for places in arrange.free(step.shape, _summed_later(program, step.name)):
        block = power_of_two(int(places.max()) + 1)
        if block > slots:
            continue
        widest = int(np.diff(matrix.indptr).max(initial=1))
        for groups in group_counts(matrix, block, slots):
            folds = groups.bit_length() - 1
            taken = _time(slots, level, mul_plain=-(-widest // groups), add=-(-widest // groups))
            taken += _time(slots, level - 1, rotate=folds, add=folds)
            yield Way(
                f"tiles of {groups} groups",
                taken,
                Layout(slots, places, slots // groups),
                _with_bias(step, _tiles_emitter(name, matrix, places, groups)),
            )


def _tiles_emitter(
    name: str, matrix: sparse.csr_array, places: np.ndarray, groups: int
) -> Callable[[Network], tuple[int, Layout]]:
    def emit(network: Network) -> tuple[int, Layout]:
        x, gather, layout = tiles(network.program, matrix, places, groups)
        network.gathers += [(name, row) for row in gather.index]
        return x, layout

    return emit


def _summed_later(program: Program, name: str) -> np.ndarray | None:
    """Sets of elements that the only affine reader of a value, or of its polynomials, just sums."""
    while True:
        readers = [step for step in program.steps if name in step.reads]
        if len(readers) != 1:
            return None
        if isinstance(readers[0], Affine):
            return equal_columns(readers[0].terms[name])
        name = readers[0].name


def _diagonal(step: Affine, name: str, matrix: sparse.csr_array, source: Layout, level: int) -> Iterator[Way]:
    starts: list[tuple[Presum | None, sparse.csr_array, Layout]] = [(None, matrix, source)]
    sets = equal_columns(matrix)
    if sets is not None and (before := presum(matrix, sets, source)) is not None:
        starts.append((before, before.matrix, before.layout))
    for before, left, layout in starts:
        extra = len(before.steps) if before is not None else 0
        for plan in _plans(step, left, layout):
            taken, count, plan = _priced(left, layout, plan, level)
            yield Way(
                f"{count} diagonals, folded by {plan.fold}",
                taken + _time(layout.slots, level, rotate=extra, add=extra),
                plan.layout(layout),
                _with_bias(step, _diagonals_emitter(name, before, left, layout, plan)),
            )


def _several(step: Affine, layouts: dict[str, Layout], level: int) -> Iterator[Way]:
    """A sum of several values' maps, each by diagonals, into one layout."""
    period = max(layouts[name].period for name in step.terms)
    # Copies that stand closer together stand this far apart as well.
    sources = {name: replace(layouts[name], period=period, clean=False) for name in step.terms}
    first, matrix = next(iter(step.terms.items()))
    for plan in _plans(step, matrix, sources[first]):
        priced = {name: _priced(m, sources[name], plan, level) for name, m in step.terms.items()}
        emitters = [
            _diagonals_emitter(name, None, step.terms[name], sources[name], priced[name][2])
            for name in priced
        ]
        yield Way(
            f"{len(priced)} maps by diagonals, folded by {plan.fold}",
            sum(taken for taken, _, _ in priced.values()),
            plan.layout(sources[first]),
            _with_bias(step, _sum_emitter(emitters)),
        )


def _sum_emitter(emitters: Sequence[Callable[[Network], tuple[int, Layout]]]) -> Emit:
    def emit(network: Network) -> tuple[int, Layout]:
        made = [one(network) for one in emitters]
        return network.program.total(x for x, _ in made), made[0][1]

    return emit


def _priced(
    matrix: sparse.csr_array, source: Layout, plan: Diagonals, level: int
) -> tuple[float, int, Diagonals]:
    """Estimated seconds, how many diagonals there are, and the plan with the best giant step."""
    steps = np.unique(offsets(matrix, source, plan))
    folds = (source.period // plan.fold).bit_length() - 1
    taken, giant = min(_stepping(source.slots, level, steps, giant) for giant in giant_steps(steps))
    taken += _time(source.slots, level, mul_plain=len(steps), add=len(steps))
    taken += _time(source.slots, level - 1, rotate=folds, add=folds)
    return taken, len(steps), replace(plan, giant=giant)


def _stepping(slots: int, level: int, steps: np.ndarray, giant: int) -> tuple[float, int]:
    """Estimated seconds of the rotations by baby steps and giant steps, and the giant step."""
    babies, giants = rotations(steps, giant)
    taken = _time(slots, level, rotate=babies, rescale=giants + 1) + _time(slots, level - 1, rotate=giants)
    return taken, giant


def _plans(step: Affine, matrix: sparse.csr_array, source: Layout) -> Iterator[Diagonals]:
    """Ways to place the outputs: in one copy of the source, over several, or at convolutions' windows."""
    size = matrix.shape[0]
    output = np.arange(size)
    fold = power_of_two(-(-size // source.copies))
    while fold <= source.period:
        copies = power_of_two(-(-size // fold))
        yield Diagonals(fold, output % fold + output // fold * source.period, copies)
        fold *= 2
    stride = source.period
    while stride > 1:
        places = arrange.anchored(matrix, source, stride)
        if places is not None:
            yield Diagonals(source.period, places, power_of_two(int(places.max()) // source.period + 1))
        stride //= 2


def _diagonals_emitter(
    name: str, before: Presum | None, matrix: sparse.csr_array, source: Layout, plan: Diagonals
) -> Callable[[Network], tuple[int, Layout]]:
    def emit(network: Network) -> tuple[int, Layout]:
        x = network.values[name]
        if before is not None:
            x = before.emit(network.program, x)
        return diagonals(network.program, x, matrix, source, plan)

    return emit


def _time(slots: int, level: int, **counts: int) -> float:
    """Estimated seconds for operations on ciphertexts of `level` + 1 primes."""
    return sum(n * cost.seconds(kind, level + 1, 2 * slots) for kind, n in counts.items())
