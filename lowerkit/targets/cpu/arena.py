"""Where intermediate values lie: one piece of memory for all of them, planned when compiling.

Two values may share bytes unless both are alive at some step. Values are placed largest first, each into the
smallest gap that holds it between those that are alive with it ("greedy by size": Pisarchyk & Lee, "Efficient memory
management for deep neural net inference", arXiv:2001.03288, 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Bytes; of every offset, and of the arena itself.
ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A value of `size` bytes that is written at step `first` and read until step `last`, both included."""

    size: int
    first: int
    last: int


def place(values: Sequence[Lifetime]) -> tuple[list[int], int]:
    """The offset of each value in bytes, and the size of the arena."""
    offsets = [0] * len(values)
    placed: list[tuple[int, int, Lifetime]] = []  # start, end, in order of start
    for index in sorted(range(len(values)), key=lambda i: (-values[i].size, values[i].first, i)):
        value = values[index]
        size = -(-value.size // ALIGNMENT) * ALIGNMENT
        offsets[index] = start = _gap(placed, value, size)
        placed.append((start, start + size, value))
        placed.sort(key=lambda entry: entry[:2])
    return offsets, max((end for _, end, _ in placed), default=0)


def _gap(placed: Sequence[tuple[int, int, Lifetime]], value: Lifetime, size: int) -> int:
    """The start of the smallest gap of `size` bytes at least; behind everything where there is none."""
    best, smallest, end = -1, 0, 0
    for start, stop, other in placed:
        if other.last < value.first or value.last < other.first:
            continue
        gap = start - end
        if gap >= size and (best < 0 or gap < smallest):
            best, smallest = end, gap
        end = max(end, stop)
    return best if best >= 0 else end
