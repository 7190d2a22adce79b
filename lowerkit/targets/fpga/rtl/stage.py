"""Prints a stage as a Verilog module.

An iteration starts when every channel that is read has a beat and every channel that is written has room for what
iterations on their way will bring; once started it never stops, so that nothing in the pipeline has to be held. Time
is counted in cycles from there; values are delayed to where they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lowerkit.targets.fpga.rtl import dslx, rom
from lowerkit.targets.fpga.rtl.graph import Node
from lowerkit.targets.fpga.rtl.pipeline import Channel, End, Stage
from lowerkit.targets.fpga.rtl.schedule import MEMORIES, Recurrence, steps
from lowerkit.targets.fpga.rtl.verilog import bus, index_bits, number, read

#: Cycles of reading a memory: its own register, and one behind it, as block RAMs are slow to answer.
READ = 2


@dataclass(frozen=True)
class Printed:
    """A stage's module.

    Attributes:
        latency: cycles from an iteration's start to each channel's push.
        room: places of each channel that is written.
    """

    verilog: str
    modules: tuple[dslx.Module, ...]
    dslx: tuple[str, ...]
    latency: dict[str, int]


def address_bits(channel: Channel) -> int:
    """Of a buffer's memories, for one of the two blocks."""
    assert channel.buffer
    return index_bits(channel.buffer.size // channel.buffer.banks)


def print_stage(stage: Stage, depths: dict[str, int], period_ps: int) -> Printed:
    """The stage with pipelines cut for a period; `depths` are the places of the channels that it writes."""
    return _Printer(stage, depths, period_ps).printed()


@dataclass
class _Printer:
    stage: Stage
    depths: dict[str, int]
    period: int
    lines: list[str] = field(default_factory=list)
    names: dict[Node, str] = field(default_factory=dict)
    time: dict[Node, int] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    delays: dict[tuple[str, int], str] = field(default_factory=dict)
    modules: list[dslx.Module] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    fresh: set[Node] = field(default_factory=set)
    ii: int = 1
    last_fetch: dict[str, int] = field(default_factory=dict)

    def printed(self) -> Printed:
        self.sources()
        self.issue()
        # Beats are registered first: they may come straight from a block RAM.
        now = 1
        wanted = steps(self.stage)
        later: list[set[Node]] = [
            self.finals() | {n for m in self.stage.memories for n in (m.index, m.value)}
        ]
        for step in reversed(wanted):
            used = {a for n in (*step.logic, *step.reads) for a in n.args}
            used |= {n for r in step.recurrences for n in r.inputs}
            later.append(later[-1] | used)
        for k, step in enumerate(wanted):
            after = later[len(wanted) - 1 - k] | {a for n in step.reads for a in n.args}
            after |= {n for r in step.recurrences for n in r.inputs}
            if step.logic:
                now += self.logic(k, step.logic, after, now)
            self.reads(step.reads, now)
            for n, recurrence in enumerate(step.recurrences):
                self.recurrence(f"{k}_{n}", recurrence, later[len(wanted) - 1 - k], now)
            edges = [READ if n.op in MEMORIES else 1 for n in step.reads]
            now += max(edges, default=1 if step.recurrences else 0)
        self.release()
        self.keep()
        latency = {c.name: self.give(c) for c in self.stage.gives}
        return Printed(self.module(), tuple(self.modules), tuple(self.texts), latency)

    def finals(self) -> set[Node]:
        return {n for c in self.stage.gives if c.writer for n in c.writer.nodes}

    # Beginning an iteration.

    def sources(self) -> None:
        """Counters, and the flags that depend on them."""
        counts = self.stage.counts
        for i, count in enumerate(counts):
            bits = index_bits(count)
            self.lines.append(f"  reg {bus(bits)}count_{i};")
            self.lines.append(f"  wire last_{i} = count_{i} == {number(count - 1, bits)};")
        if not counts:
            self.lines.append("  // One iteration for each beat.")
        self.lines += ["  wire issue;", "  always @(posedge clk) begin", "    if (rst) begin"]
        self.lines += [f"      count_{i} <= 0;" for i in range(len(counts))]
        self.lines.append("    end else if (issue) begin")
        for i in reversed(range(len(counts))):
            inner = " & ".join(f"last_{j}" for j in range(i + 1, len(counts)))
            step = f"count_{i} <= last_{i} ? {number(0, index_bits(counts[i]))} : count_{i} + 1'b1;"
            self.lines.append(f"      if ({inner}) {step}" if inner else f"      {step}")
        self.lines += ["    end", "  end"]
        for state in self.stage.states:
            zero = " & ".join(f"count_{i} == 0" for i in range(state.depth, len(counts))) or "1'b1"
            if f"first_{state.depth}" not in self.taken:
                self.taken.add(f"first_{state.depth}")
                self.lines.append(f"  wire first_{state.depth} = {zero};")

    def held(self, channel: Channel) -> str:
        """Whether a beat is taken or given in an iteration."""
        end = channel.reader if channel in self.stage.takes else channel.writer
        assert end
        return " & ".join([*(f"last_{i}" for i in end.held), *self.within(end)]) or "1'b1"

    def within(self, end: End) -> list[str]:
        """Conditions for the iterations in which an end is used."""
        if end.within is None:
            return []
        i, first, last = end.within
        count = self.stage.counts[i]
        bits = index_bits(count)
        after = [f"(count_{i} >= {number(first, bits)})"] if first else []
        return [*after, *([f"(count_{i} < {number(last, bits)})"] if last < count else [])]

    def issue(self) -> None:
        """When an iteration starts, and the channels' part in it."""
        asked = []
        for c in self.stage.takes:
            inner = self.within(c.reader) if c.reader else []
            asked.append(f"{c.name}_valid | ~({' & '.join(inner)})" if inner else f"{c.name}_valid")
        if self.stage.memories:
            self.lines.append("  wire pace;")
            asked.append("pace")
        for c in self.stage.takes:
            self.lines.append(f"  assign {c.name}_pop = issue & {self.held(c)};")
        for c in self.stage.gives:
            bits = self.depths[c.name].bit_length()
            self.lines += [
                f"  wire {c.name}_due = issue & {self.held(c)};",
                f"  reg {bus(bits)}{c.name}_room;",
                "  always @(posedge clk) begin",
                f"    if (rst) {c.name}_room <= {number(self.depths[c.name], bits)};",
                f"    else if ({c.name}_due & ~{c.name}_popped) {c.name}_room <= {c.name}_room - 1'b1;",
                f"    else if (~{c.name}_due & {c.name}_popped) {c.name}_room <= {c.name}_room + 1'b1;",
                "  end",
            ]
            assert c.writer
            free = f"{c.name}_room != 0"
            asked.append(f"{free} | ~({self.held(c)})" if c.writer.held else free)
        self.lines.append(f"  assign issue = {' & '.join(f'({a})' if ' ' in a else a for a in asked)};")

    # Values in time.

    def name(self, node: Node, hint: str = "v") -> str:
        """A new name, for a node's value where it is first known."""
        label = "".join(c if c.isalnum() else "_" for c in (node.name or hint))
        found, n = label, 1
        while found in self.taken or found in ("issue", "clk", "rst"):
            found, n = f"{label}_{n}", n + 1
        self.taken.add(found)
        self.names[node] = found
        return found

    def at(self, node: Node, time: int) -> str:
        """A node's value, delayed to a time."""
        if node.value is not None:
            return number(node.value, node.range.bits)
        if node.op == "source" and node not in self.names:
            self.time[node] = 0
            self.lines.append(f"  wire {bus(node.range.bits)}{self.name(node)} = {self.outside(node)};")
        return self.delayed(self.names[node], node.range.bits, self.time[node], time)

    def outside(self, node: Node) -> str:
        source = node.detail
        if source.kind == "counter":
            return f"count_{[loop.counter for loop in self.stage.loops].index(source.key)}"
        channel = next(c for c in self.stage.takes if c.key is source.key)
        low = source.lane * channel.range.bits
        return (
            f"{channel.name}_data"
            if channel.lanes == 1
            else f"{channel.name}_data[{low} +: {channel.range.bits}]"
        )

    def delayed(self, name: str, bits: int, since: int, time: int, reset: bool = False) -> str:
        """A wire, some cycles later."""
        found = name
        for t in range(since + 1, time + 1):
            if (name, t) not in self.delays:
                label = f"{name}_t{t}"
                self.taken.add(label)
                driven = f"rst ? 1'b0 : {found}" if reset else found
                self.lines.append(f"  reg {bus(bits)}{label};")
                self.lines.append(f"  always @(posedge clk) {label} <= {driven};")
                self.delays[name, t] = label
            found = self.delays[name, t]
        return found

    # Steps.

    def logic(self, k: int, nodes: tuple[Node, ...], after: Iterable[Node], now: int) -> int:
        """A pipelined function; its latency."""
        wanted = set(after)
        outputs = [n for n in nodes if n in wanted]
        return self.call(f"{self.stage.name}_logic{k}", nodes, outputs, now, self.period)

    def call(
        self, name: str, nodes: tuple[Node, ...], outputs: list[Node], now: int, period: int | None
    ) -> int:
        """An instance of a function of what the nodes need from elsewhere; its latency."""
        inner = set(nodes)
        inputs = dict.fromkeys(a for n in nodes for a in n.args if a not in inner)
        return self.instance(
            name, {n: self.at(n, now) for n in inputs if n.op != "const"}, nodes, outputs, now, period
        )

    def instance(
        self,
        name: str,
        wires: dict[Node, str],
        nodes: tuple[Node, ...],
        outputs: list[Node],
        now: int,
        period: int | None,
    ) -> int:
        # Parameters are ports of the module, after these.
        labels = {n: f"{wire.lower()}_i{i}" for i, (n, wire) in enumerate(wires.items())}
        consts = tuple(dict.fromkeys(a for n in nodes for a in n.args if a.op == "const"))
        text = dslx.function(name, f"Of {self.stage.name}.", labels, (*consts, *nodes), outputs)
        module = dslx.verilog(name, text, period)
        self.modules.append(module)
        self.texts.append(text)
        ports = [f".{labels[n]}({wire})" for n, wire in wires.items()]
        if period is not None:
            ports.insert(0, ".clk(clk)")
        for node in outputs:
            self.lines.append(f"  wire {bus(node.range.bits)}{self.name(node)};")
            self.time[node] = now + module.latency
        ports.append(f".out({{{', '.join(self.names[n] for n in outputs)}}})")
        self.lines.append(f"  {name} u_{name} ({', '.join(ports)});")
        return module.latency

    def reads(self, nodes: Iterable[Node], now: int) -> None:
        """Products, memories, and tables: those that are read at the same address have their words in one."""
        kinds = {"mul": self.multiply, "fetch": self.fetch, "recall": self.recall}
        tables: dict[Node, list[Node]] = {}
        for node in nodes:
            if node.op in kinds:
                self.lines += kinds[node.op](node, now)
            else:
                tables.setdefault(node.args[0], []).append(node)
        for place, found in tables.items():
            address = self.sized(place, index_bits(max(len(n.detail) for n in found)), now)
            self.time |= dict.fromkeys(found, now + READ)
            self.lines += rom.tables(
                [(self.name(n), n.detail.tolist(), n.range.bits) for n in found], address
            )

    def multiply(self, node: Node, now: int) -> list[str]:
        """A product, with a register behind."""
        signed = any(a.range.signed for a in node.args)
        widths = [a.range.bits + (signed and not a.range.signed) for a in node.args]
        a, b = (self.sized(x, width, now) for x, width in zip(node.args, widths, strict=True))
        name, bits = self.name(node, "product"), node.range.bits
        self.time[node] = now + 1
        return [
            f"  wire {bus(sum(widths))}{name}_all;",
            f"  lk_multiply #(.A({widths[0]}), .B({widths[1]}), .SIGNED({signed:d})) u_{name} "
            f"(.clk(clk), .a({a}), .b({b}), .out({name}_all));",
            f"  wire {bus(bits)}{name} = {name}_all{f'[{bits - 1}:0]' if bits < sum(widths) else ''};",
        ]

    def fetch(self, node: Node, now: int) -> list[str]:
        """An element of a buffer, in the half of the block that the iteration began with."""
        channel, n = next(
            (c, c.buffer.reads.index(node)) for c in self.stage.takes if c.buffer and node in c.buffer.reads
        )
        self.last_fetch[channel.name] = max(now, self.last_fetch.get(channel.name, 0))
        half = self.delayed(f"{channel.name}_half", 1, 0, now)
        name, place, bits = f"{channel.name}_{n}", node.args[0], address_bits(channel)
        self.names[node], self.time[node] = f"{name}_word", now + READ
        dealt = (channel.buffer.banks if channel.buffer else 1).bit_length() - 1
        if place.value is not None:
            return [f"  assign {name}_from = {{{half}, {number(place.value >> dealt, bits)}}};"]
        wide = self.sized(place, bits + dealt, now)
        return [
            f"  wire {bus(bits + dealt)}{name}_place = {wide};",
            f"  assign {name}_from = {{{half}, {name}_place{f'[{bits + dealt - 1}:{dealt}]' if dealt else ''}}};",
        ]

    def recall(self, node: Node, now: int) -> list[str]:
        """An element of the stage's own memory."""
        (memory,) = [m for m in self.stage.memories if m.recalled is node]
        place = self.at(node.args[0], now)
        name, bits = self.name(node), node.range.bits
        self.time[node] = now + READ
        return [
            f"  reg {bus(bits)}{name}_memory [0:{memory.depth - 1}];",
            *read(name, f"{name}_memory", bits, place),
        ]

    def keep(self) -> None:
        """Writes to the stage's own memories; iterations start as far apart as the next read has to be behind."""
        for m in self.stage.memories:
            name, bits = self.names[m.recalled], m.recalled.range.bits
            written = self.time.get(m.value, 0) + (m.value in self.fresh)
            read = self.time[m.recalled] - READ
            self.ii = max(self.ii, (written - read) // m.distance + 1)
            valid = self.delayed("issue", 1, 0, written, reset=True)
            place, value = self.at(m.index, written), self.sized(m.value, bits, written)
            self.lines.append(f"  always @(posedge clk) if ({valid}) {name}_memory[{place}] <= {value};")
        if not self.stage.memories:
            return
        if self.ii == 1:
            self.lines.append("  assign pace = 1'b1;")
            return
        bits = (self.ii - 1).bit_length()
        self.lines += [
            f"  reg {bus(bits)}pause;",
            "  assign pace = pause == 0;",
            "  always @(posedge clk) begin",
            f"    if (rst) pause <= {number(0, bits)};",
            f"    else if (issue) pause <= {number(self.ii - 1, bits)};",
            "    else if (~pace) pause <= pause - 1'b1;",
            "  end",
        ]

    def release(self) -> None:
        """Blocks that are read may be written again."""
        for c in self.stage.takes:
            if c.buffer:
                last = self.delayed(f"{c.name}_pop", 1, 0, self.last_fetch.get(c.name, 0), reset=True)
                self.lines.append(f"  assign {c.name}_done = {last};")
                unused = [n for n, node in enumerate(c.buffer.reads) if node not in self.names]
                self.lines += [f"  assign {c.name}_{n}_from = 0;" for n in unused]

    def recurrence(self, label: str, group: Recurrence, after: set[Node], now: int) -> None:
        """Registers, their next values as logic within a cycle, and what others need of it, a cycle later."""
        wires = {n: self.at(n, now) for n in group.inputs if n not in {s.initial for s in group.states}}
        for n in dict.fromkeys(a for node in group.nodes for a in node.args):
            if n.op != "const" and n not in group.nodes:
                wires[n] = self.at(n, now)
        valid = self.delayed("issue", 1, 0, now, reset=True)
        for state in group.states:
            held, bits = self.name(state.source, state.var.name), state.var.range.bits
            first = self.delayed(f"first_{state.depth}", 1, 0, now)
            self.lines += [
                f"  reg {bus(bits)}{held}_kept;",
                f"  wire {bus(bits)}{held} = {first} ? {self.sized(state.initial, bits, now)} : {held}_kept;",
            ]
            self.time[state.source] = now
            wires[state.source] = held
        self.fresh |= set(group.nodes)
        inner = tuple(n for n in group.nodes if n.op != "source")
        updates = [s.update for s in group.states]
        outputs = list(
            dict.fromkeys(n for n in (*updates, *inner) if n in inner and (n in updates or n in after))
        )
        self.instance(f"{self.stage.name}_next{label}", wires, inner, outputs, now, None)
        for state in group.states:
            held, bits = self.names[state.source], state.var.range.bits
            self.lines.append(
                f"  always @(posedge clk) if ({valid}) {held}_kept <= {self.sized(state.update, bits, now)};"
            )

    def sized(self, node: Node, bits: int, now: int) -> str:
        """A value in a register's bits, which may be more than its own."""
        if node.value is not None:
            return number(node.value, bits)
        found, own = self.at(node, now), node.range.bits
        if own == bits:
            return found
        if own > bits:
            return f"{found}[{bits - 1}:0]"
        fill = (
            f"{{{bits - own}{{{found}{f'[{own - 1}]' if own > 1 else ''}}}}}"
            if node.range.signed
            else f"{bits - own}'d0"
        )
        return f"{{{fill}, {found}}}"

    def give(self, channel: Channel) -> int:
        """Push a beat; when."""
        assert channel.writer
        nodes, bits = channel.writer.nodes, channel.range.bits
        for n in nodes:
            if n.op == "source":
                self.at(n, 1)
        # What a recurrence computes is registered first.
        time = max([1, *(self.time[n] + (n in self.fresh) for n in nodes if n.value is None)])
        widths = ([bits, channel.place_bits] if channel.place_bits else [bits]) * channel.lanes
        parts = [self.sized(n, width, time) for n, width in zip(nodes, widths, strict=True)]
        self.lines.append(
            f"  assign {channel.name}_push = {self.delayed(f'{channel.name}_due', 1, 0, time, True)};"
        )
        data = f"{{{', '.join(reversed(parts))}}}" if len(parts) > 1 else parts[0]
        self.lines.append(f"  assign {channel.name}_data = {data};")
        return time

    def module(self) -> str:
        ports = ["input wire clk", "input wire rst"]
        for c in self.stage.takes:
            ports += [f"input wire {c.name}_valid", f"output wire {c.name}_pop"]
            if not c.buffer:
                ports.append(f"input wire {bus(c.bits)}{c.name}_data")
                continue
            ports += [f"input wire {c.name}_half", f"output wire {c.name}_done"]
            for n in range(len(c.buffer.reads)):
                ports.append(f"output wire {bus(address_bits(c) + 1)}{c.name}_{n}_from")
                ports.append(f"input wire {bus(c.range.bits)}{c.name}_{n}_word")
        for c in self.stage.gives:
            ports += [
                f"output wire {bus(c.bits)}{c.name}_data",
                f"output wire {c.name}_push",
                f"input wire {c.name}_popped",
            ]
        loops = ", ".join(f"{loop.counter.name} < {loop.count}" for loop in self.stage.loops)
        head = f"// Loops: {loops or 'none'}.\nmodule {self.stage.name} (\n  " + ",\n  ".join(ports) + "\n);"
        return "\n".join([head, *self.lines, "endmodule", ""])
