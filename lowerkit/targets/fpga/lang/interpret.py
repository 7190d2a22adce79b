"""Runs kernels in numpy, exactly: the oracle that every printer's output is compared with.

Samples and the iterations of parallel loops are axes of the arrays: [batch, outer loop, ..., inner loop]. Serial loops
run in Python. Within a guard, the iterations that it lets through are gathered on the first axis, in place of samples,
and loops inside add axes to that. Every store and update is checked against the range that was claimed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lowerkit.targets.fpga.lang.expr import (
    Array,
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
from lowerkit.targets.fpga.lang.program import (
    For,
    Kernel,
    Let,
    Local,
    Register,
    Statement,
    Store,
    Update,
    When,
)


class OutOfRange(ArithmeticError):
    """A number that is not within the range claimed for it: a fault of the kernel."""


def run(kernel: Kernel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kernel's outputs, int64 [batch, ...], for inputs of that form.

    Raises:
        OutOfRange: for a number, among the inputs too, that its array or register cannot hold.
    """
    frame = _Frame(kernel, inputs)
    frame.block(kernel.body)
    return {array.name: frame.memory[array] for array in kernel.outputs}


class _Frame:
    def __init__(self, kernel: Kernel, inputs: Mapping[str, np.ndarray]) -> None:
        self.kernel = kernel
        self.memory: dict[Array, np.ndarray] = {}
        #: Parallel loops around each local array.
        self.around: dict[Array, tuple[Var, ...]] = {}
        #: Parallel loops around the current statement: those gathered by the guards around, and those that are axes.
        self.gathered: tuple[Var, ...] = ()
        self.loops: tuple[Var, ...] = ()
        self.values: dict[Var, np.ndarray] = {}
        self.batch = len(next(iter(inputs.values()))) if inputs else 1
        #: The sample of each element of the first axis.
        self.samples = np.arange(self.batch)
        for array in kernel.inputs:
            given = np.asarray(inputs[array.name], np.int64)
            if given.shape != (self.batch, *array.shape):
                raise ValueError(f"{kernel.name}: {array.name} is {given.shape[1:]}, not {array.shape}")
            self.check(array.name, given, array.range)
            self.memory[array] = given
        for array in kernel.outputs:
            self.memory[array] = np.zeros((self.batch, *array.shape), np.int64)
        for array in kernel.constants:
            assert array.data is not None
            self.memory[array] = array.data

    def block(self, statements: Iterable[Statement]) -> None:
        for statement in statements:
            if isinstance(statement, For):
                self.loop(statement)
            elif isinstance(statement, When):
                self.when(statement)
            elif isinstance(statement, Let):
                found = self.value(statement.value)
                self.check(statement.var.name, found, statement.var.range)
                self.values[statement.var] = found
            elif isinstance(statement, Register):
                initial = self.value(statement.initial)
                self.values[statement.var] = np.broadcast_to(initial, self.shape()).copy()
            elif isinstance(statement, Update):
                found = self.value(statement.value)
                self.check(statement.var.name, found, statement.var.range)
                self.values[statement.var] = np.broadcast_to(found, self.values[statement.var].shape)
                if isinstance(self.values, _Gathered):
                    self.values.updated.add(statement.var)
            elif isinstance(statement, Local):
                around = (*self.gathered, *self.loops)
                shape = (self.batch, *(v.range.high + 1 for v in around), *statement.array.shape)
                self.memory[statement.array] = np.zeros(shape, np.int64)
                self.around[statement.array] = around
            elif isinstance(statement, Store):
                found = self.value(statement.value)
                self.check(statement.array.name, found, statement.array.range)
                indices = tuple(self.value(index) for index in statement.indices)
                self.memory[statement.array][self.place(statement.array, indices)] = found

    def loop(self, loop: For) -> None:
        if loop.serial:
            for i in range(loop.count):
                self.values[loop.counter] = np.full((1,), i, np.int64)
                self.block(loop.body)
            return
        self.loops = (*self.loops, loop.counter)
        self.values[loop.counter] = np.arange(loop.count).reshape((1,) * len(self.loops) + (loop.count,))
        self.block(loop.body)
        self.loops = self.loops[:-1]

    def when(self, guard: When) -> None:
        shape = self.shape()
        active = np.nonzero(np.broadcast_to(self.value(guard.condition) != 0, shape))
        if not active[0].size:
            return
        outside = self.samples, self.gathered, self.loops, self.values
        inside = _Gathered(self.values, shape, active)
        self.samples, self.values = self.samples[active[0]], inside
        self.gathered, self.loops = (*self.gathered, *self.loops), ()
        self.block(guard.body)
        self.samples, self.gathered, self.loops, self.values = outside
        inside.scatter()

    def shape(self) -> tuple[int, ...]:
        """Of a value that differs in every sample and iteration."""
        return (len(self.samples), *(v.range.high + 1 for v in self.loops))

    def place(self, array: Array, indices: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Where the elements lie: the batch and the loops around first, but for constants."""
        if array.data is not None:
            return indices
        batch = self.samples.reshape(self.samples.shape + (1,) * len(self.loops))
        outer = tuple(self.aligned(self.values[v]) for v in self.around.get(array, ()))
        return (batch, *outer, *indices)

    def aligned(self, value: np.ndarray) -> np.ndarray:
        """With an axis for the batch and for each parallel loop around; those of inner loops come last."""
        return value.reshape(value.shape + (1,) * (1 + len(self.loops) - value.ndim))

    def value(self, e: Expr) -> np.ndarray:
        found: np.ndarray = self.evaluated(e)
        return found

    def evaluated(self, e: Expr) -> Any:
        if isinstance(e, Const):
            return self.aligned(np.full((1,), e.value, np.int64))
        if isinstance(e, Var):
            return self.aligned(self.values[e])
        if isinstance(e, Load):
            found: np.ndarray = self.memory[e.array][
                self.place(e.array, tuple(self.value(i) for i in e.indices))
            ]
            return found
        if isinstance(e, Select):
            return np.where(self.value(e.condition) != 0, self.value(e.yes), self.value(e.no))
        if isinstance(e, Slice):
            sliced: np.ndarray = np.right_shift(self.value(e.operand), e.low) & ((1 << e.width) - 1)
            return sliced
        if isinstance(e, BitLength):
            return _bit_length(self.value(e.operand))
        assert isinstance(e, Binary)
        return OPERATIONS[e.op](self.value(e.left), self.value(e.right))

    def check(self, name: str, found: np.ndarray, claimed: Range) -> None:
        if found.size and (int(found.min()) < claimed.low or int(found.max()) > claimed.high):
            raise OutOfRange(
                f"{self.kernel.name}: {name} takes {found.min()} to {found.max()}, "
                f"and was to stay from {claimed.low} to {claimed.high}"
            )


class _Gathered(dict[Var, np.ndarray]):
    """Values within a guard, those from outside of it gathered when they are first read."""

    def __init__(
        self, outer: dict[Var, np.ndarray], shape: tuple[int, ...], active: tuple[np.ndarray, ...]
    ) -> None:
        super().__init__()
        self.outer, self.shape, self.active = outer, shape, active
        self.updated: set[Var] = set()

    def __missing__(self, var: Var) -> np.ndarray:
        found = self.outer[var]
        found = found.reshape(found.shape + (1,) * (len(self.shape) - found.ndim))
        self[var] = np.broadcast_to(found, self.shape)[self.active]
        return self[var]

    def declared(self, var: Var) -> bool:
        """Whether the guard is within the scope of a name."""
        return var in self.outer or (isinstance(self.outer, _Gathered) and self.outer.declared(var))

    def scatter(self) -> None:
        """Bring registers of the outside up to date."""
        for var in self.updated:
            if self.declared(var):
                whole = self.outer[var].copy()
                whole[self.active] = self[var]
                self.outer[var] = whole
                if isinstance(self.outer, _Gathered):
                    self.outer.updated.add(var)


#: By name, on int64 arrays.
OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "lt": lambda a, b: (a < b).astype(np.int64),
    "le": lambda a, b: (a <= b).astype(np.int64),
    "eq": lambda a, b: (a == b).astype(np.int64),
}


def _bit_length(a: np.ndarray) -> np.ndarray:
    """Exact below 2^63: the exponent of a float64 may be one too high above 2^53, and is compared."""
    exponent = np.frexp(a.astype(np.float64))[1].astype(np.int64)
    over = (exponent > 0) & (np.left_shift(1, np.maximum(exponent - 1, 0)) > a)
    return exponent - over
