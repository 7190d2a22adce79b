"""What a kernel costs in hardware, read from its loops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowerkit.targets.fpga.lang.expr import Binary, BitLength, Const, Expr, Select, Slice
from lowerkit.targets.fpga.lang.program import For, Kernel, Let, Register, Statement, Store, Update


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
    cycles, multipliers = _sequential(kernel.body)
    return kernel, Schedule(multipliers, cycles, -(-cycles // positions) if positions else 1)


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


def _sequential(body: Iterable[Statement]) -> tuple[int, int]:
    """Cycles and multipliers of loops that run one after the other."""
    cycles = multipliers = 0
    for statement in body:
        if isinstance(statement, For):
            inner, width = (
                (1, _products(statement.body)) if statement.pipeline else _sequential(statement.body)
            )
            cycles += statement.count * max(inner, 1)
            multipliers += width
        else:
            multipliers += _products([statement])
    return cycles, multipliers


def _products(body: Iterable[Statement]) -> int:
    """Multipliers of statements that run at once, loops among them unrolled."""
    found = 0
    for statement in body:
        if isinstance(statement, For):
            found += statement.count * _products(statement.body)
        elif isinstance(statement, Register):
            found += _in(statement.initial, set())
        elif isinstance(statement, (Let, Update, Store)):
            found += _in(statement.value, set())
    return found


def _in(e: Expr, seen: set[int]) -> int:
    """Products in an expression; addresses are not looked at."""
    if id(e) in seen:
        return 0
    seen.add(id(e))
    if isinstance(e, Binary):
        free = any(isinstance(s, Const) and abs(s.value).bit_count() <= 1 for s in (e.left, e.right))
        return int(e.op == "mul" and not free) + _in(e.left, seen) + _in(e.right, seen)
    if isinstance(e, Select):
        return _in(e.condition, seen) + _in(e.yes, seen) + _in(e.no, seen)
    return _in(e.operand, seen) if isinstance(e, (Slice, BitLength)) else 0
