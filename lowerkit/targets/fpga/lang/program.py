"""Kernels: loops, registers and stores around expressions.

A parallel loop's iterations do not depend on each other: the interpreter runs them all at once, and hardware may
unroll or pipeline them. A serial loop carries registers from one iteration to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lowerkit.targets.fpga.lang.expr import Array, Counter, Expr, Operand, Range, Var, expr


@dataclass(frozen=True, eq=False)
class Let:
    """A name for a value, computed once."""

    var: Var
    value: Expr


@dataclass(frozen=True, eq=False)
class Register:
    """A variable that serial loops update; it starts at `initial`, and stays within the variable's range."""

    var: Var
    initial: Expr


@dataclass(frozen=True, eq=False)
class Update:
    """The register's next value."""

    var: Var
    value: Expr


@dataclass(frozen=True, eq=False)
class Store:
    """An element of an array written."""

    array: Array
    indices: tuple[Expr, ...]
    value: Expr


@dataclass(frozen=True, eq=False)
class Local:
    """Memory that every iteration of the loops around has for itself."""

    array: Array


@dataclass(frozen=True, eq=False)
class For:
    """`count` iterations of the body, with a counter from 0.

    Attributes:
        serial: iterations depend on each other through registers, and run in order.
        pipeline: hardware starts an iteration each cycle; loops inside are unrolled.
    """

    counter: Var
    count: int
    body: Sequence[Statement]
    serial: bool
    pipeline: bool
    label: str


@dataclass(frozen=True, eq=False)
class When:
    """A body that runs only where the condition is not 0, and costs next to nothing elsewhere.

    Attributes:
        most: how often the body runs at most in one run of the kernel, where its author knows that to be less than
            the loops around say; for schedules alone.
    """

    condition: Expr
    body: Sequence[Statement]
    most: int | None


Statement = Let | Register | Update | Store | Local | For | When


@dataclass(frozen=True, eq=False)
class Kernel:
    """One layer as a program.

    Attributes:
        inputs, outputs: the arrays that it reads and writes; the interpreter gives these a leading batch axis.
        constants: weights and tables that it reads.
        scratch: what it keeps between loops.
        comment: what it computes, for those who read the printed code.
    """

    name: str
    comment: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    constants: tuple[Array, ...]
    body: tuple[Statement, ...]


@dataclass
class Builder:
    """Writes a kernel, statement by statement.

    k = Builder("double", "y = 2 x")
    x, y = k.input("x", (8,), Range(-128, 127)), k.output("y", (8,), Range(-256, 254))
    with k.loop("i", 8) as i:
        k.store(y, i, x[i] * 2)
    """

    name: str
    comment: str
    _arrays: dict[str, list[Array]] = field(
        default_factory=lambda: {kind: [] for kind in ("inputs", "outputs", "constants")}
    )
    _blocks: list[list[Statement]] = field(default_factory=lambda: [[]])
    _names: set[str] = field(default_factory=set)

    def input(self, name: str, shape: Sequence[int], range: Range) -> Array:
        """An array that is read."""
        return self._array("inputs", Array(self._own(name), tuple(shape), range))

    def output(self, name: str, shape: Sequence[int], range: Range) -> Array:
        """An array that is written."""
        return self._array("outputs", Array(self._own(name), tuple(shape), range))

    def local(self, name: str, shape: Sequence[int], range: Range) -> Array:
        """Memory that every iteration of the loops around has for itself; read only after it is written."""
        array = Array(self._own(name), tuple(shape), range)
        self._blocks[-1].append(Local(array))
        return array

    def constant(self, array: Array) -> Array:
        """Weights or a table; its name has to be new."""
        self._own(array.name)
        return self._array("constants", array)

    @contextmanager
    def loop(
        self, name: str, count: int, *, serial: bool = False, pipeline: bool = False, label: str = ""
    ) -> Iterator[Var]:
        """A loop; its body is what is written within."""
        counter = Counter(self._own(name), Range(0, count - 1))
        self._blocks.append([])
        yield counter
        body = self._blocks.pop()
        self._blocks[-1].append(For(counter, count, tuple(body), serial, pipeline, label))

    @contextmanager
    def when(self, condition: Operand, *, most: int | None = None) -> Iterator[None]:
        """A guard; its body is what is written within, and names made there stay there."""
        self._blocks.append([])
        yield
        body = self._blocks.pop()
        self._blocks[-1].append(When(expr(condition), tuple(body), most))

    def let(self, name: str, value: Operand, within: Range | None = None) -> Var:
        """A name for a value; `within` is a narrower range than intervals prove, which the interpreter checks."""
        found = expr(value)
        var = Var(self._own(name), within or found.range)
        self._blocks[-1].append(Let(var, found))
        return var

    def register(self, name: str, initial: Operand, range: Range) -> Var:
        """A register; `range` holds every value that it takes."""
        first = expr(initial)
        if first.range.low < range.low or first.range.high > range.high:
            raise ValueError(f"register {name} starts outside of its range")
        var = Var(self._own(name), range)
        self._blocks[-1].append(Register(var, first))
        return var

    def update(self, register: Var, value: Operand) -> None:
        """The register's next value."""
        self._blocks[-1].append(Update(register, expr(value)))

    def store(self, array: Array, indices: Operand | tuple[Operand, ...], value: Operand) -> None:
        """Write an element. Raises ValueError for a value that the array cannot hold."""
        load, found = array[indices], expr(value)
        if found.range.low < array.range.low or found.range.high > array.range.high:
            raise ValueError(
                f"{self.name}: a value from {found.range.low} to {found.range.high} does not fit {array.name}, "
                f"{array.range.low} to {array.range.high}"
            )
        self._blocks[-1].append(Store(array, load.indices, found))

    def finish(self) -> Kernel:
        """The kernel."""
        (body,) = self._blocks
        arrays = {kind: tuple(found) for kind, found in self._arrays.items()}
        return Kernel(self.name, self.comment, body=tuple(body), **arrays)

    def _array(self, kind: str, array: Array) -> Array:
        self._arrays[kind].append(array)
        return array

    def _own(self, name: str) -> str:
        if name in self._names or not name.isidentifier():
            raise ValueError(f"{self.name}: the name {name!r} is taken or is none")
        self._names.add(name)
        return name
