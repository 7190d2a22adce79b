"""Loops over every element of an array, some of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from lowerkit.targets.fpga.lang.expr import Operand
from lowerkit.targets.fpga.lang.program import Builder


@contextmanager
def elements(
    k: Builder, shape: Sequence[int], lanes: int = 1, prefix: str = "i"
) -> Iterator[tuple[Operand, ...]]:
    """The indices of an element of `shape`; `lanes` neighbours along the last axis each cycle.

    Raises ValueError where the lanes do not divide the last axis.
    """
    if not shape:
        raise ValueError(f"{k.name}: an array without axes")
    if shape[-1] % lanes:
        raise ValueError(f"{k.name}: {lanes} lanes do not divide an axis of {shape[-1]}")
    with ExitStack() as stack:
        counts = [*shape[:-1], shape[-1] // lanes]
        counters: list[Operand] = []
        for axis, count in enumerate(counts):
            last = axis == len(counts) - 1
            counters.append(stack.enter_context(k.loop(f"{prefix}{axis}", count, pipeline=last)))
        if lanes > 1:
            lane = stack.enter_context(k.loop(f"{prefix}_lane", lanes))
            counters[-1] = lane if counts[-1] == 1 else counters[-1] * lanes + lane
        yield tuple(counters)


def broadcast(index: Sequence[Operand], shape: Sequence[int]) -> tuple[Operand, ...]:
    """The element of a smaller array that numpy's rules pair with an element: index 0 along axes of 1."""
    own = index[len(index) - len(shape) :]
    return tuple(0 if size == 1 else i for i, size in zip(own, shape, strict=True))
