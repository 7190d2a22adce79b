"""A whole design in Verilog: its layers' modules, joined by streams.

The network of processes is that of `dataflow`, forks included. Ports carry one code a beat. Where a layer gives or
takes several codes a beat, words are gathered or dealt out between. Layers that read out of order have buffers of their
own, and each layer has queues behind its stages, so that a channel needs memory only where paths meet again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from lowerkit.errors import LowerkitError
from lowerkit.targets.fpga.dataflow import COUPLING, Channel, Network, Process, network
from lowerkit.targets.fpga.design import Design
from lowerkit.targets.fpga.rtl.design import PERIOD_PS, Link, Rtl, Source, Stream, print_pipeline
from lowerkit.targets.fpga.rtl.rows import limit_blocks
from lowerkit.targets.fpga.rtl.simulate import STALLS, Cycles, simulate
from lowerkit.targets.fpga.rtl.stages import split
from lowerkit.targets.fpga.rtl.verilog import bus, index_bits

Made = TypeVar("Made")


def print_network(
    design: Design,
    period_ps: int = PERIOD_PS,
    *,
    periods: Mapping[str, int] | None = None,
    net: Network | None = None,
    blocks: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Rtl:
    """The design as one module, `NAME_top`; its ports have the names of the network's.

    Args:
        periods: by layer, instead of `period_ps`.
        net: the design's network, where it is known already.
        blocks: multiplier blocks that all layers may take; the smallest of the products beyond are made of logic.
        progress: told what begins.

    Raises:
        UnsupportedError: for a layer that is no pipeline of streams, which the message names.
        ToolError: where XLS is not installed.
    """
    net = net or network(design)
    made = [p for p in net.processes if p.kind in ("layer", "fork")]
    pipelines = {p.name: _of(p, partial(split, p.kernel)) for p in made}
    if blocks is not None:
        limit_blocks(list(pipelines.values()), blocks)
    layers = {}
    for process in made:
        progress(f"{process.name}: Verilog")
        period = (periods or {}).get(process.name, period_ps)
        layers[process.name] = _of(process, partial(print_pipeline, pipelines[process.name], period))
    return _Wires(design, net, layers).printed()


def _of(process: Process, work: Callable[[], Made]) -> Made:
    """What a process's kernel is made to; errors name its node."""
    try:
        return work()
    except LowerkitError as error:
        node = process.layer.node if process.layer else None
        raise type(error)(error.reason, node=node or None, hint=error.hint) from error


def simulate_network(
    design: Design,
    rtl: Rtl,
    codes: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    stalls: bool | float = STALLS,
    simulator: str | None = None,
) -> tuple[dict[str, np.ndarray], Cycles]:
    """The outputs' codes, int64 [samples, *shape], for the inputs' by value, as `design.simulate` has them.

    As `simulate_rtl`, with a layer's name where the design halts.
    """
    names = network(design).ports
    samples = len(next(iter(codes.values())))
    given = {names[p.value]: np.asarray(codes[p.value]).reshape(samples, -1) for p in design.inputs}
    found, cycles = simulate(rtl, given, seed=seed, stalls=stalls, simulator=simulator)
    return {p.value: found[names[p.value]].reshape(samples, *p.shape) for p in design.outputs}, cycles


@dataclass(frozen=True)
class _End:
    """A stream's end: the wires' name, its lanes, and the samples that the reader has memory for."""

    wires: str
    lanes: int
    blocks: int = 0


class _Wires:
    def __init__(self, design: Design, net: Network, layers: Mapping[str, Rtl]) -> None:
        self.design, self.net, self.layers = design, net, layers
        self.lines: list[str] = []
        self.links: list[Link] = []
        #: By process that moves a port's codes, the port.
        self.moved = {
            p.name: net.ports[(p.reads if p.kind == "load" else p.writes)[0]]
            for p in net.processes
            if p.kind in ("load", "store")
        }

    def printed(self) -> Rtl:
        net, name = self.net, f"{self.design.name}_top"
        channels = {c.name: c for c in net.channels}
        inputs, outputs, ports = [], [], ["input wire clk", "input wire rst"]
        starts: dict[str, _End] = {}
        ends: dict[str, _End] = {}
        for p in net.processes:
            if p.kind == "load":
                port = self.moved[p.name]
                inputs.append(_port(port, channels[p.writes[0]]))
                starts[p.writes[0]] = _End(port, 1)
                ports += _declared(port, inputs[-1], "input", "output")
            elif p.kind == "store":
                port = self.moved[p.name]
                outputs.append(_port(port, channels[p.reads[0]]))
                ends[p.reads[0]] = _End(port, 1)
                ports += _declared(port, outputs[-1], "output", "input")
            else:
                self.instance(p, starts, ends)
        for c in net.channels:
            self.channel(c, starts[c.name], ends[c.name])
        head = f"module {name} (\n  " + ",\n  ".join(ports) + "\n);"
        top = "\n".join([head, *self.lines, "endmodule", ""])
        sources = [source for rtl in self.layers.values() for source in rtl.sources]
        return Rtl(name, (*sources, Source(name, top)), tuple(inputs), tuple(outputs), tuple(self.links))

    def instance(self, p: Process, starts: dict[str, _End], ends: dict[str, _End]) -> None:
        rtl = self.layers[p.name]
        ports = [".clk(clk)", ".rst(rst)"]
        for names, streams, found in ((p.reads, rtl.inputs, ends), (p.writes, rtl.outputs, starts)):
            for channel, stream in zip(names, streams, strict=True):
                wires = f"{p.name}_{stream.name}"
                found[channel] = _End(wires, stream.lanes, stream.blocks)
                self.declare(wires, stream.bits)
                ports += [f".{stream.name}_{part}({wires}_{part})" for part in ("data", "valid", "ready")]
        self.lines.append(f"  {rtl.name} u_{p.name} (\n    " + ",\n    ".join(ports) + "\n  );")

    def declare(self, wires: str, bits: int) -> None:
        self.lines += [f"  wire {bus(bits)}{wires}_data;", f"  wire {wires}_valid, {wires}_ready;"]

    def channel(self, c: Channel, start: _End, end: _End) -> None:
        """From the writer's wires to the reader's: a queue where paths meet again, and as many lanes as asked for."""
        bits, at = c.range.bits, start
        # One of a buffer's blocks is what the reader reads; readers that need whole samples have the first ones.
        codes = c.depth if c.kind == "fifo" else (c.depth - (end.blocks or 1)) * c.size
        depth = end.blocks * c.size
        if codes > COUPLING:
            places = index_bits(-(-codes // at.lanes))
            depth += at.lanes << places
            queued = _End(f"{c.name}_queued", at.lanes)
            self.declare(queued.wires, bits * at.lanes)
            self.lines.append(
                f"  lk_fifo #(.WIDTH({bits * at.lanes}), .BITS({places})) u_{c.name} (.clk(clk), .rst(rst), "
                f".push({at.wires}_valid & {at.wires}_ready), .in({at.wires}_data), "
                f".pop({queued.wires}_valid & {queued.wires}_ready), .out({queued.wires}_data), "
                f".valid({queued.wires}_valid), .ready({at.wires}_ready));"
            )
            at = queued
        writer, reader = self.moved.get(c.writer, c.writer), self.moved.get(c.reader, c.reader)
        self.links.append(Link(c.name, writer, reader, c.size, depth, start.wires, end.wires))
        common = math.gcd(at.lanes, end.lanes)
        if at.lanes > common:
            at = self.geared("lk_narrow", c, at, common, at.lanes // common)
        if end.lanes > common:
            at = self.geared("lk_widen", c, at, end.lanes, end.lanes // common)
        self.lines += [
            f"  assign {end.wires}_data = {at.wires}_data;",
            f"  assign {end.wires}_valid = {at.wires}_valid;",
            f"  assign {at.wires}_ready = {end.wires}_ready;",
        ]

    def geared(self, module: str, c: Channel, at: _End, lanes: int, ratio: int) -> _End:
        """Beats of another number of lanes."""
        found = _End(f"{c.name}_{module[3:]}", lanes)
        word = c.range.bits * min(at.lanes, lanes)
        self.declare(found.wires, c.range.bits * lanes)
        self.lines.append(
            f"  {module} #(.WIDTH({word}), .LANES({ratio}), .BITS({index_bits(ratio)})) "
            f"u_{found.wires} (.clk(clk), .rst(rst), .in({at.wires}_data), .in_valid({at.wires}_valid), "
            f".in_ready({at.wires}_ready), .out({found.wires}_data), .out_valid({found.wires}_valid), "
            f".out_ready({found.wires}_ready));"
        )
        return found


def _port(name: str, channel: Channel) -> Stream:
    return Stream(name, channel.range, 1, channel.size)


def _declared(name: str, stream: Stream, forth: str, back: str) -> list[str]:
    return [
        f"{forth} wire {bus(stream.bits)}{name}_data",
        f"{forth} wire {name}_valid",
        f"{back} wire {name}_ready",
    ]
