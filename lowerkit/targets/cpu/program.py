"""Relax → a static program: kernels in order, each with the memory that it reads and writes.

Nothing is left to decide at run time but the branch of an If. Reshapes are other names of the same bytes, constants
lie in the library, and what a kernel writes lies in the arena (`arena.py`) or, where it is an output of the graph,
in the caller's memory.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Union

import numpy as np
import tvm
from tvm import relax, tirx

from lowerkit.errors import UnsupportedError
from lowerkit.targets.cpu import arena


class Where(Enum):
    """The kind of memory that a buffer is in."""

    INPUT = "inputs"
    OUTPUT = "outputs"
    CONSTANT = "constants"
    ARENA = "arena"


@dataclass(eq=False)
class Buffer:
    """`size` bytes at `at`: the number of an input or output, or an offset into the constants or the arena."""

    where: Where
    size: int
    at: int = 0


@dataclass(frozen=True)
class Call:
    """One kernel: a function of the library, and its arguments: inputs, integers, then outputs."""

    function: str
    arguments: tuple[Buffer | int, ...]


@dataclass(frozen=True)
class Copy:
    """All bytes of `source` to `target`."""

    target: Buffer
    source: Buffer


@dataclass(frozen=True)
class Branch:
    """`then` where the first byte of `condition` is not 0, else `otherwise`."""

    condition: Buffer
    then: tuple[Step, ...]
    otherwise: tuple[Step, ...]


Step = Call | Copy | Branch


@dataclass
class Program:
    """Steps, and what they need.

    Attributes:
        constants: the bytes of all constants, each at a multiple of `arena.ALIGNMENT`.
        arena: bytes of intermediate values.
    """

    steps: tuple[Step, ...]
    constants: bytes
    arena: int


#: A variable's value: a buffer, an integer, a tuple of values, or None for a shape.
Value = Union["Buffer", int, tuple["Value", ...], None]


def make_program(module: tvm.IRModule) -> Program:
    """The program of `main` in `module`, whose operators are calls of TIR functions by now.

    Raises UnsupportedError for what cannot be decided when compiling.
    """
    walk = _Walk()
    function = module["main"]
    env = dict(
        zip(function.params, map(walk.input, range(len(function.params)), function.params), strict=True)
    )
    steps, result = walk.sequence(function.body, env)
    outputs = result if isinstance(result, tuple) else (result,)
    for index, buffer in enumerate(outputs):
        if not isinstance(buffer, Buffer):
            raise UnsupportedError(f"output {index} is no tensor")
        if buffer.where is Where.ARENA:
            buffer.where, buffer.at = Where.OUTPUT, index
        else:  # an input, a constant, or an output already
            steps.append(Copy(Buffer(Where.OUTPUT, buffer.size, index), buffer))
    return Program(tuple(steps), bytes(walk.constants), _plan(steps))


def leaves(steps: Sequence[Step]) -> Iterator[Call | Copy]:
    """All steps in the order in which they are written down, those of branches included."""
    for step in steps:
        if isinstance(step, Branch):
            yield from leaves(step.then)
            yield from leaves(step.otherwise)
        else:
            yield step


def _plan(steps: Sequence[Step]) -> int:
    """Give every buffer in the arena its offset; the arena's size."""
    spans: dict[Buffer, tuple[int, int]] = {}
    time = 0

    def touch(*buffers: Buffer | int) -> None:
        for buffer in buffers:
            if isinstance(buffer, Buffer) and buffer.where is Where.ARENA:
                spans[buffer] = (spans.get(buffer, (time, time))[0], time)

    def visit(steps: Sequence[Step]) -> None:
        nonlocal time
        for step in steps:
            time += 1
            if isinstance(step, Call):
                touch(*step.arguments)
            elif isinstance(step, Copy):
                touch(step.target, step.source)
            else:
                touch(step.condition)
                visit(step.then)
                visit(step.otherwise)

    visit(steps)
    offsets, size = arena.place([arena.Lifetime(buffer.size, *span) for buffer, span in spans.items()])
    for buffer, offset in zip(spans, offsets, strict=True):
        buffer.at = offset
    return size


@dataclass
class _Walk:
    """Reads Relax; what it has read of constants so far."""

    constants: bytearray = field(default_factory=bytearray)
    _known: dict[bytes, Buffer] = field(default_factory=dict)

    def input(self, index: int, parameter: relax.Var) -> Buffer:
        """The buffer of a parameter of `main`."""
        return Buffer(Where.INPUT, _size(parameter.ty), index)

    def constant(self, array: np.ndarray) -> Buffer:
        """The buffer of a constant; equal bytes lie there once."""
        data = array.tobytes()
        key = hashlib.sha256(data).digest()
        if key not in self._known:
            self._known[key] = Buffer(Where.CONSTANT, len(data), len(self.constants))
            self.constants += data + bytes(-len(data) % arena.ALIGNMENT)
        return self._known[key]

    def sequence(self, body: relax.Expr, env: dict[relax.Var, Value]) -> tuple[list[Step], Value]:
        """The steps of a sequence of bindings, and the value of its result."""
        steps: list[Step] = []
        if not isinstance(body, relax.SeqExpr):
            return steps, self.value(body, env)
        for block in body.blocks:
            for binding in block.bindings:
                env[binding.var] = self.binding(binding, steps, env)
        return steps, self.value(body.body, env)

    def binding(self, binding: relax.Binding, steps: list[Step], env: dict[relax.Var, Value]) -> Value:
        """The value of a bound expression, whose steps are appended."""
        expr = binding.value
        if isinstance(expr, relax.If):
            return self.branch(expr, steps, env)
        if not isinstance(expr, relax.Call):
            return self.value(expr, env)
        name = str(getattr(expr.op, "name", expr.op))
        if name == "relax.call_tir":
            function, arguments = f"k_{expr.args[0].name_hint}", self.value(expr.args[1], env)
        elif name == "relax.call_dps_packed":
            function, arguments = str(expr.args[0].global_symbol), self.value(expr.args[1], env)
        elif name == "relax.reshape":
            return self.value(expr.args[0], env)
        else:
            raise UnsupportedError(f"{name} is not known when compiling", hint="make its shapes constant")
        result = _new(binding.var.ty)
        steps.append(Call(function, (*_flat(arguments), *_flat(result))))
        return result

    def branch(self, expr: relax.If, steps: list[Step], env: dict[relax.Var, Value]) -> Value:
        """An If: each branch ends with copies of its values to where those of the If are."""
        condition = self.value(expr.cond, env)
        assert isinstance(condition, Buffer)
        result = _new(expr.ty)
        sides = []
        for body in (expr.true_branch, expr.false_branch):
            side, value = self.sequence(body, dict(env))
            copies = itertools.starmap(Copy, zip(_flat(result), _flat(value), strict=True))
            sides.append((*side, *copies))
        steps.append(Branch(condition, *sides))
        return result

    def value(self, expr: relax.Expr, env: dict[relax.Var, Value]) -> Value:
        """The value of an expression that computes nothing."""
        if isinstance(expr, relax.Var):
            return env[expr]
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(item, env) for item in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            items = self.value(expr.tuple_value, env)
            assert isinstance(items, tuple)
            item: Value = items[expr.index]
            return item
        if isinstance(expr, tvm.ir.GenericConst):
            return self.constant(expr.value.numpy())
        if isinstance(expr, tirx.IntImm):
            return int(expr)
        if isinstance(expr, relax.ShapeExpr):
            return None
        raise UnsupportedError(f"TVM leaves {type(expr).__name__} in the graph, which has no kernel")


def _flat(value: Value) -> list[Buffer | int]:
    """The buffers and integers in a value, in order."""
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in _flat(item)]
    return [] if value is None else [value]


def _new(ty: relax.Type) -> Value:
    """Memory in the arena for a value of a type."""
    if isinstance(ty, relax.TupleType):
        return tuple(_new(item) for item in ty.fields)
    return Buffer(Where.ARENA, _size(ty))


def _size(ty: relax.TensorType) -> int:
    """Bytes of a tensor. Raises UnsupportedError where its shape is not known."""
    dims = getattr(getattr(ty, "shape", None), "values", None)
    if dims is None or not all(isinstance(dim, tirx.IntImm) for dim in dims):
        raise UnsupportedError("a value has no static shape", hint="give the model's inputs other shapes")
    bits = int(tvm.DataType(str(ty.dtype)).bits)
    return math.prod(int(dim) for dim in dims) * ((bits + 7) // 8)
