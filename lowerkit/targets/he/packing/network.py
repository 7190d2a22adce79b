"""Packs a whole tensor program: a beam search over the ways of each affine map, by estimated time.

The ways differ in what they cost and in the layout that they leave to the next one, so that the cheapest next way
alone is not the best.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.targets.he import polynomial
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing import affine, batch, products
from lowerkit.targets.he.packing.affine import PACKINGS
from lowerkit.targets.he.packing.arrange import orders
from lowerkit.targets.he.packing.layout import Layout, power_of_two
from lowerkit.targets.he.packing.ways import Held, Network, Way, seconds
from lowerkit.targets.he.program import Affine, Input, Polynomial, Product, Program, Step
from lowerkit.targets.he.simplify import common_factor
from lowerkit.targets.he.split import sent_as_read, split

#: Partial packings that the search keeps.
BEAM = 12


#: Rotations, half way down, that a level more on the longest path counts for: it makes all that is above it slower.
PRICE_OF_LEVEL = 12


@dataclass(frozen=True)
class _State:
    """Ways of the first steps, with the layouts that they leave and the depth of every value."""

    seconds: float
    layouts: dict[str, Layout]
    depths: dict[str, int]
    ways: tuple[tuple[Step, Way], ...]

    def with_way(self, step: Step, way: Way) -> _State:
        deepest = max((self.depths.get(name, 0) + n for name, n in way.levels.items()), default=0)
        return _State(
            self.seconds + way.seconds,
            {**self.layouts, step.name: way.layout},
            {**self.depths, step.name: deepest},
            (*self.ways, (step, way)),
        )


#: The last networks that were packed: planning, emitting and probing all ask for the same one.
_RECENT: OrderedDict[tuple[str, int, str, int], Network] = OrderedDict()


def pack(program: Program, slots: int, packing: str = "auto", parts: int = 0) -> Network:
    """The network in vectors of `slots`.

    Args:
        parts: vectors that a tensor may take at most; 0 is any number.

    Raises UnsupportedError for a tensor that does not fit, PlanError for an unknown packing.
    """
    if packing not in PACKINGS:
        raise PlanError(f"option packing must be one of {', '.join(PACKINGS)}, not {packing!r}")
    key = (program.digest(), slots, packing, parts)
    if key not in _RECENT:
        _RECENT[key] = _of_samples(program, slots, packing, parts)
    _RECENT.move_to_end(key)
    if len(_RECENT) > 2:
        _RECENT.popitem(last=False)
    return _RECENT[key]


def least_depth(program: Program) -> int:
    """Levels that any packing of the program takes."""
    return max(_depth_below(program).values())


def _of_samples(program: Program, slots: int, packing: str, most: int) -> Network:
    """Independent samples beside each other, as many in a ciphertext as fit; tensors in several where one does not."""
    one, count = batch.one_of(program)
    lanes = [power_of_two(count) >> i for i in range(power_of_two(count).bit_length())]
    for beside in lanes:
        if most and -(-count // beside) > most:
            continue
        try:
            return _beside(_packed(one, slots // beside, packing), one, count, beside)
        except UnsupportedError:
            if most == 1 and beside == lanes[-1]:
                raise
    divided = split(one, slots, tiled=packing != "diagonals")
    largest, parts = max(((n, len(p)) for n, p in divided.parts.items()), key=lambda x: x[1], default=("", 1))
    if most and parts * count > most:
        raise UnsupportedError(
            f"target 'he': in vectors of {slots} slots it takes {parts * count}, and the option parts allows {most}",
            node=f"value '{largest}'",
            hint="compile for a smaller --shape, a larger ring with the option ring, or more parts",
        )
    return _beside(_packed(divided, slots, packing), one, count, 1)


def _beside(network: Network, program: Program, count: int, lanes: int) -> Network:
    if count == 1:
        return network
    sizes = {step.name: int(np.prod(step.shape)) for step in program.inputs()}
    return batch.interleaved(network, sizes, count, lanes)


def _packed(program: Program, slots: int, packing: str) -> Network:
    below = _depth_below(program)
    last = {name: i for i, step in enumerate(program.steps) for name in step.reads}
    states = [_State(0.0, {}, {}, ())]
    for i, step in enumerate(program.steps):
        if isinstance(step, Input) and not _read_whole(program, step, slots, packing):
            continue
        known: dict[tuple[object, ...], list[Way]] = {}
        grown = []
        for s in states:
            operands = tuple(s.layouts[name].key() for name in step.reads if name in s.layouts)
            if operands not in known:
                known[operands] = list(_ways(program, step, s.layouts, slots, below[step.name], packing))
            grown += [s.with_way(step, way) for way in known[operands]]
        if not grown:
            raise UnsupportedError(
                f"target 'he': its numbers do not fit into {slots} slots",
                node=f"value '{step.name}'",
                hint="compile for a smaller --shape, or a larger ring with the option ring",
            )
        alive = {name for name, reader in last.items() if reader > i} | {step.name}
        states = _best(grown, {name: below[name] for name in alive}, slots)
    network = Network(Packed(slots), outputs=program.outputs)
    for step, way in states[0].ways:
        network.program.layer = step.node
        network.values[step.name], network.layouts[step.name] = way.emit(network)
    places = {name: layout.places for name, layout in network.layouts.items()}
    tensors: dict[str, tuple[Held, ...]] = {
        n: (Held(value, places[n], np.arange(len(places[n]))),) for n, value in network.values.items()
    }
    for name, parts in program.parts.items():
        if all(part in places for part, _ in parts):
            tensors[name] = tuple(Held(network.values[part], places[part], e) for part, e in parts)
    return network.finished(tensors)


def _best(states: Sequence[_State], alive: Mapping[str, int], slots: int) -> list[_State]:
    """The cheapest, one for every set of layouts of the values that are still read.

    Args:
        alive: these values, and how many levels the longest way from each to an output takes at least.
    """

    def price(state: _State) -> float:
        depth = max(state.depths.get(name, 0) + rest for name, rest in alive.items())
        return state.seconds + depth * seconds(slots, depth // 2, rotate=PRICE_OF_LEVEL)

    kept: dict[tuple[object, ...], _State] = {}
    for state in sorted(states, key=price):
        kept.setdefault(tuple((n, x.key()) for n, x in state.layouts.items() if n in alive), state)
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
    sums = isinstance(step, Affine) and common_factor(step) == 1
    return 0 if isinstance(step, Input) or sums else 1


def _read_whole(program: Program, step: Input, slots: int, packing: str) -> bool:
    """Whether the input is packed as it is: if it fits, or has to."""
    tiled = packing != "diagonals" and sent_as_read(program, step)
    return not tiled or (packing != "tiles" and int(np.prod(step.shape)) <= slots)


def _ways(
    program: Program, step: Step, layouts: dict[str, Layout], slots: int, below: int, packing: str
) -> Iterator[Way]:
    if isinstance(step, Input):
        size = int(np.prod(step.shape))
        if (period := power_of_two(size)) <= slots:
            for places in orders(step.shape):
                yield _whole(step, Layout(slots, places, period))
    elif isinstance(step, Product):
        yield from products.product(step, layouts, slots, below + 2)
    elif isinstance(step, Polynomial):
        yield _polynomial(step, layouts[step.value], below + depth(step))
    else:
        yield from affine.ways(program, step, layouts, slots, below + 1, packing)


def _polynomial(step: Polynomial, layout: Layout, level: int) -> Way:
    """Beyond [-1, 1] a polynomial may be huge, so that a mask takes away what is not the tensor's, at one level."""
    left = replace(layout, clean=False)

    def emit(network: Network) -> tuple[int, Layout]:
        x = network.values[step.value]
        if not layout.tidy:
            x = network.program.mul_plain(x, (layout.held() >= 0).astype(np.float64))
        return polynomial.emit(network.program, x, step), left

    taken = 0.0 if layout.tidy else seconds(layout.slots, level, mul_plain=1, rescale=1)
    return Way("polynomial", taken, left, {step.value: depth(step) + (not layout.tidy)}, emit)


def _whole(step: Input, layout: Layout) -> Way:
    def emit(network: Network) -> tuple[int, Layout]:
        return network.input(*step.sent(layout.held().astype(np.int32))), layout

    return Way("input", 0.0, layout, {}, emit)
