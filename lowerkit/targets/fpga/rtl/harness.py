"""A frame to place a module in that has more streams than a chip has pins.

Inputs come from a shift register, and outputs go to another one, so that every path of the module begins and ends at a
register, as in a design. The first one has an enable, or it would serve as the module's own delays. The frame's cells
are those of the part `area.OWN`.
"""

from __future__ import annotations

from dataclasses import replace

from lowerkit.targets.fpga.rtl.design import Rtl, Source
from lowerkit.targets.fpga.rtl.verilog import bus


def framed(rtl: Rtl) -> tuple[Rtl, str]:
    """The design with the frame around it, and the frame's module."""
    name = f"{rtl.name}_framed"
    ports, given, taken = [".clk(clk)", ".rst(rst)"], [], []
    wires = []
    for stream in rtl.inputs:
        given += [(f"{stream.name}_data", stream.bits), (f"{stream.name}_valid", 1)]
        taken += [(f"{stream.name}_ready", 1)]
    for stream in rtl.outputs:
        taken += [(f"{stream.name}_data", stream.bits), (f"{stream.name}_valid", 1)]
        given += [(f"{stream.name}_ready", 1)]
    ins, outs = sum(bits for _, bits in given), sum(bits for _, bits in taken)
    low = 0
    for wire, bits in given:
        ports.append(f".{wire}(before[{low} +: {bits}])")
        low += bits
    for wire, bits in taken:
        wires.append(f"  wire {bus(bits)}{wire};")
        ports.append(f".{wire}({wire})")
    text = f"""
// {rtl.name} between shift registers.
module {name} (input wire clk, input wire rst, input wire in, input wire load, output wire out);
  reg {bus(ins)}before;
  reg {bus(outs)}after;
{chr(10).join(wires)}
  {rtl.name} u_{rtl.name} ({", ".join(ports)});
  always @(posedge clk) if (~load) before <= {{before, in}};
  always @(posedge clk) after <= load ? {{{", ".join(wire for wire, _ in taken)}}} : {{after, 1'b0}};
  assign out = after[{outs - 1}];
endmodule
"""
    return replace(rtl, sources=(*rtl.sources, Source(name, text))), name
