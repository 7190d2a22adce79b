"""Pieces of Verilog text."""

from __future__ import annotations

from collections.abc import Sequence


def bus(bits: int) -> str:
    """A vector's range."""
    return f"[{bits - 1}:0] " if bits > 1 else ""


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


def table(columns: Sequence[tuple[str, Sequence[int], int]], address: str) -> list[str]:
    """Constants, and what is read of them at one address: of each (name, numbers, bits), the first one lowest."""
    bits, depth = sum(b for _, _, b in columns), max(len(numbers) for _, numbers, _ in columns)
    rows = [0] * depth
    name, low, parts = columns[0][0], 0, []
    for label, numbers, width in columns:
        for i, n in enumerate(numbers):
            rows[i] |= (int(n) & ((1 << width) - 1)) << low
        parts.append(f"  wire {bus(width)}{label} = {name}_row[{low} +: {width}];")
        low += width
    if len(columns) == 1:
        row, parts = name, []
    else:
        row = f"{name}_row"
    words = [number(n, bits) for n in rows]
    a_line = max(1, 100 // (len(row) + len(words[0]) + 12))
    lines = [
        "      " + " ".join(f"{row}_rom[{j}] = {words[j]};" for j in range(i, min(i + a_line, depth)))
        for i in range(0, depth, a_line)
    ]
    head = [f"  reg {bus(bits)}{row}_rom [0:{depth - 1}];", "  initial begin"]
    return [*head, *lines, "  end", *read(row, f"{row}_rom", bits, address), *parts]
