"""What joins a design to verilator's test bench, `testbench.cpp`: a monitor around it, and a table of its ports."""

from __future__ import annotations

from collections.abc import Sequence

from lowerkit.targets.fpga.rtl.design import Rtl, Stream
from lowerkit.targets.fpga.rtl.verilog import bus

#: The module that verilator's model is of.
MONITOR = "lk_monitor"
#: Cycles from an iteration to the next one, at most: those of a pipeline that a memory's next value goes through.
APART = 64
#: Cycles for what is no iteration: pipelines that fill, queues.
SETTLING = 10_000


def patience(iterations: int) -> int:
    """Cycles without a beat after which a design has come to a halt, for those iterations from a beat to the next."""
    return SETTLING + APART * iterations


def monitor(rtl: Rtl) -> str:
    """A module around the design, whose ports have numbers for names: `in0_data`.

    It also tells whether a beat passes between layers (`moved`), and of each link whether the writer waits for room
    (`full`) and whether there is nothing for the reader (`empty`).
    """
    ports, wires = ["input wire clk", "input wire rst"], [".clk(clk)", ".rst(rst)"]
    for kind, streams, forth, back in (
        ("in", rtl.inputs, "input", "output"),
        ("out", rtl.outputs, "output", "input"),
    ):
        for n, s in enumerate(streams):
            name = f"{kind}{n}"
            ports += [
                f"{forth} wire {bus(s.bits)}{name}_data",
                f"{forth} wire {name}_valid",
                f"{back} wire {name}_ready",
            ]
            wires += [f".{s.name}_{part}({name}_{part})" for part in ("data", "valid", "ready")]
    states = {
        "full": [f"dut.{link.start}_valid & ~dut.{link.start}_ready" for link in rtl.links],
        "empty": [f"~dut.{link.end}_valid" for link in rtl.links],
    }
    ports += ["output wire moved", *(f"output wire {bus(max(len(rtl.links), 1))}{name}" for name in states)]
    passing = [f"dut.{link.start}_valid & dut.{link.start}_ready" for link in rtl.links]
    lines = [
        "// For simulation alone: the design, and what its channels wait for.",
        f"module {MONITOR} (\n  " + ",\n  ".join(ports) + "\n);",
        f"  {rtl.name} dut (\n    " + ",\n    ".join(wires) + "\n  );",
        f"  assign moved = {_bits(passing, '|')};",
        *(f"  assign {name} = {_bits(bits)};" for name, bits in states.items()),
        "endmodule",
    ]
    return "\n".join([*lines, ""])


def _bits(parts: Sequence[str], reduced: str = "") -> str:
    """The first one lowest; 0 where there are none."""
    return f"{reduced}{{\n    " + ",\n    ".join(reversed(parts)) + "\n  }" if parts else "1'b0"


def header(rtl: Rtl) -> str:
    """The design's ports and links, for `testbench.cpp`."""
    links = [f'    {{"{k.name}", "{k.writer}", "{k.reader}", {k.depth}}},' for k in rtl.links]
    most = max(source.iterations for source in rtl.sources)
    lines = [
        "// What testbench.cpp has to know of the design.",
        '#include "Vmodel.h"',
        "",
        "using Model = Vmodel;",
        f'static const char DESIGN[] = "{rtl.name}";',
        "// Cycles without a beat that passes a channel or a port, after which the design has come to a halt.",
        f"static const long PATIENCE = {patience(most)};",
        "// name, bits, signed, lanes, beats",
        *_ports("in", rtl.inputs),
        *_ports("out", rtl.outputs),
        "// name, writer, reader, codes",
        "static const std::vector<Link> links = {",
        *links,
        "};",
    ]
    return "\n".join([*lines, ""])


def _ports(kind: str, streams: Sequence[Stream]) -> list[str]:
    lines = [f"static std::vector<Stream> {kind}puts(Model& m) {{", "    return {"]
    for n, s in enumerate(streams):
        wires = f"bus(m.{kind}{n}_data), m.{kind}{n}_valid, m.{kind}{n}_ready"
        about = f'"{s.name}", {s.range.bits}, {str(s.range.signed).lower()}, {s.lanes}, {s.beats}'
        lines.append(f"        {{{about}, {wires}, {{}}, {{}}}},")
    return [*lines, "    };", "}"]
