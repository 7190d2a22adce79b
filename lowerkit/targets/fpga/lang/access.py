"""In which order, and how many at once, a kernel touches the elements of its arrays.

Loops have fixed counts, so that addresses made of loop counters are known before anything runs. What is said of them
here is found by going through them, not by a rule that might not cover a new kernel; where an address depends on data,
or the order of two reads is the C++ compiler's choice, nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lowerkit.targets.fpga.lang.expr import Array, Binary, BitLength, Const, Expr, Load, Select, Slice, Var
from lowerkit.targets.fpga.lang.interpret import OPERATIONS
from lowerkit.targets.fpga.lang.program import For, Kernel, Let, Register, Statement, Store, Update, When


class _Unknown(Exception):
    """An address or an order that loop counters do not decide."""


def sequential(kernel: Kernel, array: Array) -> bool:
    """Whether the kernel touches every element exactly once, from the first to the last: what a FIFO needs."""
    size = math.prod(array.shape)
    if touches(kernel.body, array) != size:
        return False
    found = order(kernel, array)
    return found is not None and np.array_equal(found, np.arange(size))


def touches(body: Iterable[Statement], array: Array) -> int:
    """How often the array is read or written, at most where guards stand before that."""
    found = 0
    for statement in body:
        found += len(list(_addresses(statement, array)))
        if isinstance(statement, (For, When)):
            found += (statement.count if isinstance(statement, For) else 1) * touches(statement.body, array)
    return found


def per_cycle(kernel: Kernel, array: Array) -> int:
    """The most elements that one iteration of a pipelined loop touches, loops within unrolled; at least 1."""

    def most(body: Iterable[Statement]) -> int:
        found = 1
        for statement in body:
            if isinstance(statement, For) and statement.pipeline:
                found = max(found, touches(statement.body, array))
            elif isinstance(statement, (For, When)):
                found = max(found, most(statement.body))
        return found

    return most(kernel.body)


def order(kernel: Kernel, array: Array) -> np.ndarray | None:
    """The places of the array [touches], in row-major order, one after the other as the kernel touches them.

    None where they depend on data, on a condition or a guard, where one statement touches the array twice, or where the
    kernel both reads and writes it.
    """
    try:
        return _Walk(array).sequence(kernel.body, ())
    except _Unknown:
        return None


class _Walk:
    """Values of counters, and of what is made of them, as arrays with an axis for each loop around."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.values: dict[Var, np.ndarray] = {}
        self.kinds: set[bool] = set()

    def sequence(self, body: Iterable[Statement], loops: tuple[int, ...]) -> np.ndarray:
        """Places [*loops, touches of the body]."""
        parts = [np.zeros((*loops, 0), np.int64)]
        for statement in body:
            if isinstance(statement, For):
                inner = (*loops, statement.count)
                self.values[statement.counter] = np.arange(statement.count).reshape(
                    (1,) * len(loops) + (statement.count,)
                )
                parts.append(self.sequence(statement.body, inner).reshape((*loops, -1)))
                continue
            if isinstance(statement, When) and touches(statement.body, self.array):
                raise _Unknown
            found = list(_addresses(statement, self.array))
            self.kinds |= {kind for _, kind in found}
            if len(found) > 1 or len(self.kinds) > 1 or _conditional(statement, self.array):
                raise _Unknown
            for indices, _ in found:
                places = np.zeros((1,) * len(loops), np.int64)
                for index, size in zip(indices, self.array.shape, strict=True):
                    places = places * size + self.value(index, len(loops))
                parts.append(np.broadcast_to(places, loops)[..., None])
            if isinstance(statement, Let):
                try:
                    self.values[statement.var] = self.value(statement.value, len(loops))
                except _Unknown:
                    continue
        return np.concatenate(parts, axis=-1)

    def value(self, e: Expr, depth: int) -> np.ndarray:
        if isinstance(e, Const):
            return np.full((1,) * depth, e.value, np.int64)
        if isinstance(e, Var) and e in self.values:
            known = self.values[e]
            return known.reshape(known.shape + (1,) * (depth - known.ndim))
        if isinstance(e, Binary):
            return OPERATIONS[e.op](self.value(e.left, depth), self.value(e.right, depth))
        if isinstance(e, Select):
            chosen = self.value(e.condition, depth) != 0
            return np.where(chosen, self.value(e.yes, depth), self.value(e.no, depth))
        raise _Unknown


def limited(loop: For) -> When | None:
    """The guard that is all of a loop's body, where it lets the first iterations through and none behind them.

    Such a loop ends where the guard says, in C++ and in what it costs. What the counter is compared with has a name,
    and does not change in the loop.
    """
    guard = loop.body[0] if len(loop.body) == 1 else None
    if not isinstance(guard, When):
        return None
    test = guard.condition
    if not isinstance(test, Binary) or test.op != "lt" or test.left is not loop.counter:
        return None
    if not isinstance(test.right, Var) or test.right is loop.counter:
        return None
    changed = any(isinstance(s, Update) and s.var is test.right for s in statements(guard.body))
    return None if changed else guard


def statements(body: Iterable[Statement]) -> Iterator[Statement]:
    """All statements, those of loops and guards too."""
    for statement in body:
        yield statement
        if isinstance(statement, (For, When)):
            yield from statements(statement.body)


def expressions(statement: Statement) -> tuple[Expr, ...]:
    """What a statement itself computes, indices among it."""
    if isinstance(statement, (Let, Update)):
        return (statement.value,)
    if isinstance(statement, Register):
        return (statement.initial,)
    if isinstance(statement, When):
        return (statement.condition,)
    return (*statement.indices, statement.value) if isinstance(statement, Store) else ()


def parts(e: Expr) -> tuple[Expr, ...]:
    """The operands."""
    if isinstance(e, Binary):
        return e.left, e.right
    if isinstance(e, Select):
        return e.condition, e.yes, e.no
    if isinstance(e, Load):
        return e.indices
    return (e.operand,) if isinstance(e, (Slice, BitLength)) else ()


def _loads(e: Expr, array: Array) -> Iterator[Load]:
    """As often as the printed expression has them."""
    if isinstance(e, Load) and e.array is array:
        yield e
    for part in parts(e):
        yield from _loads(part, array)


def _addresses(statement: Statement, array: Array) -> Iterator[tuple[tuple[Expr, ...], bool]]:
    """Indices, and whether they are written."""
    for e in expressions(statement):
        yield from ((load.indices, False) for load in _loads(e, array))
    if isinstance(statement, Store) and statement.array is array:
        yield statement.indices, True


def _conditional(statement: Statement, array: Array) -> bool:
    """Whether a read stands in a branch, which C++ may leave out."""

    def within(e: Expr) -> bool:
        if isinstance(e, Select) and any(True for b in (e.yes, e.no) for _ in _loads(b, array)):
            return True
        return any(within(part) for part in parts(e))

    return any(within(e) for e in expressions(statement))


@dataclass(frozen=True)
class Banks:
    """How an axis is to be split over memories so that lanes do not wait for each other.

    Attributes:
        factor: cyclic; `complete` means a register for each element.
        proven: lanes touch different banks, whatever the other counters are.
    """

    factor: int
    complete: bool
    proven: bool

    def union(self, other: Banks) -> Banks:
        """For both needs; banks of the least common multiple keep apart what either does."""
        factor = math.lcm(self.factor, other.factor)
        return Banks(factor, self.complete or other.complete, self.proven and other.proven)


SINGLE = Banks(1, False, True)
#: Elements up to which an array whose lanes' addresses are no sums of counters becomes registers.
REGISTERS = 1024


def banks(kernel: Kernel, array: Array, *, flat: bool = False) -> tuple[Banks, ...]:
    """For each axis of the array, or for the `flat` array, what the unrolled loops ask for."""
    walk = _Unrolled(array, flat)
    walk.block(kernel.body, None)
    return tuple(walk.found)


class _Unrolled:
    def __init__(self, array: Array, flat: bool) -> None:
        self.array, self.flat = array, flat
        self.sizes = (math.prod(array.shape),) if flat else array.shape
        self.found = [SINGLE] * len(self.sizes)
        self.lets: dict[Var, Expr] = {}
        self.counters: set[Var] = set()

    def block(self, body: Iterable[Statement], lanes: dict[Var, int] | None) -> None:
        for statement in body:
            if isinstance(statement, For):
                self.counters.add(statement.counter)
                inner = {} if statement.pipeline and lanes is None else lanes
                if lanes is not None:
                    inner = {**lanes, statement.counter: statement.count}
                self.block(statement.body, inner)
                continue
            if isinstance(statement, Let):
                self.lets[statement.var] = statement.value
            for indices, _ in _addresses(statement, self.array):
                self.touch(indices, lanes or {})
            if isinstance(statement, When):
                self.block(statement.body, lanes)

    def touch(self, indices: tuple[Expr, ...], lanes: dict[Var, int]) -> None:
        sums = [self.affine(index) for index in indices]
        moving = [self.moved(index, lanes) for index in indices]
        if self.flat:
            total: dict[Var, int] | None = {}
            for found, size in zip(sums, self.array.shape, strict=True):
                total = None if total is None or found is None else _plus(_times(total, size), found)
            sums, moving = [total], [set().union(*moving)]
        for axis, (found, moved) in enumerate(zip(sums, moving, strict=True)):
            counts = {v: lanes[v] for v in sorted(moved, key=lambda v: v.name)}
            self.found[axis] = self.found[axis].union(_split(found, counts, self.sizes[axis]))

    def moved(self, e: Expr, lanes: dict[Var, int]) -> set[Var]:
        """The lanes that may change a number; any may change a register."""
        if isinstance(e, Var):
            if e in self.lets:
                return self.moved(self.lets[e], lanes)
            return {e} & set(lanes) if e in self.counters else set(lanes)
        return set().union(*(self.moved(part, lanes) for part in parts(e)))

    def affine(self, e: Expr) -> dict[Var, int] | None:
        """Factors of counters, those of lanes and of others; the constant does not matter. None if not a sum."""
        if isinstance(e, Const):
            return {}
        if isinstance(e, Var):
            if e in self.lets:
                return self.affine(self.lets[e])
            return {e: 1} if e in self.counters else None
        if isinstance(e, Binary):
            left, right = self.affine(e.left), self.affine(e.right)
            if left is None or right is None:
                return None
            if e.op in ("add", "sub"):
                return _plus(left, _times(right, 1 if e.op == "add" else -1))
            if e.op == "mul" and isinstance(e.right, Const):
                return _times(left, e.right.value)
            if e.op == "mul" and isinstance(e.left, Const):
                return _times(right, e.left.value)
        return None


def _plus(a: dict[Var, int], b: dict[Var, int]) -> dict[Var, int]:
    return {v: a.get(v, 0) + b.get(v, 0) for v in (*a, *b)}


def _times(a: dict[Var, int], factor: int) -> dict[Var, int]:
    return {v: n * factor for v, n in a.items()}


def _split(factors: dict[Var, int] | None, lanes: dict[Var, int], size: int) -> Banks:
    """Cyclic banks for places sum(factor lane) + what is the same for all lanes."""
    count = math.prod(lanes.values())
    if count == 1:
        return SINGLE
    if factors is None:
        return Banks(min(count, size), size <= REGISTERS, size <= REGISTERS)
    offsets = np.zeros(1, np.int64)
    for v, n in lanes.items():
        offsets = np.unique((offsets[:, None] + np.arange(n) * factors.get(v, 0)).ravel())
    if len(offsets) >= size:
        return Banks(size, True, True)
    for factor in range(len(offsets), min(size, 4 * len(offsets)) + 1):
        if len(np.unique(offsets % factor)) == len(offsets):
            return Banks(factor, factor >= size, True)
    return Banks(len(offsets), False, False)
