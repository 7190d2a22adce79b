"""The packed program: what happens to vectors of slots, before anything is said of levels and scales.

A value is a vector of `slots` real numbers, of which a ciphertext will hold the encryption. The interpreter
computes in float64 what an encrypted run would in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

#: Kinds of operations.
KINDS = ("input", "add", "sub", "mul", "add_plain", "mul_plain", "rotate")


@dataclass(frozen=True)
class Op:
    """One operation; a value is the index of the operation that computes it.

    Attributes:
        kind: one of KINDS.
        args: values.
        step: of `rotate`: slot t of the result is slot t + step of the operand, cyclically.
        plain: index of the plaintext vector, of `add_plain` and `mul_plain`.
        layer: the graph's node that it works for.
    """

    kind: str
    args: tuple[int, ...] = ()
    step: int = 0
    plain: int = -1
    layer: str = ""

    @property
    def multiplies(self) -> bool:
        """Whether it adds to multiplicative depth."""
        return self.kind in ("mul", "mul_plain")


@dataclass
class Packed:
    """A straight-line program on vectors of slots, and its builder.

    Attributes:
        slots: length of every vector, a power of two.
        plains: float64 [slots] each.
        outputs: values.
    """

    slots: int
    ops: list[Op] = field(default_factory=list)
    plains: list[np.ndarray] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    layer: str = ""
    _known: dict[tuple[object, ...], int] = field(default_factory=dict, repr=False)

    def _add(self, kind: str, args: tuple[int, ...] = (), step: int = 0, plain: int = -1) -> int:
        key = (kind, args, step, plain)
        if kind == "input" or key not in self._known:
            self.ops.append(Op(kind, args, step, plain, self.layer))
            self._known[key] = len(self.ops) - 1
        return self._known[key]

    def _plain(self, vector: np.ndarray) -> int:
        stored = np.ascontiguousarray(vector, np.float64)
        key = ("plain", stored.tobytes())
        if key not in self._known:
            self.plains.append(stored)
            self._known[key] = len(self.plains) - 1
        return self._known[key]

    def input(self) -> int:
        """A vector that the client encrypts; inputs are numbered in order."""
        return self._add("input")

    def rotate(self, x: int, step: int) -> int:
        """Slot t of the result is slot t + step of x, cyclically."""
        op, step = self.ops[x], step % self.slots
        if op.kind == "rotate":
            return self.rotate(op.args[0], op.step + step)
        return self._add("rotate", (x,), step) if step else x

    def add(self, x: int, y: int) -> int:
        """x + y."""
        return self._add("add", (min(x, y), max(x, y)))

    def sub(self, x: int, y: int) -> int:
        """x - y."""
        return self._add("sub", (x, y))

    def mul(self, x: int, y: int) -> int:
        """x * y, both encrypted."""
        return self._add("mul", (min(x, y), max(x, y)))

    def add_plain(self, x: int, vector: np.ndarray) -> int:
        """x plus a plaintext vector."""
        return self._add("add_plain", (x,), plain=self._plain(vector)) if np.any(vector) else x

    def mul_plain(self, x: int, vector: np.ndarray) -> int:
        """x times a plaintext vector."""
        return self._add("mul_plain", (x,), plain=self._plain(vector))

    def total(self, values: Iterable[int]) -> int:
        """The sum of at least one value."""
        first, *rest = values
        for value in rest:
            first = self.add(first, value)
        return first

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Every value, for the vectors of the inputs in order."""
        given = iter(inputs)
        values: list[np.ndarray] = []
        for op in self.ops:
            values.append(next(given) if op.kind == "input" else self._apply(op, values))
        return values

    def _apply(self, op: Op, values: Sequence[np.ndarray]) -> np.ndarray:
        x = values[op.args[0]]
        if op.kind == "rotate":
            return np.roll(x, -op.step)
        y = self.plains[op.plain] if op.plain >= 0 else values[op.args[1]]
        apply = {"mul": np.multiply, "add": np.add, "sub": np.subtract}[op.kind.removesuffix("_plain")]
        found: np.ndarray = apply(x, y)
        return found

    def needed(self) -> list[int]:
        """The values that the outputs depend on, in order."""
        found = set(self.outputs)
        for i in reversed(range(len(self.ops))):
            if i in found:
                found.update(self.ops[i].args)
        return sorted(found)

    def depths(self, unscaled: Set[int] = frozenset()) -> list[int]:
        """Multiplicative depth of every value: products on the longest path to it, but for those in `unscaled`."""
        found: list[int] = []
        for i, op in enumerate(self.ops):
            below = max((found[a] for a in op.args), default=0)
            found.append(below + (op.multiplies and i not in unscaled))
        return found

    def latest(self, unscaled: Set[int] = frozenset()) -> list[int]:
        """The greatest depth at which every value may be had without making an output deeper than it is."""
        depths = self.depths(unscaled)
        found = [max((depths[i] for i in self.outputs), default=0)] * len(self.ops)
        for i in reversed(self.needed()):
            below = found[i] - (self.ops[i].multiplies and i not in unscaled)
            for operand in self.ops[i].args:
                found[operand] = min(found[operand], below)
        return found

    def __str__(self) -> str:
        lines = [f"slots {self.slots}"]
        lines += [f"%{i} = {_line(op)}" for i, op in enumerate(self.ops)]
        return "\n".join([*lines, f"return {', '.join(f'%{i}' for i in self.outputs)}"])


def _line(op: Op) -> str:
    operands = [f"%{a}" for a in op.args]
    if op.kind == "rotate":
        operands.append(str(op.step))
    if op.plain >= 0:
        operands.append(f"plain{op.plain}")
    return f"{op.kind} {' '.join(operands)}".rstrip() + (f"  # {op.layer}" if op.layer else "")


def magnitudes(program: Packed, samples: Iterable[Sequence[np.ndarray]]) -> list[float]:
    """The largest absolute number in any slot of every value, over samples of the inputs' vectors."""
    found = np.zeros(len(program.ops))
    for sample in samples:
        found = np.maximum(found, [float(np.abs(v).max()) for v in program.run(sample)])
    return found.tolist()
