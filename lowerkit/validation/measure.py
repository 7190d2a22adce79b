"""Values of several graphs, sample by sample: a graph runs once for everything that is measured of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

#: Bytes of intermediate values held at a time; more are measured in several runs.
TAP_BYTES = 1 << 27
#: Names of sources: the samples themselves, the float model, the graph after the plan, the artifact, and its code with
#: intermediate values. The graphs that a plan speaks of are sources too, see `graph_source`.
SAMPLES, ORIGINAL, LOWERED, ARTIFACT, PROBE = "samples", "original", "lowered", "artifact", "probe"

#: Values by name.
Values = Mapping[str, np.ndarray]
#: Runs samples, one after the other, for their outputs and the values named.
Source = Callable[[Sequence[str], Sequence[Values]], Iterator[Values]]
_Item = TypeVar("_Item")


class Meter(Protocol):
    """Compares values of different sources.

    Attributes:
        reads: source -> names of the values that it wants of it, outputs aside.
        size: bytes of those values, of one source.
    """

    @property
    def reads(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def size(self) -> int: ...

    def update(self, values: Mapping[str, Values]) -> None:
        """Add a sample: the values of each source that it reads."""


def graph_source(index: int) -> str:
    """The name of the source that is a graph of those that the plan speaks of."""
    return f"graph {index}"


def measure(
    meters: Sequence[Meter],
    sources: Mapping[str, Source],
    samples: Sequence[Values],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Update every meter with every sample.

    Args:
        advance: called after each sample, once per group of meters whose values fit into memory together.
    """
    for group in by_bytes(meters, [meter.size for meter in meters], TAP_BYTES) if samples else ():
        names: dict[str, dict[str, None]] = {}
        for meter in group:
            for source, wanted in meter.reads.items():
                names.setdefault(source, {}).update(dict.fromkeys(wanted))
        runs = {source: sources[source](list(wanted), samples) for source, wanted in names.items()}
        for sample in samples:
            values = {SAMPLES: sample, **{source: next(run) for source, run in runs.items()}}
            for meter in group:
                meter.update(values)
            advance()


def by_bytes(items: Sequence[_Item], sizes: Sequence[int], limit: int) -> Iterator[list[_Item]]:
    """Consecutive groups of `items`, each of at most `limit` bytes in all, or of one item."""
    group: list[_Item] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group
