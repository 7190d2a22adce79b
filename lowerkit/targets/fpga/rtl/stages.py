"""Splits a kernel into stages that work at the same time, and the channels between them.

A stage is a pipelined loop, or straight code, with all loops around it: it starts an iteration each cycle. What the
kernel does one after the other, stages do on different rows: a stage may normalise a row while the one before sums up
the next. Values that a stage computes for others travel as tokens, one for each iteration of the loops that are around
both; arrays that are written and read in order travel as streams of beats, a beat being what one iteration touches.
An array that is read in another order, or more than once, goes through a buffer of two blocks: one is filled in order
while the other one is read.

A register that several stages update in turn, or an array that is not written in order, is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lowerkit.errors import UnsupportedError
from lowerkit.targets.fpga.lang.access import statements, touches
from lowerkit.targets.fpga.lang.expr import (
    Array,
    Binary,
    BitLength,
    Const,
    Counter,
    Expr,
    Load,
    Range,
    Select,
    Slice,
    Var,
)
from lowerkit.targets.fpga.lang.program import For, Kernel, Let, Local, Register, Statement, Store, Update
from lowerkit.targets.fpga.rtl.graph import Graph, Node, Source


@dataclass(frozen=True)
class State:
    """A register from iteration to iteration.

    Attributes:
        source, update: its value before and after an iteration.
        initial: its value at the first iteration of the loops within the first `depth`.
    """

    var: Var
    source: Node
    update: Node
    initial: Node
    depth: int


@dataclass(frozen=True)
class End:
    """A stage's end of a channel.

    Attributes:
        nodes: of a writer, what it writes.
        held: places of loops that are at their last iteration where a beat is taken or given.
    """

    stage: Stage
    held: tuple[int, ...]
    nodes: tuple[Node, ...] = ()

    @property
    def apart(self) -> int:
        """Iterations from a beat to the next one, at least."""
        counts = self.stage.counts
        inner = [n for i, n in enumerate(counts) if all(j in self.held for j in range(i, len(counts)))]
        return math.prod(inner)


@dataclass(frozen=True)
class Memory:
    """Memory that a stage keeps for itself, of one element of an iteration.

    Attributes:
        index: the element's place in the memory.
        recalled, value: what an iteration reads and writes there.
        depth: elements.
        distance: iterations from a write to the next read of the same place, at least.
    """

    index: Node
    recalled: Node
    value: Node
    depth: int
    distance: int


@dataclass(frozen=True)
class Buffer:
    """Two blocks of memory that are filled and read in turn.

    Attributes:
        size: elements of a block.
        reads: what is read in an iteration, at addresses within the block.
        banks: memories over which elements are dealt in turn, where read n always is of memory n; with 1, each read
            has a memory of its own with all elements.
    """

    size: int
    reads: tuple[Node, ...]
    banks: int


@dataclass
class Channel:
    """What travels from a stage to another, or from and to outside.

    Attributes:
        key: the array, or the variable of a token.
        lanes: the numbers of a beat, all of one range.
        writer, reader: None outside of the kernel.
        beats: for one iteration of the loops around both ends: what may wait while the reader waits for something else.
        buffer: where the reader reads at addresses.
    """

    name: str
    key: Array | Var
    range: Range
    lanes: int
    writer: End | None
    reader: End | None
    beats: int = 1
    buffer: Buffer | None = None

    @property
    def bits(self) -> int:
        """Of a beat; the first lane is lowest."""
        return self.range.bits * self.lanes


@dataclass(eq=False)
class Stage:
    """One pipeline.

    Attributes:
        loops: all loops around; the last one is the innermost.
        index: its place among the stages.
        memories: of its own.
        takes, gives: its channels.
    """

    name: str
    loops: tuple[For, ...]
    graph: Graph
    index: int
    states: list[State] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    takes: list[Channel] = field(default_factory=list)
    gives: list[Channel] = field(default_factory=list)
    values: dict[Var, Node] = field(default_factory=dict)

    @property
    def counts(self) -> tuple[int, ...]:
        """Iterations of each loop."""
        return tuple(loop.count for loop in self.loops)


@dataclass(frozen=True)
class Pipeline:
    """A kernel's stages, in order, and all channels."""

    kernel: Kernel
    stages: tuple[Stage, ...]
    channels: tuple[Channel, ...]


def split(kernel: Kernel) -> Pipeline:
    """The kernel as stages. Raises UnsupportedError for what no stages and streams can do."""
    buffered: dict[tuple[int, Array], int] = {}
    while True:
        try:
            return _Splitter(kernel, buffered).split()
        except _Unordered as found:
            # Only what is found not to be in order is buffered, and then all is read anew.
            buffered[found.stage.index, found.array] = found.depth


class _Unordered(Exception):
    """A stage reads an array otherwise than in order; each iteration of its first `depth` loops reads a block."""

    def __init__(self, stage: Stage, array: Array, depth: int) -> None:
        super().__init__(array.name)
        self.stage, self.array, self.depth = stage, array, depth


class _Splitter:
    def __init__(self, kernel: Kernel, buffered: Mapping[tuple[int, Array], int]) -> None:
        self.kernel, self.buffered = kernel, buffered
        self.stages: list[Stage] = []
        self.channels: list[Channel] = []
        #: Where a variable's value is: a number, or the stage that computes it.
        self.home: dict[Var, int | Stage] = {}
        #: Loops around the declaration of a variable or an array.
        self.depth: dict[Var | Array, int] = {}
        #: By stage, the flat addresses of each array's elements that it reads or writes, and what it writes.
        self.loads: dict[tuple[Stage, Array], list[Node]] = {}
        self.stores: dict[tuple[Stage, Array], dict[Node, Node]] = {}
        #: Arrays that one stage alone writes and reads.
        self.private: set[Array] = set()
        self.fetches: dict[tuple[Stage, Array], list[Node]] = {}
        #: Stages that took a variable's value from elsewhere.
        self.users: dict[Var, list[Stage]] = {}

    def split(self) -> Pipeline:
        self.block(self.kernel.body, ())
        for array in self.kernel.inputs:
            self.connect(array, None)
        for array in [*self.locals(), *self.kernel.outputs]:
            if array not in self.private:
                self.connect(array, array)
        return Pipeline(self.kernel, tuple(self.stages), tuple(self.channels))

    def locals(self) -> list[Array]:
        return [s.array for s in statements(self.kernel.body) if isinstance(s, Local)]

    def refuse(self, reason: str) -> UnsupportedError:
        return UnsupportedError(
            f"kernel {self.kernel.name}: {reason}", hint="this layer has no RTL yet; the HLS flow has it"
        )

    def block(self, body: Iterable[Statement], loops: tuple[For, ...]) -> None:
        """Stages of statements outside of pipelined loops."""
        for loop, group in itertools.groupby(body, lambda s: isinstance(s, For)):
            if not loop:
                self.stage(list(group), loops, "straight")
                continue
            for inner in group:
                assert isinstance(inner, For)
                if inner.pipeline or not any(isinstance(s, For) for s in inner.body):
                    self.stage(inner.body, (*loops, inner), inner.counter.name)
                else:
                    self.block(inner.body, (*loops, inner))

    def stage(self, body: Sequence[Statement], loops: tuple[For, ...], label: str) -> None:
        stage = Stage(f"{self.kernel.name}_s{len(self.stages)}_{label}", loops, Graph(), len(self.stages))
        work = _Iteration(self, stage, body)
        work.block(body)
        stage.memories = work.memories()
        for var, (source, initial) in work.states.items():
            update = work.shorten(stage.graph.cast(work.values[var], var.range, var.name), source)
            stage.states.append(State(var, source, update, initial, self.depth[var]))
            work.values[var] = update
        # What was found to be the same number is so for everyone.
        stage.states = [replace(s, update=work.renewed(s.update)) for s in stage.states]
        stage.memories = [replace(m, value=work.renewed(m.value)) for m in stage.memories]
        stage.values = {var: work.renewed(node) for var, node in work.values.items()}
        for (owner, _), kept in self.stores.items():
            if owner is stage:
                kept.update({address: work.renewed(value) for address, value in kept.items()})
        numbers = {var: node.value for var, node in work.values.items()}
        busy = any(owner is stage for owner, _ in self.stores) or None in numbers.values()
        for var, number in numbers.items():
            if number is not None and var not in work.states:
                self.home[var] = number
            else:
                self.home[var] = stage
        if busy:
            self.stages.append(stage)

    def token(self, var: Var, stage: Stage) -> Node:
        """A value from an earlier stage."""
        home, depth = self.home[var], self.depth[var]
        self.users.setdefault(var, []).append(stage)
        if isinstance(home, int):
            return stage.graph.const(home)
        if any(s.var is var for s in home.states):
            self.check_alone(var, stage, home)
        writer = End(home, tuple(range(depth, len(home.loops))), (home.values[var],))
        reader = End(stage, tuple(range(depth, len(stage.loops))))
        channel = Channel(f"{var.name}_to_{stage.name}", var, var.range, 1, writer, reader)
        self.attach(channel)
        return stage.graph.source(Source("token", var), var.range, var.name)

    def check_alone(self, var: Var, *stages: Stage) -> None:
        """Raises UnsupportedError where stages share a loop that carries a register from one to the other."""
        if len(_common([stage.loops for stage in stages])) > self.depth[var]:
            raise self.refuse(f"register {var.name} goes around a loop through several stages")

    def attach(self, channel: Channel) -> None:
        self.channels.append(channel)
        if channel.writer:
            channel.writer.stage.gives.append(channel)
        if channel.reader:
            channel.reader.stage.takes.append(channel)

    def connect(self, array: Array, written: Array | None) -> None:
        """The channels of an array."""
        writers = [s for s in self.stages if (s, array) in self.stores]
        readers = [s for s in self.stages if (s, array) in self.loads]
        if written is not None and len(writers) != 1:
            raise self.refuse(f"{array.name} is written by {len(writers)} loops, not one")
        if set(writers) & set(readers):
            raise self.refuse(f"{array.name} is read and written by one loop")
        source = self.writing(writers[0], array) if writers else None
        outside = array in self.kernel.outputs
        if outside and readers:
            raise self.refuse(f"output {array.name} is read")
        if not readers and not outside:
            raise self.refuse(f"nothing reads {array.name}")
        ends: list[End | None] = [self.reading(stage, array) for stage in readers]
        ends = ends or [None]
        users = [*writers, *readers]
        streams = [len(self.loads[s, array]) for s in readers if (s.index, array) not in self.buffered]
        lanes = len(source.nodes) if source else max(streams, default=1)
        whole = math.prod(array.shape) if len(streams) < len(readers) else 1
        for end in ends:
            buffer = self.buffer(end, array) if end and (end.stage.index, array) in self.buffered else None
            if buffer and lanes not in (1, buffer.banks):
                raise self.refuse(f"{array.name} is buffered and written {lanes} at once")
            if end and not buffer and len(self.loads[end.stage, array]) != lanes:
                raise self.refuse(
                    f"{array.name} is touched {lanes} at once at one end, and not so at the other"
                )
            around = len(_common([u.loops for u in users]))
            beats = whole
            for user in users:
                held = source.held if source and user is source.stage else self.reading(user, array).held
                beats = max(
                    beats, math.prod(n for i, n in enumerate(user.counts) if i >= around and i not in held)
                )
            direct = end is None or (len(ends) == 1 and not buffer)
            name = array.name if direct or end is None else f"{array.name}_to_{end.stage.name}"
            self.attach(Channel(name, array, array.range, lanes, source, end, beats, buffer))

    def reading(self, stage: Stage, array: Array) -> End:
        """Of a stream, or of a buffer's blocks. Raises _Unordered where it has to be a buffer and is none yet."""
        depth = self.buffered.get((stage.index, array))
        if depth is not None:
            return End(stage, tuple(range(depth, len(stage.loops))))
        found = self.sequence(stage, array, self.loads[stage, array])
        if found:
            held, order = found
            suffix = tuple(range(len(stage.loops) - len(held), len(stage.loops)))
            if order == list(range(len(order))) and held == suffix:
                return End(stage, held)
        raise _Unordered(stage, array, self.blocks(stage, array))

    def blocks(self, stage: Stage, array: Array) -> int:
        """The most loops of which each iteration reads a block of its own, one after the other, in the same way."""
        least, size = self.depth.get(array, 0), math.prod(array.shape)
        places = self.places(stage, self.loads[stage, array])
        if places is None:
            return least
        for i in range(least):
            places = places.take([0], axis=i)
        for depth in range(len(stage.loops) - 1, least, -1):
            count = math.prod(stage.counts[least:depth])
            rows = places.reshape(count, -1) - np.arange(count)[:, None] * (size // count)
            if (
                size % count == 0
                and (rows == rows[0]).all()
                and rows.min() >= 0
                and rows.max() < size // count
            ):
                return depth
        return least

    def buffer(self, end: End, array: Array) -> Buffer:
        """Of a reader that reads at addresses."""
        stage, reads = end.stage, tuple(self.fetches[end.stage, array])
        first = min(end.held, default=len(stage.loops))
        size = math.prod(array.shape) // math.prod(stage.counts[self.depth.get(array, 0) : first])
        places = self.places(stage, [n.args[0] for n in reads])
        count = len(reads)
        dealt = (
            places is not None
            and count & (count - 1) == 0
            and size % count == 0
            and bool((places % count == np.arange(count)).all())
        )
        return Buffer(size, reads, count if dealt else 1)

    def places(self, stage: Stage, addresses: Sequence[Node]) -> np.ndarray | None:
        """Addresses [*loops, reads], if loop counters tell them."""
        found = [stage.graph.numbers(a, grid(stage.loops)) for a in addresses]
        known = [np.broadcast_to(f, stage.counts) for f in found if f is not None]
        return np.stack(known, axis=-1) if len(known) == len(found) else None

    def writing(self, stage: Stage, array: Array) -> End:
        """Raises UnsupportedError unless beats are given in order."""
        stores = self.stores[stage, array]
        found = self.sequence(stage, array, list(stores))
        if not found:
            raise self.refuse(f"{array.name} is not written in order, each element once")
        held, order = found
        values = list(stores.values())
        return End(stage, held, tuple(values[i] for i in order))

    def sequence(
        self, stage: Stage, array: Array, addresses: Sequence[Node]
    ) -> tuple[tuple[int, ...], list[int]] | None:
        """Loops that the addresses do not depend on, and the lanes in the addresses' order; None if out of order."""
        depth = self.depth.get(array, 0)
        places = self.places(stage, addresses)
        if places is None:
            return None
        held = tuple(i for i in range(depth, len(stage.loops)) if (places == places.take([0], axis=i)).all())
        for i in (*range(depth), *held):
            places = places.take([0], axis=i)
        order = [int(i) for i in np.argsort(places.reshape(-1, len(addresses))[0])]
        if not np.array_equal(places[..., order].ravel(), np.arange(math.prod(array.shape))):
            return None
        return held, order


def touches_stores(body: Sequence[Statement], array: Array) -> int:
    """How often the array is written."""
    return sum(
        s.count * touches_stores(s.body, array)
        if isinstance(s, For)
        else int(isinstance(s, Store) and s.array is array)
        for s in body
    )


def grid(loops: Sequence[For]) -> dict[Var, np.ndarray]:
    """The counters in all iterations, one axis each."""
    sizes = [loop.count for loop in loops]
    return {
        loop.counter: np.arange(loop.count).reshape([n if i == axis else 1 for i, n in enumerate(sizes)])
        for axis, loop in enumerate(loops)
    }


def _common(nests: Sequence[tuple[For, ...]]) -> tuple[For, ...]:
    """The loops around all."""
    return tuple(
        same[0] for same in itertools.takewhile(lambda s: len(set(s)) == 1, zip(*nests, strict=False))
    )


class _Iteration:
    """Statements of one iteration as nodes."""

    def __init__(self, owner: _Splitter, stage: Stage, body: Sequence[Statement]) -> None:
        self.owner, self.stage, self.graph = owner, stage, stage.graph
        written = {s.array for s in statements(body) if isinstance(s, Store)} - set(owner.kernel.outputs)
        #: Arrays that are both written and read here.
        self.own_arrays = {a for a in written if touches(body, a) > touches_stores(body, a)}
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
            else:
                assert isinstance(statement, Store)
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
            self.recalled[key] = self.graph.recall(array, self.compact(address)[0])
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


__all__ = ["Channel", "Counter", "End", "Pipeline", "Stage", "State", "split"]
