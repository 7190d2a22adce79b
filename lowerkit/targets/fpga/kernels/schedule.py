"""What a kernel costs in hardware, read from its loops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lowerkit.targets.fpga.lang.expr import Binary, BitLength, Const, Expr, Load, Select, Slice, Var
from lowerkit.targets.fpga.lang.program import For, Kernel, Let, Register, Statement, Store, Update, When


@dataclass(frozen=True)
class Schedule:
    """Analytic cost; the few cycles that fill a pipeline are not counted.

    Attributes:
        multipliers: products computed at once, shifts not among them; loops do not share them.
        cycles: clock cycles for one sample.
        ii: clock cycles from one output position (a row, a pixel) to the next, rounded up.
    """

    multipliers: int
    cycles: int
    ii: int


Built = tuple[Kernel, Schedule]


def built(kernel: Kernel, positions: int | None = None) -> Built:
    """A kernel with its schedule; `positions` are those of its output, as many as cycles if None."""
    cycles, multipliers = _Reader(kernel).sequential(kernel.body, 1)
    return kernel, Schedule(multipliers, cycles, -(-cycles // positions) if positions else 1)


def least_reuse(products: int, multipliers: int) -> int:
    """The least reuse factor that divides `products` and needs at most that many multipliers."""
    return next(r for r in range(-(-products // multipliers), products + 1) if products % r == 0)


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


class _Reader:
    def __init__(self, kernel: Kernel) -> None:
        self.counters = set(_counters(kernel.body))

    def sequential(self, body: Iterable[Statement], times: int) -> tuple[int, int]:
        """Cycles and multipliers of loops that run one after the other, of a body that runs `times` times.

        A guard takes a cycle where it stands, and its body's cycles as often as that runs at most.
        """
        cycles = multipliers = 0
        for statement in body:
            if isinstance(statement, For) and not statement.pipeline:
                inner, width = self.sequential(statement.body, times * statement.count)
                cycles += max(inner, times * statement.count)
                multipliers += width
            elif isinstance(statement, When):
                most = times if statement.most is None else min(times, statement.most)
                inner, width = self.sequential(statement.body, most)
                cycles += times + inner
                multipliers += width
            else:
                cycles += times * statement.count if isinstance(statement, For) else 0
                multipliers += self.once([statement], unrolled=1)
        return cycles, multipliers

    def once(self, body: Iterable[Statement], unrolled: int | None = None) -> int:
        """Multipliers of statements that run at once; loops are unrolled, the outermost ones `unrolled` times."""
        found = 0
        for statement in body:
            if isinstance(statement, For):
                found += (unrolled or statement.count) * self.once(statement.body)
            elif isinstance(statement, When):
                found += self.once(statement.body) + self.products(statement.condition, set())
            elif isinstance(statement, Register):
                found += self.products(statement.initial, set())
            elif isinstance(statement, (Let, Update, Store)):
                found += self.products(statement.value, set())
        return found

    def products(self, e: Expr, seen: set[int]) -> int:
        """Products of numbers, not of counters: those make addresses."""
        if id(e) in seen:
            return 0
        seen.add(id(e))
        found = sum(self.products(part, seen) for part in _parts(e))
        if not isinstance(e, Binary) or e.op != "mul":
            return found
        shift = any(isinstance(s, Const) and abs(s.value).bit_count() <= 1 for s in (e.left, e.right))
        return found + int(not shift and not self.address(e))

    def address(self, e: Expr) -> bool:
        """Whether an expression is of counters alone."""
        if isinstance(e, Var):
            return e in self.counters
        return not isinstance(e, Load) and all(self.address(part) for part in _parts(e))


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
