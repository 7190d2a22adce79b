"""The levelled program: the packed program with levels, exact scales and what keeps them in order.

A ciphertext at level l has the first l + 1 primes and stands for its slots times a scale. Every level has one scale,
`Chain.scales`, that all values at rest there have exactly:

- a product with a plaintext is rescaled by the level's prime; the plaintext is encoded at just the scale that makes
  the result's exact, scales[l - 1] q[l] / scales[l];
- a product of ciphertexts has no such freedom, so that the chain has scales[l - 1] = scales[l]^2 / q[l] wherever one
  is rescaled;
- products of ciphertexts that share a long prime with the plaintext product after them keep the square of the scale
  until then: see `pairing`;
- a value that is needed further down is multiplied by 1, encoded in the same way, and rescaled.

Rotations, which cost most, and more than proportionally to the primes, wait for the last level that all their readers
can do with.

So sums never mix scales, and no "close enough" is left. Rescaling and relinearisation are lazy: products are summed
first. At level 0 a last product with a plaintext may stay as it is, at the scale that is left of the first prime.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowerkit.errors import UnsupportedError
from lowerkit.targets.he import rotations
from lowerkit.targets.he.packed import Packed

#: The least scale of a plaintext factor with which its numbers mean anything.
LEAST_FACTOR = 2.0**16


@dataclass(frozen=True)
class Refresh:
    """Bootstrapping: a ciphertext on level 1 becomes one on `Chain.top`.

    Attributes:
        slots: how many numbers it keeps; the result has them in all slots, periodically.
        budget: levels of its two linear transforms.
        depth: levels that it takes, of the highest.
        correction: bits by which a message is below the first prime while it reduces modulo that.
        sparse: whether the modulus is raised under an ephemeral sparse secret, or under the uniform one.
    """

    slots: int
    budget: tuple[int, int]
    depth: int
    correction: int
    sparse: bool


@dataclass(frozen=True)
class Chain:
    """Primes and scales of the levels.

    Attributes:
        degree: of the ring; ciphertexts have half as many slots.
        primes: of the levels, the first to stay last.
        specials: primes for key switching.
        scales: of values at rest, by level.
        group: primes in a digit of key switching, which decomposes a ciphertext by that many.
        refresh: bootstrapping, if there is any.
        floors: whether key switching rounds downwards, as OpenFHE's does, and not to the nearest.
        last: scale of plaintexts in products at level 0, which are not rescaled; 1.0 where there are none.
    """

    degree: int
    primes: tuple[int, ...]
    specials: tuple[int, ...]
    scales: tuple[float, ...]
    group: int = 1
    refresh: Refresh | None = None
    floors: bool = False
    last: float = 1.0

    @property
    def digits(self) -> int:
        """Into how many parts key switching decomposes a ciphertext of all levels."""
        return math.ceil(len(self.primes) / self.group)

    @property
    def top(self) -> int:
        """The highest level on which a circuit computes: bootstrapping takes those above it."""
        return len(self.primes) - 1 - (self.refresh.depth if self.refresh else 0)

    @property
    def slots(self) -> int:
        """Numbers in a ciphertext."""
        return self.degree // 2

    def plain_scale(self, level: int, scale: float) -> float:
        """Scale of a plaintext factor for a value of that level and scale: after rescaling the product is at rest."""
        return self.scales[level - 1] * self.primes[level] / scale if level else self.last


@dataclass(frozen=True)
class Refreshed:
    """Values that are on the highest level from some operation on.

    Attributes:
        level: to which they are brought where they are read.
        bootstrapped: packed value -> float64 [slots], by which it is multiplied before, and doublings afterwards.
        kept: values that were bootstrapped earlier.
    """

    level: int
    bootstrapped: Mapping[int, tuple[np.ndarray, int]]
    kept: frozenset[int]


@dataclass(frozen=True)
class LevelledOp:
    """One operation on ciphertexts.

    Attributes:
        kind: as of packed operations, and `relinearise`, `rescale` and `mod_switch` (one prime less each), and
            `bootstrap`: slots become the mean of those that are a multiple of `Refresh.slots` apart.
        args, step: as of packed operations.
        plain: index of the plaintext vector; -1 with `mul_plain` stands for the number 1.
        plain_scale: at which it is encoded.
        level, scale: of the result.
        layer: the graph's node that it works for.
    """

    kind: str
    args: tuple[int, ...]
    level: int
    scale: float
    step: int = 0
    plain: int = -1
    plain_scale: float = 1.0
    layer: str = ""


@dataclass
class Levelled:
    """A program on ciphertexts.

    Attributes:
        chain: primes and scales.
        ops: a value is the index of the operation that computes it.
        plains: float64 [slots] each.
        outputs: values.
        origin: packed value -> the first value that stands for it.
    """

    chain: Chain
    plains: list[np.ndarray]
    ops: list[LevelledOp] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    origin: dict[int, int] = field(default_factory=dict)

    def steps(self) -> list[int]:
        """The rotations that need a key."""
        return sorted({op.step for op in self.ops if op.kind == "rotate"})

    def __str__(self) -> str:
        lines = []
        for i, op in enumerate(self.ops):
            extra = [str(op.step)] if op.kind == "rotate" else []
            if op.kind in ("mul_plain", "add_plain"):
                extra = [f"plain{op.plain}" if op.plain >= 0 else "1", f"at 2^{np.log2(op.plain_scale):.2f}"]
            operands = " ".join([*(f"%{a}" for a in op.args), *extra])
            what = f"%{i} = {op.kind} {operands}".rstrip()
            lines.append(f"{what}  # level {op.level}, scale 2^{np.log2(op.scale):.2f}, {op.layer}")
        return "\n".join([*lines, f"return {', '.join(f'%{i}' for i in self.outputs)}"])


def _parts(kind: str, operands: Sequence[int]) -> int:
    """How many polynomials a ciphertext has, for its operands'."""
    if kind in ("mul", "relinearise"):
        return 3 if kind == "mul" else 2
    return max(operands, default=2)


class _Lowering:
    """Emits levelled operations, remembering what it made of each packed value."""

    def __init__(
        self,
        packed: Packed,
        chain: Chain,
        entry: int,
        refreshed: Mapping[int, Refreshed],
        most_keys: int,
        unscaled: Set[int],
    ) -> None:
        self.packed, self.chain, self.entry, self.refreshed = packed, chain, entry, refreshed
        self.unscaled = unscaled
        uses = Counter(op.step for op in packed.ops if op.kind == "rotate")
        #: Step -> those that have keys, whose sum it is.
        self.routes = rotations.routes(uses, chain.slots, most_keys) if most_keys else {}
        self.out = Levelled(chain, list(packed.plains))
        self.layer = ""
        self.size: list[int] = []
        #: Whether a value is at rest: at its level's scale, or at the square that it keeps.
        self.rests: list[bool] = []
        self._rest: dict[int, int] = {}
        self._turned: dict[tuple[int, int], int] = {}
        self._lowered: dict[tuple[int, int], int] = {}

    def emit(self, kind: str, args: tuple[int, ...], level: int, scale: float, **more: Any) -> int:
        self.out.ops.append(LevelledOp(kind, args, level, scale, layer=self.layer, **more))
        self.size.append(_parts(kind, [self.size[a] for a in args]))
        self.rests.append(scale == self.chain.scales[level])
        return len(self.out.ops) - 1

    def rest(self, x: int) -> int:
        """x with two parts, at its level's scale."""
        if x not in self._rest:
            y, op, reader = x, self.out.ops[x], self.layer
            self.layer = op.layer
            if self.size[y] == 3:
                y = self.emit("relinearise", (y,), op.level, op.scale)
                self.rests[y] = self.rests[x]
            if not self.rests[y] and op.level > 0:
                y = self.emit("rescale", (y,), op.level - 1, self.chain.scales[op.level - 1])
            self._rest[x], self.layer = y, reader
        return self._rest[x]

    def down(self, x: int, level: int) -> int:
        """x at rest on `level`, which is not above its own."""
        x = self.rest(x)
        op = self.out.ops[x]
        if op.level == level:
            return x
        if op.scale != self.chain.scales[op.level]:
            raise _out_of_step()
        if (x, level) not in self._lowered:
            y = x
            while self.out.ops[y].level > level + 1:
                y = self.emit("mod_switch", (y,), self.out.ops[y].level - 1, op.scale)
            above = level + 1
            factor = self.chain.plain_scale(above, op.scale)
            y = self.emit("mul_plain", (y,), above, op.scale * factor, plain_scale=factor)
            self._lowered[x, level] = self.rest(y)
        return self._lowered[x, level]

    def together(self, x: int, y: int) -> tuple[int, int]:
        """Both on the lower one's level, as they are where their scales agree already."""
        a, b = self.out.ops[x], self.out.ops[y]
        if (a.level, a.scale) == (b.level, b.scale):
            return x, y
        return self.resting(x, y)

    def resting(self, x: int, y: int) -> tuple[int, int]:
        """Both at rest, on the lower one's level."""
        x, y = self.rest(x), self.rest(y)
        level = min(self.out.ops[x].level, self.out.ops[y].level)
        return self.down(x, level), self.down(y, level)

    def run(self) -> Levelled:
        values: list[int] = []
        start, highest = 0, frozenset[int]()
        latest = [] if self.refreshed else self.packed.latest(self.unscaled)
        for index, op in enumerate(self.packed.ops):
            self.layer = op.layer
            args = [self.down(values[a], start) if a in highest else values[a] for a in op.args]
            if op.kind == "input":
                made = self.emit("input", (), self.entry, self.chain.scales[self.entry])
            elif op.kind in ("add", "sub"):
                x, y = self.together(*args)
                made = self.emit(op.kind, (x, y), self.out.ops[x].level, self.out.ops[x].scale)
            elif op.kind == "mul":
                x, y = self.resting(*args)
                level = self.out.ops[x].level
                made = self.emit("mul", (x, y), level, self.chain.scales[level] ** 2)
            elif op.kind == "rotate":
                x = self.rest(args[0])
                if not self.refreshed and index not in self.unscaled:  # fewer primes, less time
                    x = self.down(x, min(self.out.ops[x].level, self.entry - latest[index]))
                made = self.rotated(x, op.step)
            else:
                made = self._with_plain(op.kind, self.rest(args[0]), op.plain)
            self.rests[made] |= index in self.unscaled
            values.append(made)
            self.out.origin[index] = made
            if each := self.refreshed.get(index):
                for value, (mask, doublings) in each.bootstrapped.items():
                    values[value] = self.refresh(values[value], mask, doublings)
                start, highest = each.level, each.kept.union(each.bootstrapped)
        self.out.outputs = [self.rest(values[i]) for i in self.packed.outputs]
        return self.out

    def rotated(self, x: int, step: int) -> int:
        """x rotated, in as many steps as there are keys for."""
        op = self.out.ops[x]
        for part in self.routes.get(step, (step,)):
            if (x, part) not in self._turned:
                self._turned[x, part] = self.emit("rotate", (x,), op.level, op.scale, step=part)
            x = self._turned[x, part]
        return x

    def refresh(self, x: int, mask: np.ndarray, doublings: int) -> int:
        """x, masked and bootstrapped, at rest on the highest level."""
        x, chain = self.rest(x), self.chain
        self.layer = self.out.ops[x].layer
        while self.out.ops[x].level > 2:
            x = self.emit("mod_switch", (x,), self.out.ops[x].level - 1, self.out.ops[x].scale)
        scale, level = self.out.ops[x].scale, self.out.ops[x].level
        nominal = chain.scales[chain.top]
        factor = nominal * chain.primes[level] / scale
        self.out.plains.append(mask)
        plain = len(self.out.plains) - 1
        x = self.emit("mul_plain", (x,), level, scale * factor, plain=plain, plain_scale=factor)
        x = self.emit("rescale", (x,), level - 1, nominal)
        x = self.emit("bootstrap", (x,), chain.top, nominal)
        for _ in range(doublings):
            x = self.emit("add", (x, x), chain.top, nominal)
        return x

    def _with_plain(self, kind: str, x: int, plain: int) -> int:
        op = self.out.ops[x]
        factor = self.chain.plain_scale(op.level, op.scale) if kind == "mul_plain" else op.scale
        if kind == "mul_plain" and factor < LEAST_FACTOR and op.level:
            raise _out_of_step()
        scale = op.scale * factor if kind == "mul_plain" else op.scale
        return self.emit(kind, (x,), op.level, scale, plain=plain, plain_scale=factor)


def _out_of_step() -> UnsupportedError:
    return UnsupportedError(
        "target 'he': a product that keeps the square of its scale is not on the level of the prime that divides it",
        hint="use the option pairs=0",
    )


def lower(
    packed: Packed,
    chain: Chain,
    entry: int | None = None,
    refreshed: Mapping[int, Refreshed] | None = None,
    most_keys: int = 0,
    unscaled: Set[int] = frozenset(),
) -> Levelled:
    """The levelled program. The chain must be as deep as the program: see `parameters.plan`.

    Args:
        entry: level of the inputs; the highest if not given.
        refreshed: operation -> what is bootstrapped after it.
        most_keys: how many rotations may have keys; 0 is any number.
        unscaled: packed values that keep the square of the scale, as in the chain.
    """
    entry = len(chain.primes) - 1 if entry is None else entry
    return _Lowering(packed, chain, entry, refreshed or {}, most_keys, unscaled).run()


def check(program: Levelled) -> None:
    """Raises ValueError for the first operation that breaks a rule of CKKS: levels, scales, parts of ciphertexts."""
    chain, sizes = program.chain, list[int]()
    for i, op in enumerate(program.ops):
        operands = [program.ops[a] for a in op.args]
        parts = [sizes[a] for a in op.args]
        wrong = _broken(op, operands, max(parts, default=2), chain)
        if wrong:
            raise ValueError(f"operation %{i} ({op.kind}): {wrong}")
        sizes.append(_parts(op.kind, parts))
    for i in program.outputs:
        if sizes[i] != 2:
            raise ValueError(f"output %{i} is not relinearised")


def _broken(op: LevelledOp, operands: Sequence[LevelledOp], size: int, chain: Chain) -> str | None:
    if not 0 <= op.level < len(chain.primes):
        return f"there is no level {op.level}"
    if op.kind == "input":
        return None
    x = operands[0]
    if op.kind == "bootstrap":
        return _refused(op, x, size, chain)
    drops = op.kind in ("rescale", "mod_switch")
    if any(o.level != op.level + drops for o in operands):
        return f"its operands are on levels {[o.level for o in operands]}"
    if op.kind in ("rotate", "mul", "mul_plain", "rescale", "mod_switch") and size != 2:
        return "an operand is not relinearised"
    if op.kind in ("add", "sub") and len({o.scale for o in operands}) != 1:
        return f"its operands have scales {[o.scale for o in operands]}"
    expected = {
        "mul": float(np.prod([o.scale for o in operands])),
        "mul_plain": x.scale * op.plain_scale,
        "rescale": x.scale / chain.primes[min(op.level + 1, len(chain.primes) - 1)],
    }.get(op.kind, x.scale)
    if not np.isclose(op.scale, expected, rtol=1e-12, atol=0):
        return f"its scale is {op.scale!r}, and not {expected!r}"
    if op.kind == "add_plain" and op.plain_scale != x.scale:
        return f"its plaintext has scale {op.plain_scale!r}, and the operand {x.scale!r}"
    return None


def _refused(op: LevelledOp, x: LevelledOp, size: int, chain: Chain) -> str | None:
    """What is wrong with a bootstrap of x."""
    if chain.refresh is None:
        return "the chain has no levels for it"
    if (x.level, op.level, size) != (1, chain.top, 2):
        return f"it takes level {x.level} to {op.level}, and {size} parts; it is from 1 to {chain.top}, of 2"
    if not x.scale == op.scale == chain.scales[chain.top]:
        return f"it takes scale {x.scale!r} to {op.scale!r}; both are {chain.scales[chain.top]!r}"
    return None
