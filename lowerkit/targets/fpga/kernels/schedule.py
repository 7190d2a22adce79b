"""What a kernel costs in hardware, read from its loops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lowerkit.targets.fpga.lang.access import limited
from lowerkit.targets.fpga.lang.expr import (
    Binary,
    BitLength,
    Const,
    Expr,
    Load,
    Range,
    Select,
    Slice,
    Var,
)
from lowerkit.targets.fpga.lang.program import For, Kernel, Let, Register, Statement, Store, Update, When


@dataclass(frozen=True)
class Schedule:
    """Analytic cost; the few cycles that fill a pipeline are not counted. See `Count`.

    Attributes:
        multipliers: products computed at once, shifts not among them; loops do not share them.
        cycles: clock cycles for one sample.
        ii: clock cycles from one output position (a row, a pixel) to the next, rounded up.
        fills: how often a pipeline is filled.
    """

    multipliers: int
    cycles: int
    ii: int
    fills: int


Built = tuple[Kernel, Schedule]


def built(kernel: Kernel, positions: int | None = None) -> Built:
    """A kernel with its schedule; `positions` are those of its output, as many as cycles if None."""
    found = count(kernel)
    multipliers = sum(found.products.values())
    ii = -(-found.cycles // positions) if positions else 1
    return kernel, Schedule(multipliers, found.cycles, ii, found.fills)


def least_reuse(products: int, multipliers: int) -> int:
    """The least reuse factor that divides `products` and needs at most that many multipliers."""
    return next(r for r in range(-(-products // multipliers), products + 1) if products % r == 0)


def greatest_reuse(products: int, most: int) -> int:
    """The greatest reuse factor that divides `products` and is at most that number; 1 where that is less."""
    return next((r for r in range(min(most, products), 0, -1) if products % r == 0), 1)


def split(reuse: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """`reuse` as a product of one divisor of each size, the first ones large. Raises ValueError if there is none."""
    if reuse < 1:
        raise ValueError(f"a reuse factor of {reuse}")
    found = _split(reuse, sizes)
    if found is None:
        whole = math.prod(sizes)
        near = next(r for r in range(min(reuse, whole), 0, -1) if _split(r, sizes))
        raise ValueError(f"a reuse factor of {reuse} does not divide {list(sizes)}; {near} does")
    return found


def _split(reuse: int, sizes: Sequence[int]) -> tuple[int, ...] | None:
    if not sizes:
        return () if reuse == 1 else None
    common = math.gcd(reuse, sizes[0])
    for divisor in range(common, 0, -1):
        if common % divisor == 0:
            rest = _split(reuse // divisor, sizes[1:])
            if rest is not None:
                return (divisor, *rest)
    return None


@dataclass(frozen=True)
class Count:
    """What a kernel's loops come to.

    Attributes:
        cycles: iterations of pipelined loops, and one for each straight piece of code outside of them each time it is
            passed. An empty piece takes none. Behind guards it is the most that they let through.
        fills: how often a pipelined loop is entered.
        products: multipliers at work at once, by their operands' ranges.
    """

    cycles: int
    fills: int
    products: Mapping[tuple[Range, Range], int]


def count(kernel: Kernel) -> Count:
    """Of the whole kernel."""
    reader = _Reader(kernel)
    cycles, fills, products = reader.sequential(kernel.body)
    return Count(cycles, fills, products)


class _Reader:
    def __init__(self, kernel: Kernel) -> None:
        self.counters = set(_counters(kernel.body))

    def sequential(
        self, body: Iterable[Statement], times: int = 1
    ) -> tuple[int, int, Counter[tuple[Range, Range]]]:
        """Cycles, fills and multipliers of loops that run one after the other, and of the code between them.

        `times` is how often the body runs. A guard's test is code between loops, and its body runs as often as the
        guard lets it at most. A loop that ends where a guard says has no test of its own.
        """
        cycles, fills, products, straight = 0, 0, Counter[tuple[Range, Range]](), False
        for statement in body:
            if isinstance(statement, (Let, Update, Store, When)) and not straight:
                cycles, straight = cycles + times, True
            if isinstance(statement, (For, When)):
                straight, runs, inside = False, _runs(statement, times), statement.body
                if isinstance(statement, For) and (guard := limited(statement)) is not None:
                    runs, inside = _runs(guard, runs), guard.body
                if isinstance(statement, For) and statement.pipeline:
                    cycles, fills = cycles + runs, fills + times
                    products += self.once(inside)
                    continue
                inner, entered, width = self.sequential(inside, runs)
                cycles, fills = cycles + inner, fills + entered
                products += width
                if isinstance(statement, When):
                    products += self.products(statement.condition, set())
            else:
                products += self.once([statement])
        return cycles, fills, products

    def once(self, body: Iterable[Statement]) -> Counter[tuple[Range, Range]]:
        """Multipliers of statements that run at once: loops are unrolled."""
        found = Counter[tuple[Range, Range]]()
        for statement in body:
            if isinstance(statement, For):
                inner = self.once(statement.body)
                found += Counter({each: number * statement.count for each, number in inner.items()})
            elif isinstance(statement, When):
                found += self.once(statement.body) + self.products(statement.condition, set())
            elif isinstance(statement, Register):
                found += self.products(statement.initial, set())
            elif isinstance(statement, (Let, Update, Store)):
                found += self.products(statement.value, set())
        return found

    def products(self, e: Expr, seen: set[int]) -> Counter[tuple[Range, Range]]:
        """Products of numbers, not of counters: those make addresses."""
        found = Counter[tuple[Range, Range]]()
        if id(e) in seen:
            return found
        seen.add(id(e))
        for part in _parts(e):
            found += self.products(part, seen)
        if not isinstance(e, Binary) or e.op != "mul":
            return found
        shift = any(isinstance(s, Const) and abs(s.value).bit_count() <= 1 for s in (e.left, e.right))
        if not shift and not self.address(e):
            found[e.left.range, e.right.range] += 1
        return found

    def address(self, e: Expr) -> bool:
        """Whether an expression is of counters alone."""
        if isinstance(e, Var):
            return e in self.counters
        return not isinstance(e, Load) and all(self.address(part) for part in _parts(e))


def _runs(statement: For | When, times: int) -> int:
    """How often its body runs at most, where it stands in code that runs `times` times."""
    if isinstance(statement, For):
        return times * statement.count
    return times if statement.most is None else min(times, statement.most)


def _parts(e: Expr) -> tuple[Expr, ...]:
    if isinstance(e, Binary):
        return e.left, e.right
    if isinstance(e, Select):
        return e.condition, e.yes, e.no
    return (e.operand,) if isinstance(e, (Slice, BitLength)) else ()


def _counters(body: Iterable[Statement]) -> Iterator[Var]:
    for statement in body:
        if isinstance(statement, For):
            yield statement.counter
        if isinstance(statement, (For, When)):
            yield from _counters(statement.body)
