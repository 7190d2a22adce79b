"""Prints a kernel as one Verilog file: a module with streams of its inputs and outputs, and the stages inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lowerkit.targets.fpga.lang.expr import Array, Range
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.rtl.pipeline import Channel, Pipeline, Stage
from lowerkit.targets.fpga.rtl.stage import Printed, address_bits, print_stage
from lowerkit.targets.fpga.rtl.stages import split
from lowerkit.targets.fpga.rtl.verilog import bus, index_bits

#: Files of modules that designs share.
SHARED = ("lk_fifo", "lk_blocks", "lk_memory", "lk_multiply", "lk_widen", "lk_narrow")
TEMPLATES = Path(__file__).parent.parent / "templates"
#: Of a buffer: one is filled while the other one is read.
BLOCKS = 2
#: Of XLS's delay model.
PERIOD_PS = 1500
#: Rules of verilator's lint that are off, and why.
WAIVERS = {
    "DECLFILENAME": "a file holds all modules of a layer",
    "PINCONNECTEMPTY": "queues behind stages are never full, as their stages count places",
    "UNUSEDSIGNAL": "XLS computes whole sums and products of which some bits are cut",
}


@dataclass(frozen=True)
class Stream:
    """A port: NAME_data, of `lanes` numbers, the first one lowest, NAME_valid and NAME_ready.

    Attributes:
        beats: for one sample.
        blocks: of an input that is read only when a whole sample is there: the samples that the module has memory for.
    """

    name: str
    range: Range
    lanes: int
    beats: int
    blocks: int = 0

    @property
    def bits(self) -> int:
        """Of a beat."""
        return self.range.bits * self.lanes


@dataclass(frozen=True)
class Source:
    """What is printed of a kernel, or of a network's top module.

    Attributes:
        modules: Verilog; the module of this name is the last one.
        dslx: the functions that XLS made modules of.
        iterations: of all its pipelines, for one sample.
    """

    name: str
    modules: str
    dslx: str = ""
    iterations: int = 0


@dataclass(frozen=True)
class Link:
    """A channel between layers of a network, or between a layer and a port.

    Attributes:
        writer, reader: layers or ports.
        size: codes of a sample.
        depth: codes that its queue holds; 0 where there is none.
        start, end: wires of the top module, both with _valid and _ready: the writer's and the reader's.
    """

    name: str
    writer: str
    reader: str
    size: int
    depth: int
    start: str
    end: str


@dataclass(frozen=True)
class Rtl:
    """A kernel, or a network of them, in Verilog.

    Attributes:
        sources: all that is made for this design, the top module's last; `verilog` has the shared modules too.
        links: what joins the layers of a network.
    """

    name: str
    sources: tuple[Source, ...]
    inputs: tuple[Stream, ...]
    outputs: tuple[Stream, ...]
    links: tuple[Link, ...] = ()

    @property
    def dslx(self) -> str:
        """The functions that XLS made modules of."""
        return "\n".join(source.dslx for source in self.sources if source.dslx)

    @property
    def shared(self) -> dict[str, str]:
        """The shared modules that are used, by name."""
        used = [name for name in SHARED if any(f"  {name} #" in source.modules for source in self.sources)]
        return {name: (TEMPLATES / f"{name}.v").read_text() for name in used}

    @property
    def verilog(self) -> str:
        """One file with everything."""
        waivers = [f"// Lint: {why}.\n// verilator lint_off {rule}\n" for rule, why in WAIVERS.items()]
        return "\n".join([*waivers, *self.shared.values(), *(source.modules for source in self.sources)])


def print_rtl(kernel: Kernel, period_ps: int = PERIOD_PS) -> Rtl:
    """The kernel as Verilog, its logic cut for a period of XLS's delay model.

    A sample's beats come in row-major order; a beat passes at an edge of `clk` where valid and ready are both 1.

    Raises:
        UnsupportedError: for a kernel that is no pipeline of streams.
        ToolError: where XLS is not installed.
    """
    return print_pipeline(split(kernel), period_ps)


def print_pipeline(pipeline: Pipeline, period_ps: int = PERIOD_PS) -> Rtl:
    """As `print_rtl`, of a kernel that is split already."""
    return _Top(pipeline, period_ps).printed()


class _Top:
    def __init__(self, pipeline: Pipeline, period: int) -> None:
        self.pipeline, self.period = pipeline, period
        self.level = _levels(pipeline)
        #: Of each channel's queue, as a power of two.
        self.bits: dict[str, int] = {}
        self.stages: dict[Stage, Printed] = {}

    def printed(self) -> Rtl:
        for stage in self.pipeline.stages:
            # The depth decides nothing about latency: print once to learn it, and again with it.
            draft = print_stage(stage, {c.name: 1 for c in stage.gives}, self.period)
            for c in stage.gives:
                self.bits[c.name] = self.places(c, draft.latency[c.name])
            self.stages[stage] = print_stage(
                stage, {c.name: 1 << self.bits[c.name] for c in stage.gives}, self.period
            )
        kernel = self.pipeline.kernel
        modules = {m.name: m.verilog for p in self.stages.values() for m in p.modules}
        parts = [*modules.values(), *(p.verilog for p in self.stages.values()), self.top()]
        dslx = "\n".join(t for p in self.stages.values() for t in p.dslx)
        inputs, outputs = (
            tuple(self.stream(a) for a in arrays) for arrays in (kernel.inputs, kernel.outputs)
        )
        iterations = sum(math.prod(stage.counts) for stage in self.pipeline.stages)
        source = Source(kernel.name, "\n".join(parts), dslx, iterations)
        return Rtl(kernel.name, (source,), inputs, outputs)

    def stream(self, array: Array) -> Stream:
        channels = [c for c in self.pipeline.channels if c.key is array]
        size, first = math.prod(array.shape), channels[0]
        whole = first.writer is None and all(c.buffer and c.buffer.size == size for c in channels)
        return Stream(array.name, first.range, first.lanes, size // first.lanes, BLOCKS if whole else 0)

    def places(self, channel: Channel, latency: int) -> int:
        """Bits of a queue's address.

        Full speed needs a place for each beat on its way. Where the reader waits for something else as well, all
        that the writer may have to give before that comes has to fit, once more for each row that it is ahead.
        """
        least = latency + 3
        if channel.writer and (apart := channel.writer.apart) > 1:
            least = -(-least // apart) + 1
        if channel.reader and len(channel.reader.stage.takes) > 1 and not channel.buffer:
            behind = self.level[channel.reader.stage] - (
                self.level[channel.writer.stage] if channel.writer else 0
            )
            least = max(least, channel.beats * (1 + max(behind, 0)))
        return index_bits(least)

    def top(self) -> str:
        kernel, channels = self.pipeline.kernel, self.pipeline.channels
        ports, lines = ["input wire clk", "input wire rst"], []
        for array in kernel.inputs:
            found = [c for c in channels if c.key is array]
            ports += [
                f"input wire {bus(found[0].bits)}{array.name}_data",
                f"input wire {array.name}_valid",
                f"output wire {array.name}_ready",
            ]
            lines += self.entrance(array.name, found)
        for array in kernel.outputs:
            (channel,) = [c for c in channels if c.key is array]
            ports += [
                f"output wire {bus(channel.bits)}{array.name}_data",
                f"output wire {array.name}_valid",
                f"input wire {array.name}_ready",
            ]
        for c in channels:
            if c.writer:
                lines += self.queue(c, outside=c.reader is None)
        for stage in self.pipeline.stages:
            lines.append(self.instance(stage))
        head = f"// {kernel.comment}\nmodule {kernel.name} (\n  " + ",\n  ".join(ports) + "\n);"
        return "\n".join([head, *lines, "endmodule", ""])

    def entrance(self, name: str, channels: list[Channel]) -> list[str]:
        """An input, to one stage or to queues of several."""
        if len(channels) == 1 and not channels[0].buffer:
            return [f"  wire {name}_pop;", f"  assign {name}_ready = {name}_pop;"]
        lines = [f"  wire {c.name}_free;" for c in channels]
        lines.append(f"  assign {name}_ready = {' & '.join(f'{c.name}_free' for c in channels)};")
        lines.append(f"  wire {name}_push = {name}_valid & {name}_ready;")
        for c in channels:
            if c.buffer:
                lines += self.buffer(c, f"{name}_push", f"{name}_data")
                continue
            self.bits[c.name] = self.places(c, 1)
            lines += self.wires(c)
            lines.append(self.fifo(c, f"{name}_push", f"{name}_data", f"{c.name}_pop", f"{c.name}_free"))
        return lines

    def buffer(self, c: Channel, push: str, data: str) -> list[str]:
        """Memories of two blocks, a beat of which is written where `push` is 1."""
        assert c.buffer
        banks, lanes, bits = c.buffer.banks, _fed(c), address_bits(c)
        word = c.range.bits + c.place_bits
        beats = c.buffer.size // lanes
        counted = index_bits(beats)
        # A beat of one element goes to one bank, a beat of all banks' elements to each.
        dealt = 0 if lanes == banks else banks.bit_length() - 1
        place = f"{c.name}_place{f'[{counted - 1}:{dealt}]' if dealt else ''}"
        if c.place_bits:
            place = f"{data}[{word - 1}:{c.range.bits}]"
        to = f"{{{c.name}_half_in, {place}}}" if counted > dealt else f"{{{c.name}_half_in, 1'b0}}"
        lines = [
            f"  wire {bus(counted)}{c.name}_place;",
            f"  wire {c.name}_half_in, {c.name}_half, {c.name}_valid, {c.name}_pop, {c.name}_done;",
            f"  lk_blocks #(.SIZE({beats}), .BITS({counted})) u_{c.name}_blocks (.clk(clk), .rst(rst), .push({push}), "
            f".ready({c.name}_free), .place({c.name}_place), .half_in({c.name}_half_in), .valid({c.name}_valid), "
            f".pop({c.name}_pop), .half_out({c.name}_half), .done({c.name}_done));",
        ]
        for n in range(len(c.buffer.reads)):
            chosen = f" & {c.name}_place[{dealt - 1}:0] == {n}" if dealt else ""
            low = n * c.range.bits if lanes > 1 else 0
            part = f"{data}[{low} +: {c.range.bits}]" if lanes > 1 or c.place_bits else data
            lines += [
                f"  wire {bus(bits + 1)}{c.name}_{n}_from;",
                f"  wire {bus(c.range.bits)}{c.name}_{n}_word;",
                f"  lk_memory #(.WIDTH({c.range.bits}), .BITS({bits + 1})) u_{c.name}_{n} (.clk(clk), "
                f".write({push}{chosen}), .to({to}), .in({part}), .from({c.name}_{n}_from), .out({c.name}_{n}_word));",
            ]
        return lines

    def wires(self, c: Channel) -> list[str]:
        return [f"  wire {bus(c.bits)}{c.name}_out;", f"  wire {c.name}_valid;", f"  wire {c.name}_pop;"]

    def fifo(self, c: Channel, push: str, data: str, pop: str, ready: str) -> str:
        return (
            f"  lk_fifo #(.WIDTH({c.bits}), .BITS({self.bits[c.name]})) u_{c.name} (.clk(clk), .rst(rst), "
            f".push({push}), .in({data}), .pop({pop}), .out({c.name}_out), .valid({c.name}_valid), .ready({ready}));"
        )

    def queue(self, c: Channel, outside: bool) -> list[str]:
        """Behind a stage."""
        lines = [f"  wire {bus(c.bits)}{c.name}_in;", f"  wire {c.name}_push;"]
        if outside:
            lines += [f"  wire {c.name}_pop = {c.name}_valid & {c.name}_ready;"]
            queue = self.fifo(c, f"{c.name}_push", f"{c.name}_in", f"{c.name}_pop", "")
            return [*lines, queue.replace(f".out({c.name}_out)", f".out({c.name}_data)")]
        if c.buffer:
            lines += [
                f"  wire {bus(c.bits)}{c.name}_out;",
                f"  wire {c.name}_due, {c.name}_taken, {c.name}_free;",
            ]
            queue = self.fifo(c, f"{c.name}_push", f"{c.name}_in", f"{c.name}_taken", "")
            lines.append(queue.replace(f".valid({c.name}_valid)", f".valid({c.name}_due)"))
            if _fed(c) == c.lanes:
                lines.append(f"  assign {c.name}_taken = {c.name}_due & {c.name}_free;")
                return [*lines, *self.buffer(c, f"{c.name}_taken", f"{c.name}_out")]
            word, bits = c.bits // c.lanes, (c.lanes - 1).bit_length()
            lines += [
                f"  wire {bus(word)}{c.name}_word;",
                f"  wire {c.name}_open, {c.name}_given;",
                f"  assign {c.name}_taken = {c.name}_due & {c.name}_open;",
                f"  lk_narrow #(.WIDTH({word}), .LANES({c.lanes}), .BITS({bits})) u_{c.name}_narrow (.clk(clk), "
                f".rst(rst), .in({c.name}_out), .in_valid({c.name}_due), .in_ready({c.name}_open), "
                f".out({c.name}_word), .out_valid({c.name}_given), .out_ready({c.name}_free));",
            ]
            return [*lines, *self.buffer(c, f"{c.name}_given & {c.name}_free", f"{c.name}_word")]
        return [*lines, *self.wires(c), self.fifo(c, f"{c.name}_push", f"{c.name}_in", f"{c.name}_pop", "")]

    def instance(self, stage: Stage) -> str:
        ports = [".clk(clk)", ".rst(rst)"]
        for c in stage.takes:
            ports += [f".{c.name}_valid({c.name}_valid)", f".{c.name}_pop({c.name}_pop)"]
            if not c.buffer:
                direct = c.writer is None and c.name == c.key.name
                ports.append(f".{c.name}_data({c.name}_{'data' if direct else 'out'})")
                continue
            wires = [f"{c.name}_half", f"{c.name}_done"]
            wires += [f"{c.name}_{n}_{end}" for n in range(len(c.buffer.reads)) for end in ("from", "word")]
            ports += [f".{wire}({wire})" for wire in wires]
        for c in stage.gives:
            ports += [
                f".{c.name}_data({c.name}_in)",
                f".{c.name}_push({c.name}_push)",
                f".{c.name}_popped({c.name}_{'taken' if c.buffer else 'pop'})",
            ]
        return f"  {stage.name} u_{stage.name} (\n    " + ",\n    ".join(ports) + "\n  );"


def _fed(c: Channel) -> int:
    """Elements that a buffer takes at once: all banks' elements, or one after the other."""
    assert c.buffer
    return c.lanes if c.lanes == c.buffer.banks and not c.place_bits else 1


def _levels(pipeline: Pipeline) -> dict[Stage, int]:
    """How many rows a stage is behind the first one: what comes at a loop's end comes a row later."""
    level: dict[Stage, int] = {}
    for stage in pipeline.stages:
        level[stage] = max(
            (
                level[c.writer.stage] + (len(c.writer.held) > 0 or c.buffer is not None)
                for c in stage.takes
                if c.writer
            ),
            default=0,
        )
    return level
