"""Runs a kernel one statement after the other, as its C++ would, and writes down what it touches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lowerkit.targets.fpga.lang.access import limited
from lowerkit.targets.fpga.lang.expr import Array, Binary, BitLength, Const, Expr, Load, Select, Slice, Var
from lowerkit.targets.fpga.lang.program import For, Kernel, Let, Register, Statement, Store, Update, When

_PLAIN = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "min": min,
    "max": max,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "lt": lambda a, b: int(a < b),
    "le": lambda a, b: int(a <= b),
    "eq": lambda a, b: int(a == b),
}


@dataclass
class Trace:
    """Of one run.

    Attributes:
        touched: array, place and whether it is written, in order.
        iterations: for each iteration of a pipelined loop, by statement, the places touched by its unrolled copies.
        cycles, fills: pipelined iterations and straight pieces of code; entries into pipelined loops.
    """

    touched: list[tuple[Array, int, bool]] = field(default_factory=list)
    iterations: list[dict[tuple[Statement, int], list[tuple[Array, int]]]] = field(default_factory=list)
    cycles: int = 0
    fills: int = 0
    memory: dict[Array, np.ndarray] = field(default_factory=dict)

    def places(self, array: Array) -> list[int]:
        """Of one array."""
        return [place for found, place, _ in self.touched if found is array]


def trace(kernel: Kernel, inputs: Mapping[str, np.ndarray]) -> Trace:
    """The kernel's run on one sample."""
    run = _Run(kernel, inputs)
    run.block(kernel.body, None)
    return run.trace


class _Run:
    def __init__(self, kernel: Kernel, inputs: Mapping[str, np.ndarray]) -> None:
        self.trace = Trace()
        memory = self.trace.memory
        memory.update({a: np.asarray(inputs[a.name]).ravel() for a in kernel.inputs})
        memory.update({a: a.data.ravel() for a in kernel.constants if a.data is not None})
        self.values: dict[Var, int] = {}
        self.here: dict[tuple[Statement, int], list[tuple[Array, int]]] | None = None
        self.at: tuple[Statement, int] | None = None

    def block(self, body: Iterable[Statement], pipelined: bool | None) -> None:
        straight = False
        for statement in body:
            if isinstance(statement, For):
                straight = False
                outermost = statement.pipeline and not pipelined
                self.trace.fills += outermost
                guard = None if pipelined else limited(statement)
                for i in range(statement.count):
                    self.values[statement.counter] = i
                    if guard is not None and not self.value(guard.condition):
                        break
                    if outermost:
                        self.trace.cycles += 1
                        self.here = {}
                        self.trace.iterations.append(self.here)
                    inside = statement.body if guard is None else guard.body
                    self.block(inside, pipelined or statement.pipeline)
                    if outermost:
                        self.here = None
                continue
            if isinstance(statement, (Let, Update, Store, When)) and not pipelined and not straight:
                self.trace.cycles, straight = self.trace.cycles + 1, True
            self.loads = 0
            self.at_statement = statement
            if isinstance(statement, (Let, Update)):
                self.values[statement.var] = self.value(statement.value)
            elif isinstance(statement, Register):
                self.values[statement.var] = self.value(statement.initial)
            elif isinstance(statement, Store):
                number = self.value(statement.value)
                place = self.place(statement.array, statement.indices)
                self.touch(statement.array, place, True)
                self.memory(statement.array)[place] = number
            elif isinstance(statement, When):
                straight = False
                if self.value(statement.condition):
                    self.block(statement.body, pipelined)

    def memory(self, array: Array) -> np.ndarray:
        return self.trace.memory.setdefault(array, np.zeros(math.prod(array.shape), np.int64))

    def place(self, array: Array, indices: tuple[Expr, ...]) -> int:
        found = 0
        for index, size in zip(indices, array.shape, strict=True):
            found = found * size + self.value(index)
        return found

    def touch(self, array: Array, place: int, written: bool) -> None:
        self.trace.touched.append((array, place, written))
        if self.here is not None:
            self.here.setdefault((self.at_statement, self.loads), []).append((array, place))
        self.loads += 1

    def value(self, e: Expr) -> int:
        if isinstance(e, Const):
            return e.value
        if isinstance(e, Var):
            return self.values[e]
        if isinstance(e, Load):
            place = self.place(e.array, e.indices)
            self.touch(e.array, place, False)
            return int(self.memory(e.array)[place])
        if isinstance(e, Select):
            return self.value(e.yes if self.value(e.condition) else e.no)
        if isinstance(e, Slice):
            return (self.value(e.operand) >> e.low) & ((1 << e.width) - 1)
        if isinstance(e, BitLength):
            return self.value(e.operand).bit_length()
        assert isinstance(e, Binary)
        return _PLAIN[e.op](self.value(e.left), self.value(e.right))
