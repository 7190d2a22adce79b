"""A design as processes that run at the same time, joined by channels of one writer and one reader.

HLS's DATAFLOW region asks for such a network. A value that several layers read goes through a fork, which copies it.
Each channel is one of two kinds:

fifo    where its writer writes, and its reader reads, every code once and in order, one each cycle: the reader starts
        with the first code;
pipo    blocks of a whole value (ping-pong buffers) elsewhere: the reader starts when the writer has finished a sample.

Depths keep the network from deadlock. A channel that is no part of an (undirected) cycle of the network separates its
writer's side from its reader's, which then never waits for what is behind it: two codes do. On a cycle, a skip
connection for example, a channel holds whole samples, so that running the processes one after the other, sample by
sample, is a possible order; a network of processes that do not look at whether a channel is empty gives the same
codes in every order (Kahn, The semantics of a simple language for parallel programming, 1974), and does not stop
before. On a path that is shorter by s blocks than the longest one between the same processes, channels have s blocks
more: with them all processes work on different samples at the same time.

Processes of a dataflow region cannot share a function. Where layers share a unit, all run one after the other, and
every value is a plain buffer, which any number of layers read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowerkit.errors import UnsupportedError
from lowerkit.targets.fpga.design import Design, Layer
from lowerkit.targets.fpga.lang.access import SINGLE, Banks, banks, per_cycle, sequential
from lowerkit.targets.fpga.lang.expr import Array, Range
from lowerkit.targets.fpga.lang.program import Builder, Kernel

#: Codes of a FIFO that couples two processes and nothing else.
COUPLING = 2


@dataclass(frozen=True)
class Process:
    """Something that runs for itself.

    Attributes:
        kind: `load` and `store` move a port's codes, `fork` copies, `layer` is a layer of the design.
        kernel: what it does; that of loads and stores is a copy.
        reads, writes: names of channels, in the order of the kernel's arrays; of ports for loads and stores.
    """

    name: str
    kind: str
    kernel: Kernel
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    layer: Layer | None = None


@dataclass(frozen=True)
class Channel:
    """Memory between two processes.

    Attributes:
        range, size: of its codes.
        writer, reader: processes; several may read a buffer.
        kind: `fifo` or `pipo`; `buffer` where processes run one after the other.
        depth: codes of a fifo, blocks of a pipo or buffer.
        banks: how it is split over memories; fifos are not.
        reason: why it is of this kind, for those who read the description.
    """

    name: str
    range: Range
    size: int
    writer: str
    reader: str
    kind: str
    depth: int
    banks: Banks
    reason: str

    @property
    def bits(self) -> int:
        """Of memory."""
        return self.range.bits * self.depth * (1 if self.kind == "fifo" else self.size)


@dataclass(frozen=True)
class Network:
    """Processes in an order in which they can run, the channels between them, and the C names of the ports.

    Attributes:
        units: the functions that several layers share. With them, processes run one after the other.
    """

    processes: tuple[Process, ...]
    channels: tuple[Channel, ...]
    ports: Mapping[str, str]
    units: tuple[str, ...] = ()


def network(design: Design) -> Network:
    """The design as a dataflow network. Raises UnsupportedError for a value that nothing reads."""
    found = _Wiring(design)
    channels = _buffers(found) if found.units else _channels(found)
    return Network(tuple(found.processes), channels, found.ports, found.units)


def copy(name: str, size: int, codes: Range, count: int = 1) -> Kernel:
    """A kernel that writes its input to `count` outputs, a code each cycle."""
    k = Builder(name, f"{count} copies of {size} codes" if count > 1 else f"{size} codes moved")
    source = k.input("x", (size,), codes)
    targets = [k.output(f"y{n}", (size,), codes) for n in range(count)]
    with k.loop("i", size, pipeline=True) as i:
        code = k.let("code", source[i])
        for target in targets:
            k.store(target, i, code)
    return k.finish()


class _Wiring:
    """Names channels and inserts loads, forks and stores."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.processes: list[Process] = []
        self.units = tuple(dict.fromkeys(la.kernel.name for la in design.layers if la.job is not None))
        self.names: set[str] = {design.name, *self.units}
        self.readers = self._readers()
        self.ports = {p.value: self.name(f"v_{p.value}") for p in (*design.inputs, *design.outputs)}
        #: The channel that each reader of a value takes, in order.
        self.given: dict[str, list[str]] = {}
        #: Of channels, in codes.
        self.sizes: dict[str, int] = {}
        for port in design.inputs:
            kernel = copy(self.name(f"load_{port.value}"), port.size, port.format.range)
            self.processes.append(
                self.written(port.value, Process(kernel.name, "load", kernel, (port.value,), ()))
            )
            self.fork(port.value)
        for layer in design.layers:
            reads = tuple(self.given[design.stored(v)].pop(0) for v in layer.reads)
            process = Process(layer.name, "layer", layer.kernel, reads, (), layer)
            for value in layer.writes:
                process = self.written(value, process)
            self.processes.append(process)
            for value in layer.writes:
                self.fork(value)
        for port in design.outputs:
            kernel = copy(self.name(f"store_{port.value}"), port.size, port.format.range)
            channel = self.given[design.stored(port.value)].pop(0)
            self.processes.append(Process(kernel.name, "store", kernel, (channel,), (port.value,)))

    def _readers(self) -> dict[str, int]:
        count: dict[str, int] = {}
        read = [v for layer in self.design.layers for v in layer.reads]
        for value in [*read, *(p.value for p in self.design.outputs)]:
            stored = self.design.stored(value)
            count[stored] = count.get(stored, 0) + 1
        return count

    def name(self, text: str) -> str:
        """A C identifier, not used before."""
        base = "".join(c if c.isascii() and c.isalnum() else "_" for c in text)
        found, n = base, 1
        while found in self.names:
            found, n = f"{base}_{n}", n + 1
        self.names.add(found)
        return found

    def written(self, value: str, process: Process) -> Process:
        """The process with a new channel for a value that it writes."""
        channel = self.name(f"c_{value}")
        self.given[value], self.sizes[channel] = [channel], self.design.values[value].size
        return Process(
            process.name,
            process.kind,
            process.kernel,
            process.reads,
            (*process.writes, channel),
            process.layer,
        )

    def fork(self, value: str) -> None:
        """Copies, where there are several readers; a buffer has any number of them."""
        count = self.readers.get(value, 0)
        if count == 0:
            raise UnsupportedError(
                f"nothing reads value '{value}', and hardware would wait for a reader",
                hint="remove it from the graph, or make it an output",
            )
        if count == 1 or self.units:
            self.given[value] *= count
            return
        port = self.design.values[value]
        kernel = copy(self.name(f"fork_{value}"), port.size, port.format.range, count)
        copies = [self.name(f"c_{value}_{n}") for n in range(count)]
        self.processes.append(Process(kernel.name, "fork", kernel, tuple(self.given[value]), tuple(copies)))
        self.given[value] = copies


@dataclass(frozen=True)
class _End:
    """One end of a channel: a process and the array of its kernel."""

    process: Process
    array: Array


def _channels(wiring: _Wiring) -> tuple[Channel, ...]:
    writers, readers = _ends(wiring.processes)
    kinds = {name: _kind(writers[name], readers[name]) for name in writers}
    edges = {name: (writers[name].process.name, readers[name].process.name) for name in writers}
    level = _levels(wiring.processes, edges, {name: kind == "pipo" for name, (kind, _) in kinds.items()})
    looped = on_cycles(edges)
    found = []
    for name, (kind, reason) in kinds.items():
        writer, reader = edges[name]
        size, slack = math.prod(writers[name].array.shape), level[reader] - level[writer]
        if kind == "pipo":
            depth, spread = 1 + slack, SINGLE
            for end in (writers[name], readers[name]):
                spread = spread.union(banks(end.process.kernel, end.array, flat=True)[0])
            if spread.factor >= size:
                spread = Banks(size, True, spread.proven)
        else:
            depth, spread = (size * (1 + slack) if name in looped else min(COUPLING, size)), SINGLE
        found.append(
            Channel(name, writers[name].array.range, size, writer, reader, kind, depth, spread, reason)
        )
    return tuple(found)


def _buffers(wiring: _Wiring) -> tuple[Channel, ...]:
    """One for each value, split over memories as all that touch it ask."""
    writers: dict[str, _End] = {}
    readers: dict[str, list[_End]] = {}
    for p in wiring.processes:
        if p.kind != "load":
            # A unit's last input, its job, is no channel.
            for name, array in zip(p.reads, p.kernel.inputs, strict=p.layer is None or p.layer.job is None):
                readers.setdefault(name, []).append(_End(p, array))
        if p.kind != "store":
            writers.update({n: _End(p, a) for n, a in zip(p.writes, p.kernel.outputs, strict=True)})
    found = []
    for name, writer in writers.items():
        ends, size, spread = [writer, *readers[name]], wiring.sizes[name], SINGLE
        for end in ends:
            spread = spread.union(banks(end.process.kernel, end.array, flat=True)[0])
        if spread.factor >= size:
            spread = Banks(size, True, spread.proven)
        found.append(
            Channel(
                name,
                writer.array.range,
                size,
                writer.process.name,
                ", ".join(end.process.name for end in ends[1:]),
                "buffer",
                1,
                spread,
                "processes run one after the other",
            )
        )
    return tuple(found)


def _ends(processes: Sequence[Process]) -> tuple[dict[str, _End], dict[str, _End]]:
    """Of each channel."""
    writers, readers = {}, {}
    for p in processes:
        if p.kind != "load":
            readers.update({n: _End(p, a) for n, a in zip(p.reads, p.kernel.inputs, strict=True)})
        if p.kind != "store":
            writers.update({n: _End(p, a) for n, a in zip(p.writes, p.kernel.outputs, strict=True)})
    return writers, readers


def _kind(writer: _End, reader: _End) -> tuple[str, str]:
    """Of a channel, and the reason."""
    for end, verb in ((writer, "writes"), (reader, "reads")):
        if not sequential(end.process.kernel, end.array):
            return "pipo", f"{end.process.name} {verb} in another order, or more than once"
        if (lanes := per_cycle(end.process.kernel, end.array)) > 1:
            return "pipo", f"{end.process.name} {verb} {lanes} codes each cycle"
    return "fifo", "written and read once, in order"


def _levels(
    processes: Sequence[Process], edges: Mapping[str, tuple[str, str]], blocks: Mapping[str, bool]
) -> dict[str, int]:
    """How many samples a process is behind the first one at most, each pipo on the way being one."""
    level = {p.name: 0 for p in processes}
    for p in processes:
        if p.kind != "load":
            level[p.name] = max((level[edges[c][0]] + blocks[c] for c in p.reads), default=0)
    return level


def on_cycles(edges: Mapping[str, tuple[str, str]]) -> set[str]:
    """Edges whose ends are joined without them, whatever the direction: no bridges (Tarjan 1974)."""
    around: dict[str, list[tuple[str, str]]] = {}
    for name, (a, b) in edges.items():
        around.setdefault(a, []).append((name, b))
        around.setdefault(b, []).append((name, a))
    found: set[str] = set()
    for name, (start, goal) in edges.items():
        seen, ahead = {start}, [start]
        while ahead and goal not in seen:
            for edge, place in around[ahead.pop()]:
                if edge != name and place not in seen:
                    seen.add(place)
                    ahead.append(place)
        if goal in seen:
            found.add(name)
    return found
