"""What a way of computing a step is, and the packed network that ways emit into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from lowerkit.targets.he import cost
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.diagonals import Diagonals, best_split, distinct, offsets, rotations
from lowerkit.targets.he.packing.layout import Layout


@dataclass(frozen=True)
class Held:
    """Some elements of a tensor in a packed value.

    Attributes:
        value: of the packed program.
        slots: int64 [n].
        elements: int64 [n]: which element of the flattened tensor each of the slots holds.
    """

    value: int
    slots: np.ndarray
    elements: np.ndarray


@dataclass
class Network:
    """A packed program with what client and server need to know of it.

    Attributes:
        gathers: for each input vector, in order of the program's inputs: graph input, and slot -> element.
        layouts, values: layout and packed value of every step, by its name; while the network is made.
        outputs: names of the graph's outputs.
        tensors: where the values of the tensor program are, each in one part or several. The program's outputs are
            the parts of the graph's outputs, one after another.
    """

    program: Packed
    gathers: list[tuple[str, np.ndarray]] = field(default_factory=list)
    layouts: dict[str, Layout] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    tensors: dict[str, tuple[Held, ...]] = field(default_factory=dict)

    def finished(self, tensors: Mapping[str, tuple[Held, ...]]) -> Network:
        """With these tensors, and without what no output needs."""
        program = self.program
        program.outputs = [part.value for name in self.outputs for part in tensors[name]]
        number = {old: new for new, old in enumerate(program.needed())}
        inputs = [i for i, op in enumerate(program.ops) if op.kind == "input"]
        ops = [replace(program.ops[i], args=tuple(number[a] for a in program.ops[i].args)) for i in number]
        live = {n: parts for n, parts in tensors.items() if all(part.value in number for part in parts)}
        return Network(
            Packed(program.slots, ops, program.plains, [number[i] for i in program.outputs]),
            [gather for gather, i in zip(self.gathers, inputs, strict=True) if i in number],
            self.layouts,
            {name: number[i] for name, i in self.values.items() if i in number},
            self.outputs,
            {n: tuple(replace(part, value=number[part.value]) for part in p) for n, p in live.items()},
        )

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
    maps: Sequence[tuple[sparse.csr_array, Layout]], plan: Diagonals, level: int
) -> tuple[float, int, Diagonals]:
    """Estimated seconds of a sum of maps, how many diagonals there are, and the plan with the best baby steps."""
    each = [distinct(offsets(matrix, source, plan)[0]) for matrix, source in maps]
    steps, source = distinct(np.concatenate(each)), maps[0][1]
    baby, count = best_split(steps, len(maps)), sum(map(len, each))
    babies, giants = sum(rotations(one, baby)[0] for one in each), rotations(steps, baby)[1]
    folds = (source.period // plan.fold).bit_length() - 1
    taken = seconds(source.slots, level, rotate=babies, rescale=giants + 1)
    taken += seconds(source.slots, level - 1, rotate=giants)
    taken += seconds(source.slots, level, mul_plain=count, add=count)
    taken += seconds(source.slots, level - 1, rotate=folds, add=folds)
    return taken, count, replace(plan, baby=baby)


def plan_for(wanted: Layout, source: Layout) -> Diagonals:
    """How diagonals put outputs where `wanted` has them."""
    if wanted.period < source.period:
        return Diagonals(wanted.period, wanted.places, 1, inner=wanted.inner)
    return Diagonals(source.period, wanted.places, wanted.period // source.period, inner=wanted.inner)


def seconds(slots: int, level: int, **counts: int) -> float:
    """Estimated time of operations on ciphertexts of `level` + 1 primes."""
    return sum(n * cost.seconds(kind, level + 1, 2 * slots) for kind, n in counts.items())
