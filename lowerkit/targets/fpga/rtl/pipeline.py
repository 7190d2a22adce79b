"""What a kernel's pipelines are made of: stages, what they keep, and the channels between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lowerkit.targets.fpga.lang.expr import Array, Range, Var
from lowerkit.targets.fpga.lang.program import For, Kernel
from lowerkit.targets.fpga.rtl.graph import Graph, Node


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
        nodes: of a writer, what it writes; where that is at addresses, each number's follows.
        held: places of loops that are at their last iteration where a beat is taken or given.
        within: of a reader, a loop's place and the iterations, from and to, in which beats are taken; None for all.
    """

    stage: Stage
    held: tuple[int, ...]
    nodes: tuple[Node, ...] = ()
    within: tuple[int, int, int] | None = None

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
        place_bits: of an address that goes with each number, above it, where the writer writes at addresses.
    """

    name: str
    key: Array | Var
    range: Range
    lanes: int
    writer: End | None
    reader: End | None
    beats: int = 1
    buffer: Buffer | None = None
    place_bits: int = 0

    @property
    def bits(self) -> int:
        """Of a beat; the first lane is lowest."""
        return (self.range.bits + self.place_bits) * self.lanes


@dataclass(eq=False)
class Stage:
    """One pipeline.

    Attributes:
        loops: all loops around; the last one is the innermost.
        index: a number of its own, in the order in which stages are found.
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


def grid(loops: Sequence[For]) -> dict[Var, np.ndarray]:
    """The counters in all iterations, one axis each."""
    sizes = [loop.count for loop in loops]
    return {
        loop.counter: np.arange(loop.count).reshape([n if i == axis else 1 for i, n in enumerate(sizes)])
        for axis, loop in enumerate(loops)
    }
