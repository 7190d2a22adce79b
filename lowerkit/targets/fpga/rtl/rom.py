"""Constants in block RAMs, without logic between memories where one is not enough.

A block of an ECP5 holds 2^14 words of a bit, 2^13 of two, and so on (Lattice, FPGA-TN-02204, ECP5 and ECP5-5G Memory
Usage Guide, section 4). A table of more words than fit in the widest form is cut into slices of bits that each are one
block's, from the highest bit on. A slice ends where all words behind are 0 in it: of exponentials, whose high bits soon
are, a block holds more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowerkit.targets.fpga.rtl.verilog import bus, index_bits, number, read

#: Words of a block, and the bits that they have.
FORMS = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
#: Tables of fewer words are left to synthesis: they need no more than a block for each 18 bits.
SMALL = 1024


@dataclass(frozen=True)
class Slice:
    """Bits `low` to `low + width - 1` of the first `depth` words; behind these they are 0."""

    low: int
    width: int
    depth: int


def slices(words: Sequence[int], bits: int) -> list[Slice]:
    """How words, not negative, are cut; the whole table where it is small, or no block is deep enough."""
    if not SMALL < len(words) <= FORMS[-1][0]:
        return [Slice(0, bits, len(words))]
    # Behind a bit's depth, it and all above are 0.
    depths = [int(np.flatnonzero(np.asarray(words) >> bit).max(initial=-1)) + 1 for bit in range(bits)]
    found, top = [], bits
    while top:
        low = top - 1
        while low and top - low + 1 <= _width(depths[low - 1]):
            low -= 1
        found.append(Slice(low, top - low, max(depths[low], 1)))
        top = low
    return found[::-1]


def _width(depth: int) -> int:
    return next(width for words, width in FORMS if depth <= words)


def tables(columns: Sequence[tuple[str, Sequence[int], int]], address: str) -> list[str]:
    """Tables (name, numbers, bits) that are read at one address of all bits; small ones side by side in one memory."""
    depth = max(len(numbers) for _, numbers, _ in columns)
    if len(columns) == 1 or depth > SMALL:
        padded = [(name, [*numbers, *[0] * (depth - len(numbers))], bits) for name, numbers, bits in columns]
        return [line for each in padded for line in table(*each, address)]
    row, words, low, parts = f"{columns[0][0]}_row", [0] * depth, 0, []
    for name, numbers, bits in columns:
        for i, n in enumerate(numbers):
            words[i] |= (int(n) & ((1 << bits) - 1)) << low
        parts.append(f"  wire {bus(bits)}{name} = {row}[{low} +: {bits}];")
        low += bits
    return [*table(row, words, low, address), *parts]


def table(name: str, numbers: Sequence[int], bits: int, address: str) -> list[str]:
    """Verilog of a register, two cycles behind the address of `index_bits`: the memory's own, and one more."""
    words = [int(n) & ((1 << bits) - 1) for n in numbers]
    wide, cut = index_bits(len(words)), slices(words, bits)
    if len(cut) == 1:
        return [*_memory(f"{name}_rom", words, bits), *read(name, f"{name}_rom", bits, address)]
    lines, parts = [f"  wire {bus(wide)}{name}_address = {address};"], []
    for s in cut:
        part, own = f"{name}_{s.low}", index_bits(s.depth)
        held = [(w >> s.low) & ((1 << s.width) - 1) for w in words[: s.depth]]
        at = f"{name}_address{'' if own == wide else f'[{own - 1}:0]'}"
        beyond = "" if own == wide else f"|{name}_address[{wide - 1}:{own}]"
        lines += _chosen(part, held, s.width, at, own, beyond)
        parts.append(part)
    return [*lines, f"  wire {bus(bits)}{name} = {{{', '.join(reversed(parts))}}};"]


def _memory(name: str, words: Sequence[int], bits: int) -> list[str]:
    texts = [f"{name}[{j}] = {number(word, bits)};" for j, word in enumerate(words)]
    rows = ["      " + " ".join(texts[i : i + 4]) for i in range(0, len(texts), 4)]
    return [f"  reg {bus(bits)}{name} [0:{len(words) - 1}];", "  initial begin", *rows, "  end"]


def _chosen(name: str, words: Sequence[int], bits: int, address: str, wide: int, beyond: str) -> list[str]:
    """A large memory as choices by its address, which yosys reads ten times faster than contents, and a register.

    Where the address is `beyond` the memory, the register gets 0.
    """
    texts = [f"{number(n, wide)}: {name}_word <= {number(w, bits)};" for n, w in enumerate(words) if w]
    rows = ["      " + " ".join(texts[i : i + 4]) for i in range(0, len(texts), 4)]
    lines = [f"  reg {bus(bits)}{name}_word;", f"  reg {bus(bits)}{name};"]
    kept = [f"    {name} <= {name}_word;"]
    if beyond:
        lines.append(f"  reg {name}_beyond;")
        kept = [f"    {name}_beyond <= {beyond};", f"    {name} <= {name}_beyond ? {bits}'d0 : {name}_word;"]
    chosen = [f"    case ({address})", *rows, f"      default: {name}_word <= {bits}'d0;", "    endcase"]
    return [*lines, "  always @(posedge clk) begin", *chosen, *kept, "  end"]
