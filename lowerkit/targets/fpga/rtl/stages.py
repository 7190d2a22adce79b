"""Splits a kernel into stages that work at the same time, and the channels between them.

A stage is a pipelined loop, or straight code, with all loops around it: it starts an iteration each cycle. What the
kernel does one after the other, stages do on different rows: a stage may normalise a row while the one before sums up
the next. Values that a stage computes for others travel as tokens, one for each iteration of the loops that are around
both; arrays that are written and read in order travel as streams of beats, a beat being what one iteration touches.
An array that is read in another order, or more than once, goes through a buffer of two blocks: one is filled in order
while the other one is read.

An output that is written in another order is sorted by such a buffer, too, whose elements come with their addresses.

An array of which several loops write a part each is joined, see `joins`. A register that several stages update in turn
is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lowerkit.errors import UnsupportedError
from lowerkit.targets.fpga.lang.access import statements
from lowerkit.targets.fpga.lang.expr import Array, Counter, Range, Var
from lowerkit.targets.fpga.lang.program import For, Kernel, Local, Statement, Store
from lowerkit.targets.fpga.rtl.graph import Graph, Node, Source
from lowerkit.targets.fpga.rtl.iteration import Iteration
from lowerkit.targets.fpga.rtl.joins import joined
from lowerkit.targets.fpga.rtl.pipeline import Buffer, Channel, End, Pipeline, Stage, State, grid
from lowerkit.targets.fpga.rtl.verilog import index_bits


def split(kernel: Kernel) -> Pipeline:
    """The kernel as stages. Raises UnsupportedError for what no stages and streams can do."""
    buffered: dict[tuple[int, Array], int] = {}
    placed: set[Array] = set()
    while True:
        # Only what is found not to be in order is buffered, and then all is read anew.
        try:
            return Splitter(kernel, buffered, placed).split()
        except _Unordered as found:
            buffered[found.stage.index, found.array] = found.depth
        except _Scattered as found:
            kernel, local = _sorted(kernel, found.array)
            placed.add(local)


class _Unordered(Exception):
    """A stage reads an array otherwise than in order; each iteration of its first `depth` loops reads a block."""

    def __init__(self, stage: Stage, array: Array, depth: int) -> None:
        super().__init__(array.name)
        self.stage, self.array, self.depth = stage, array, depth


class _Scattered(Exception):
    """An output that is not written in order."""

    def __init__(self, array: Array) -> None:
        super().__init__(array.name)
        self.array = array


def _sorted(kernel: Kernel, output: Array) -> tuple[Kernel, Array]:
    """The same kernel with a local array in place of an output, and a loop at the end that copies it in order."""
    local = Array(f"{output.name}_placed", output.shape, output.range)

    def moved(body: Iterable[Statement]) -> tuple[Statement, ...]:
        found: list[Statement] = []
        for s in body:
            if isinstance(s, For):
                s = replace(s, body=moved(s.body))
            elif isinstance(s, Store) and s.array is output:
                s = replace(s, array=local)
            found.append(s)
        return tuple(found)

    counters = [
        Counter(f"{output.name}_i{axis}", Range(0, size - 1)) for axis, size in enumerate(output.shape)
    ]
    copy: Statement = Store(output, tuple(counters), local[tuple(counters)])
    for axis, counter in reversed(list(enumerate(counters))):
        copy = For(counter, output.shape[axis], (copy,), False, axis == len(counters) - 1, "")
    return replace(kernel, body=(Local(local), *moved(kernel.body), copy)), local


class Splitter:
    """Goes through the kernel's blocks in order, a stage for each, and connects them in the end."""

    def __init__(
        self, kernel: Kernel, buffered: Mapping[tuple[int, Array], int], placed: Collection[Array]
    ) -> None:
        self.kernel, self.buffered, self.placed = kernel, buffered, placed
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
        work = Iteration(self, stage, body)
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
        if written is not None and not writers:
            raise self.refuse(f"nothing writes {array.name}")
        if len(writers) > 1:
            writers = [joined(self, array, writers)]
        if set(writers) & set(readers):
            raise self.refuse(f"{array.name} is read and written by one loop")
        source = None
        if writers:
            source = (self.placing if array in self.placed else self.writing)(writers[0], array)
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
        place_bits = 0
        if array in self.placed:
            lanes, place_bits = lanes // 2, index_bits(math.prod(array.shape))
        whole = math.prod(array.shape) if len(streams) < len(readers) else 1
        for end in ends:
            buffer = self.buffer(end, array) if end and (end.stage.index, array) in self.buffered else None
            if buffer and not writers and lanes not in (1, buffer.banks):
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
            self.attach(Channel(name, array, array.range, lanes, source, end, beats, buffer, place_bits))

    def reading(self, stage: Stage, array: Array) -> End:
        """Of a stream, or of a buffer's blocks. Raises _Unordered where it has to be a buffer and is none yet."""
        depth = self.buffered.get((stage.index, array))
        if depth is not None:
            return End(stage, tuple(range(depth, len(stage.loops))))
        found = None if array in self.placed else self.sequence(stage, array, self.loads[stage, array])
        if found:
            held, order = found
            suffix = tuple(range(len(stage.loops) - len(held), len(stage.loops)))
            if order == list(range(len(order))) and held == suffix:
                return End(stage, held)
        raise _Unordered(stage, array, 0 if array in self.placed else self.blocks(stage, array))

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
        """Raises _Scattered for an output, UnsupportedError for others, unless beats are given in order."""
        stores = self.stores[stage, array]
        found = self.sequence(stage, array, list(stores))
        if not found and array in self.kernel.outputs:
            raise _Scattered(array)
        if not found:
            raise self.refuse(f"{array.name} is not written in order, each element once")
        held, order = found
        values = list(stores.values())
        return End(stage, held, tuple(values[i] for i in order))

    def placing(self, stage: Stage, array: Array) -> End:
        """Of a writer that gives each element once, with its address."""
        stores = self.stores[stage, array]
        held, places = self.written(stage, array)
        if not np.array_equal(np.sort(places.ravel()), np.arange(math.prod(array.shape))):
            raise self.refuse(f"{array.name} is not written once at each element")
        return End(stage, held, tuple(n for address, value in stores.items() for n in (value, address)))

    def written(self, stage: Stage, array: Array) -> tuple[tuple[int, ...], np.ndarray]:
        """Loops that a writer's addresses do not depend on, and its addresses [*loops, writes], 1 for each of those."""
        places = self.places(stage, list(self.stores[stage, array]))
        if places is None:
            raise self.refuse(f"{array.name} is written at places that depend on data")
        return _held(places, range(places.ndim - 1))

    def sequence(
        self, stage: Stage, array: Array, addresses: Sequence[Node]
    ) -> tuple[tuple[int, ...], list[int]] | None:
        """Loops that the addresses do not depend on, and the lanes in the addresses' order; None if out of order."""
        depth = self.depth.get(array, 0)
        places = self.places(stage, addresses)
        if places is None:
            return None
        held, places = _held(places, range(depth, len(stage.loops)))
        for i in range(depth):
            places = places.take([0], axis=i)
        order = [int(i) for i in np.argsort(places.reshape(-1, len(addresses))[0])]
        if not np.array_equal(places[..., order].ravel(), np.arange(math.prod(array.shape))):
            return None
        return held, order


def _held(places: np.ndarray, loops: Iterable[int]) -> tuple[tuple[int, ...], np.ndarray]:
    """The loops that addresses [*loops, reads or writes] do not depend on, and the addresses in one round of those."""
    held = tuple(i for i in loops if (places == places.take([0], axis=i)).all())
    for i in held:
        places = places.take([0], axis=i)
    return held, places


def _common(nests: Sequence[tuple[For, ...]]) -> tuple[For, ...]:
    """The loops around all."""
    return tuple(
        same[0] for same in itertools.takewhile(lambda s: len(set(s)) == 1, zip(*nests, strict=False))
    )
