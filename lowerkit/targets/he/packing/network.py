"""Packs a whole tensor program: a beam search over the ways of each affine map, by estimated time.

The ways differ in what they cost and in the layout that they leave to the next one, so that the cheapest next way
alone is not the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.targets.he import polynomial
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing import affine, products
from lowerkit.targets.he.packing.affine import PACKINGS
from lowerkit.targets.he.packing.arrange import orders
from lowerkit.targets.he.packing.layout import Layout, power_of_two
from lowerkit.targets.he.packing.ways import Network, Way
from lowerkit.targets.he.program import Affine, Input, Polynomial, Product, Program, Step

#: Partial packings that the search keeps.
BEAM = 8


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
    last = {name: i for i, step in enumerate(program.steps) for name in step.reads}
    states = [_State(0.0, {}, ())]
    for i, step in enumerate(program.steps):
        if isinstance(step, Input) and not _read_whole(program, step, packing):
            continue
        known: dict[tuple[object, ...], list[Way]] = {}
        grown = []
        for s in states:
            operands = tuple(s.layouts[name].key() for name in step.reads if name in s.layouts)
            if operands not in known:
                known[operands] = list(_ways(program, step, s.layouts, slots, below[step.name], packing))
            grown += [
                _State(s.seconds + way.seconds, {**s.layouts, step.name: way.layout}, (*s.ways, (step, way)))
                for way in known[operands]
            ]
        if not grown:
            raise UnsupportedError(
                f"target 'he': its numbers do not fit into {slots} slots",
                node=f"value '{step.name}'",
                hint="compile for a smaller --shape, or a larger ring with the option ring",
            )
        states = _best(grown, {name for name, reader in last.items() if reader > i} | {step.name})
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


def _best(states: Sequence[_State], alive: set[str]) -> list[_State]:
    """The cheapest, one for every set of layouts of the values that are still read."""
    kept: dict[tuple[object, ...], _State] = {}
    for state in sorted(states, key=lambda s: s.seconds):
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
            for places in orders(step.shape):
                yield _whole(step.name, Layout(slots, places, period))
    elif isinstance(step, Product):
        yield from products.product(step, layouts, slots, below + 2)
    elif isinstance(step, Polynomial):
        layout = layouts[step.value]
        if layout.tidy:  # beyond [-1, 1] a polynomial may be huge
            left = replace(layout, clean=False)
            yield Way(
                "polynomial",
                0.0,
                left,
                lambda n: (polynomial.emit(n.program, n.values[step.value], step), left),
            )
    else:
        yield from affine.ways(program, step, layouts, slots, below + 1, packing)


def _whole(name: str, layout: Layout) -> Way:
    def emit(network: Network) -> tuple[int, Layout]:
        network.gathers.append((name, layout.held().astype(np.int32)))
        return network.program.input(), layout

    return Way("input", 0.0, layout, emit)
