"""Statements of one iteration of a stage as a graph of nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowerkit.targets.fpga.lang.access import statements, touches
from lowerkit.targets.fpga.lang.expr import (
    Array,
    Binary,
    BitLength,
    Const,
    Expr,
    Load,
    Select,
    Slice,
    Var,
)
from lowerkit.targets.fpga.lang.program import For, Let, Local, Register, Statement, Store, Update, When
from lowerkit.targets.fpga.rtl.graph import Node, Source
from lowerkit.targets.fpga.rtl.pipeline import Memory, Stage, grid

if TYPE_CHECKING:
    from lowerkit.targets.fpga.rtl.stages import Splitter


class Iteration:
    """Adds statements to a stage's graph, and notes what they ask of other stages with the owner.

    Attributes:
        values: of variables.
        states: registers that go from iteration to iteration: the value before, and at first.
    """

    def __init__(self, owner: Splitter, stage: Stage, body: Sequence[Statement]) -> None:
        self.owner, self.stage, self.graph = owner, stage, stage.graph
        written = {s.array for s in statements(body) if isinstance(s, Store)} - set(owner.kernel.outputs)
        #: Arrays that are both written and read here.
        self.own_arrays = {a for a in written if touches(body, a) > _writes(body, a)}
        #: Their elements: registers for those at one place, and for others what is recalled and kept, by address.
        self.cells: dict[tuple[Array, int], Var] = {}
        self.recalled: dict[tuple[Array, Node], Node] = {}
        self.kept: dict[tuple[Array, Node], Node] = {}
        self.shorter: dict[Node, Node] = {}
        self.values: dict[Var, Node] = {}
        self.states: dict[Var, tuple[Node, Node]] = {}
        self.own = {loop.counter: loop for loop in stage.loops}

    def block(self, body: Iterable[Statement]) -> None:
        for statement in body:
            if isinstance(statement, For):
                for i in range(statement.count):
                    self.values[statement.counter] = self.graph.const(i)
                    self.block(statement.body)
                del self.values[statement.counter]
            elif isinstance(statement, Let):
                self.define(statement.var, statement.value)
            elif isinstance(statement, Register):
                self.define(statement.var, statement.initial)
            elif isinstance(statement, Update):
                self.update(statement)
            elif isinstance(statement, Local):
                self.owner.depth[statement.array] = len(self.stage.loops)
            elif isinstance(statement, When):
                raise self.owner.refuse("a guard decides what is computed")
            else:
                value = self.graph.cast(self.node(statement.value), statement.array.range)
                if statement.array in self.own_arrays:
                    self.keep(statement.array, self.address(statement.array, statement.indices), value)
                    continue
                kept = self.owner.stores.setdefault((self.stage, statement.array), {})
                kept[self.address(statement.array, statement.indices)] = value

    def define(self, var: Var, value: Expr) -> None:
        self.owner.depth[var] = len(self.stage.loops)
        self.values[var] = self.graph.cast(self.node(value), var.range, var.name)

    def update(self, statement: Update) -> None:
        """A register of loops around is a state; before its first update, it is what it was before the loops."""
        var = statement.var
        if var not in self.values:
            self.node(var)
        if var in self.owner.home and var not in self.states:
            raise self.owner.refuse(f"register {var.name} is read before it is updated by another loop")
        self.values[var] = self.graph.cast(self.node(statement.value), var.range, var.name)

    def updated(self, var: Var) -> bool:
        """Whether this stage's loop updates the variable."""
        return any(isinstance(s, Update) and s.var is var for s in statements(self.stage.loops[-1].body))

    def node(self, e: Expr) -> Node:
        if isinstance(e, Const):
            return self.graph.const(e.value)
        if isinstance(e, Var):
            if e not in self.values:
                self.values[e] = self.outside(e)
            return self.values[e]
        if isinstance(e, Load):
            return self.load(e)
        if isinstance(e, Select):
            return self.graph.select(self.node(e.condition), self.node(e.yes), self.node(e.no))
        if isinstance(e, Slice):
            return self.graph.slice(self.node(e.operand), e.low, e.width)
        if isinstance(e, BitLength):
            return self.graph.bit_length(self.node(e.operand))
        assert isinstance(e, Binary)
        return self.graph.binary(e.op, self.node(e.left), self.node(e.right))

    def outside(self, var: Var) -> Node:
        """A value that the iteration does not compute."""
        if var in self.own:
            return self.graph.source(Source("counter", var), var.range, var.name)
        inner = len(self.stage.loops) > self.owner.depth[var] and self.updated(var)
        if not inner:
            return self.owner.token(var, self.stage)
        for user in self.owner.users.get(var, ()):
            self.owner.check_alone(var, user, self.stage)
        initial = self.owner.token(var, self.stage)
        source = self.graph.source(Source("state", var), var.range, var.name)
        self.states[var] = source, initial
        return source

    def load(self, e: Load) -> Node:
        address = self.address(e.array, e.indices)
        if e.array.data is not None:
            return self.constant(e.array, address)
        if e.array in self.own_arrays:
            return self.recall(e.array, address)
        if e.array in self.owner.private:
            raise self.owner.refuse(f"{e.array.name} is kept by one loop and read by another")
        lanes = self.owner.loads.setdefault((self.stage, e.array), [])
        if address not in lanes:
            lanes.append(address)
        depth = self.owner.buffered.get((self.stage.index, e.array))
        if depth is not None:
            zero = self.graph.const(0)
            outer = {self.node(loop.counter): zero for loop in self.stage.loops[:depth]}
            found = self.graph.fetch(e.array, self.graph.replaced(address, outer))
            fetches = self.owner.fetches.setdefault((self.stage, e.array), [])
            if found not in fetches:
                fetches.append(found)
            return found
        source = Source("element", e.array, lanes.index(address))
        return self.graph.source(source, e.array.range, f"{e.array.name}{source.lane or ''}")

    def constant(self, array: Array, address: Node) -> Node:
        """Of constants: those at places that counters tell are put in the order in which they are needed."""
        assert array.data is not None
        words = array.data.ravel()
        index, places = self.compact(address)
        if places is None:
            return self.graph.read(words, address, array.range, array.name)
        return self.graph.read(words[places], index, array.range, array.name)

    def compact(self, address: Node) -> tuple[Node, np.ndarray | None]:
        """A running number of the loops that an address depends on, and the addresses by it; None if data tells."""
        places = self.graph.numbers(address, grid(self.stage.loops))
        index = self.graph.const(0)
        if places is None:
            return index, None
        places = np.broadcast_to(places, self.stage.counts)
        for axis, loop in enumerate(self.stage.loops):
            if (places == places.take([0], axis=axis)).all():
                places = places.take([0], axis=axis)
                continue
            index = self.graph.binary("mul", index, self.graph.const(loop.count))
            index = self.graph.binary("add", index, self.node(loop.counter))
        return index, places.ravel()

    def shorten(self, update: Node, state: Node) -> Node:
        """The number that takes an update's place."""
        found = self.graph.shortened(update, state)
        if found is not update:
            self.shorter[update] = found
        return found

    def renewed(self, node: Node) -> Node:
        """A value with all that was shortened."""
        return self.graph.replaced(node, self.shorter) if self.shorter else node

    # Arrays that are written and read by the same loop.

    def cell(self, array: Array, place: int) -> Var:
        """The register for an element that is always at the same place."""
        if (array, place) not in self.cells:
            var = Var(f"{array.name}_{place}", array.range)
            self.cells[array, place] = var
            self.owner.depth[var] = self.owner.depth[array]
            source = self.graph.source(Source("state", var), array.range, var.name)
            # A kernel reads no element before it is written: any number will do.
            self.states[var] = source, self.graph.const(min(max(0, array.range.low), array.range.high))
            self.values[var] = source
        return self.cells[array, place]

    def recall(self, array: Array, address: Node) -> Node:
        """An element as it was before the iteration, or as it was written in it."""
        if address.value is not None:
            return self.values[self.cell(array, address.value)]
        key = (array, address)
        if key in self.kept:
            return self.kept[key]
        if key not in self.recalled:
            self.recalled[key] = self.graph.recall(array, len(self.recalled), self.compact(address)[0])
        return self.recalled[key]

    def keep(self, array: Array, address: Node, value: Node) -> None:
        if address.value is not None:
            self.values[self.cell(array, address.value)] = value
        else:
            self.kept[array, address] = value

    def memories(self) -> list[Memory]:
        """A memory for each element of an iteration; each has its own places."""
        found: list[Memory] = []
        self.owner.private |= self.own_arrays
        taken: dict[Array, np.ndarray] = {}
        for (array, address), value in self.kept.items():
            index, places = self.compact(address)
            recalled = self.recalled.get((array, address))
            others = taken.get(array, np.zeros(0, np.int64))
            if (
                places is None
                or recalled is None
                or len(np.unique(np.append(places, others))) != len(places) + len(others)
            ):
                raise self.owner.refuse(
                    f"{array.name} is read and written by one loop at places that may coincide"
                )
            taken[array] = np.append(others, places)
            running = np.asarray(self.graph.numbers(index, grid(self.stage.loops)))
            numbers = np.broadcast_to(running, self.stage.counts).ravel()
            order = np.argsort(numbers, kind="stable")
            gaps = np.diff(order)[np.diff(numbers[order]) == 0]
            distance = int(gaps.min()) if len(gaps) else numbers.size
            value = self.shorten(value, recalled)
            found.append(Memory(index, recalled, value, len(places), distance))
        if len(found) < len(self.recalled):
            raise self.owner.refuse("an array is read and written by one loop at different places")
        return found

    def address(self, array: Array, indices: Sequence[Expr]) -> Node:
        """The element's place, the last axis fastest."""
        place = self.graph.const(0)
        for index, size in zip(indices, array.shape, strict=True):
            place = self.graph.binary("mul", place, self.graph.const(size))
            place = self.graph.binary("add", place, self.node(index))
        return place


def _writes(body: Sequence[Statement], array: Array) -> int:
    """How often the array is written."""
    return sum(
        s.count * _writes(s.body, array)
        if isinstance(s, For)
        else int(isinstance(s, Store) and s.array is array)
        for s in body
    )
