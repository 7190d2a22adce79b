"""Arrays that several loops write, each a part of its own: their streams are joined by a stage of its own.

Where every loop gives the elements of its part in order, the whole is a sequence of runs, such as a row's first columns
from one loop and its last ones from the next. The joining stage goes over the array in order and takes a beat of the
part that is due; the others wait in their queues.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowerkit.targets.fpga.lang.expr import Array, Counter, Range
from lowerkit.targets.fpga.lang.program import For
from lowerkit.targets.fpga.rtl.graph import Graph, Node, Source
from lowerkit.targets.fpga.rtl.pipeline import Channel, End, Stage

if TYPE_CHECKING:
    from lowerkit.targets.fpga.rtl.stages import Splitter


def joined(owner: Splitter, array: Array, writers: list[Stage]) -> Stage:
    """A stage that gives the array in order, added to the owner's behind the writers. Raises UnsupportedError."""
    reason = f"{array.name} is written by {len(writers)} loops, and not a part by each, in order"
    if owner.depth.get(array, 0):
        raise owner.refuse(reason)
    ends, orders = zip(*(_part(owner, array, writer, reason) for writer in writers), strict=True)
    lanes = len(ends[0].nodes)
    part = np.full(math.prod(array.shape), -1)
    for n, order in enumerate(orders):
        part[order] = n
    beats = part.reshape(-1, lanes) if part.size % lanes == 0 else part.reshape(-1, 1)
    sizes = {len(end.nodes) for end in ends}
    if (
        len(sizes) > 1
        or sum(map(len, orders)) != part.size
        or (beats != beats[:, :1]).any()
        or part.min() < 0
    ):
        raise owner.refuse(reason)
    runs = _runs(beats[:, 0], len(writers))
    if runs is None:
        raise owner.refuse(reason)
    period = max(end for _, end in runs)

    index, name = len(owner.stages), array.name
    around = Counter(f"{name}_round", Range(0, len(beats) // period - 1))
    within = Counter(f"{name}_beat", Range(0, period - 1))
    loops = (
        For(around, len(beats) // period, (), False, False, ""),
        For(within, period, (), False, True, ""),
    )
    stage = Stage(f"{owner.kernel.name}_s{index}_join", loops, Graph(), index)
    owner.stages.insert(owner.stages.index(writers[-1]) + 1, stage)
    counters = [stage.graph.source(Source("counter", c), c.range, c.name) for c in (around, within)]
    values: list[Node] = []
    # Loops that wait for the same beats as others may not stand still until their part is due.
    read = [a for _, a in owner.loads]
    shared = len(set(read)) < len(read)
    for n in sorted(range(len(writers)), key=lambda n: runs[n]):
        end, (first, last) = ends[n], runs[n]
        key = Array(f"{name}_part{n}", (len(orders[n]),), array.range)
        reader = End(stage, (), (), (1, first, last))
        waiting = len(orders[n]) // lanes if shared else 1
        owner.attach(Channel(key.name, key, key.range, lanes, end, reader, waiting))
        due = stage.graph.binary("le", stage.graph.const(first), counters[1])
        found = [
            stage.graph.source(Source("element", key, i), key.range, f"{key.name}_") for i in range(lanes)
        ]
        # The last run that has begun is due.
        values = [stage.graph.select(due, a, b) for a, b in zip(found, values or found, strict=True)]
    beat = stage.graph.binary("mul", counters[0], stage.graph.const(period))
    beat = stage.graph.binary("add", beat, counters[1])
    place = stage.graph.binary("mul", beat, stage.graph.const(lanes))
    owner.stores[stage, array] = {
        stage.graph.binary("add", place, stage.graph.const(i)): value for i, value in enumerate(values)
    }
    return stage


def _part(owner: Splitter, array: Array, writer: Stage, reason: str) -> tuple[End, np.ndarray]:
    """A writer's end, and the places of what it writes, in order."""
    stores = owner.stores[writer, array]
    held, places = owner.written(writer, array)
    lanes = np.argsort(places.reshape(-1, len(stores))[0])
    order = places[..., lanes].ravel()
    beats = order.reshape(-1, len(stores))
    if (np.diff(order) <= 0).any() or (beats - beats[:, :1] != np.arange(len(stores))).any():
        raise owner.refuse(reason)
    values = list(stores.values())
    return End(writer, held, tuple(values[i] for i in lanes)), order


def _runs(part: np.ndarray, count: int) -> list[tuple[int, int]] | None:
    """Where each part's run begins and ends in the shortest period of the sequence; None where one has more runs."""
    for period in (n for n in range(count, len(part) + 1) if len(part) % n == 0):
        rows = part.reshape(-1, period)
        if (rows == rows[0]).all():
            found = [np.flatnonzero(rows[0] == n) for n in range(count)]
            whole = all(len(f) and f[-1] - f[0] + 1 == len(f) for f in found)
            return [(int(f[0]), int(f[-1]) + 1) for f in found] if whole else None
    return None
