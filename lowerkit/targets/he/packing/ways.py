"""What a way of computing a step is, and the packed network that ways emit into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from lowerkit.targets.he import cost
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.diagonals import Diagonals, best_split, distinct, offsets, rotations
from lowerkit.targets.he.packing.layout import Layout


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

    def input(self, name: str, index: np.ndarray) -> int:
        """The vector of a graph input's elements `index`, int32 [slots]; what is there already is not sent again."""
        for i, (known, gather) in enumerate(self.gathers):
            if known == name and np.array_equal(gather, index):
                return [x for x, op in enumerate(self.program.ops) if op.kind == "input"][i]
        self.gathers.append((name, index))
        return self.program.input()


#: Emits one way of computing a step.
Emit = Callable[[Network], tuple[int, Layout]]


@dataclass(frozen=True)
class Way:
    """One way of computing a step.

    Attributes:
        seconds: estimated.
        layout: of the result.
        levels: value that is read -> levels between it and the result.
    """

    what: str
    seconds: float
    layout: Layout
    levels: Mapping[str, int]
    emit: Emit


def priced(
    matrix: sparse.csr_array, source: Layout, plan: Diagonals, level: int
) -> tuple[float, int, Diagonals]:
    """Estimated seconds, how many diagonals there are, and the plan with the best baby steps."""
    steps = distinct(offsets(matrix, source, plan)[0])
    folds = (source.period // plan.fold).bit_length() - 1
    baby = best_split(steps)
    babies, giants = rotations(steps, baby)
    taken = seconds(source.slots, level, rotate=babies, rescale=giants + 1)
    taken += seconds(source.slots, level - 1, rotate=giants)
    taken += seconds(source.slots, level, mul_plain=len(steps), add=len(steps))
    taken += seconds(source.slots, level - 1, rotate=folds, add=folds)
    return taken, len(steps), replace(plan, baby=baby)


def plan_for(wanted: Layout, source: Layout) -> Diagonals:
    """How diagonals put outputs where `wanted` has them."""
    if wanted.period < source.period:
        return Diagonals(wanted.period, wanted.places, 1, inner=wanted.inner)
    return Diagonals(source.period, wanted.places, wanted.period // source.period, inner=wanted.inner)


def seconds(slots: int, level: int, **counts: int) -> float:
    """Estimated time of operations on ciphertexts of `level` + 1 primes."""
    return sum(n * cost.seconds(kind, level + 1, 2 * slots) for kind, n in counts.items())
