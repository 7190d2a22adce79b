"""Pieces of Verilog text."""

from __future__ import annotations


def bus(bits: int) -> str:
    """A vector's range."""
    return f"[{bits - 1}:0] " if bits > 1 else ""


def index_bits(count: int) -> int:
    """Of a number below `count`: one at least."""
    return max((count - 1).bit_length(), 1)


def number(value: int, bits: int) -> str:
    """A literal in two's complement."""
    return f"{bits}'h{value & ((1 << bits) - 1):x}"


def read(name: str, memory: str, bits: int, address: str) -> list[str]:
    """A register, two cycles behind the address: the memory's own, and one more, as block RAMs are slow to answer."""
    return [
        f"  reg {bus(bits)}{name}_word;",
        f"  reg {bus(bits)}{name};",
        "  always @(posedge clk) begin",
        f"    {name}_word <= {memory}[{address}];",
        f"    {name} <= {name}_word;",
        "  end",
    ]
