"""Cuts a stage's iteration into steps: logic, then what takes a clock edge of its own.

Memories are read at an edge, multipliers have a register behind, and registers go from iteration to iteration. The way
from such a register to its next value is computed within a cycle, so that an iteration can start each cycle; all else
is logic before or after, which may take as many cycles as it likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lowerkit.errors import UnsupportedError
from lowerkit.targets.fpga.rtl.graph import Node, after, reached
from lowerkit.targets.fpga.rtl.pipeline import Stage, State

#: Operations that take a clock edge; a product takes none on the way from a register to its next value.
MEMORIES = ("read", "fetch", "recall")
EDGES = (*MEMORIES, "mul")


@dataclass(frozen=True)
class Recurrence:
    """Registers whose next values depend on each other, and the nodes of the way around, operands first."""

    states: tuple[State, ...]
    nodes: tuple[Node, ...]

    @property
    def inputs(self) -> tuple[Node, ...]:
        """What comes from elsewhere, numbers aside."""
        inner = set(self.nodes)
        found = [a for n in self.nodes for a in n.args] + [s.initial for s in self.states]
        return tuple(dict.fromkeys(n for n in found if n not in inner and n.op != "const"))


@dataclass(frozen=True)
class Step:
    """Logic, and the memories, multipliers and registers that follow it."""

    logic: tuple[Node, ...]
    reads: tuple[Node, ...]
    recurrences: tuple[Recurrence, ...]


def steps(stage: Stage) -> list[Step]:
    """The steps of an iteration. Raises UnsupportedError for a table within a recurrence."""
    roots = [n for c in stage.gives if c.writer for n in c.writer.nodes]
    roots += [n for s in stage.states for n in (s.update, s.initial)]
    roots += [n for m in stage.memories for n in (m.index, m.value)]
    nodes = reached(roots)
    found = _recurrences(stage, nodes)
    home = {node: r for r in found for node in r.nodes}
    level = dict.fromkeys(nodes, 0)
    before = dict.fromkeys(found, 0)
    # What is recalled is read as late as can be, so that it is written again soon after.
    kept = {m.value for m in stage.memories}
    beside = {n: _beside(n, nodes) for n in nodes if n.op == "recall"}
    changed = True
    while changed:
        changed = False
        for r in found:
            before[r] = max([level[n] for n in r.inputs], default=0)
        for node in nodes:
            if node in home:
                wanted = before[home[node]] + 1
            else:
                wanted = max((level[a] for a in (*node.args, *beside.get(node, ()))), default=0)
                wanted += node.op in EDGES
                wanted = max([wanted, *(level[a] + 1 for a in node.args if a in kept)])
            changed |= wanted != level[node]
            level[node] = wanted
    plain = [n for n in nodes if n not in home and n.op not in ("const", "source", *EDGES)]
    reads = [n for n in nodes if n not in home and n.op in EDGES]
    count = max(level.values(), default=0) + 1
    return [
        Step(
            tuple(n for n in plain if level[n] == k),
            tuple(n for n in reads if level[n] == k + 1),
            tuple(r for r in found if before[r] == k),
        )
        for k in range(count)
    ]


def _beside(recalled: Node, nodes: list[Node]) -> list[Node]:
    """What else is needed by what depends on a recalled number."""
    late = after(nodes, [recalled])
    return [a for n in nodes if n in late and n is not recalled for a in n.args if a not in late]


def _recurrences(stage: Stage, nodes: list[Node]) -> list[Recurrence]:
    """States that depend on each other, directly or not, together."""
    above = {s: set(reached([s.update])) for s in stage.states}
    direct = {s: {t for t in stage.states if t.source in above[s]} for s in stage.states}
    ahead = {s: _closure(s, direct) for s in stage.states}
    found, done = [], set[State]()
    for state in stage.states:
        if state in done:
            continue
        group = tuple(t for t in stage.states if t is state or (t in ahead[state] and state in ahead[t]))
        done |= set(group)
        late = after(nodes, [s.source for s in group])
        within = late & set().union(*(above[s] for s in group)) | {s.update for s in group}
        within |= {s.source for s in group}
        inner = tuple(n for n in nodes if n in within)
        inner = (*(s.source for s in group if s.source not in inner), *inner)
        if any(n.op in MEMORIES for n in inner):
            raise UnsupportedError(
                f"stage {stage.name}: a table is read on the way from a register to its next value",
                hint="this layer has no RTL yet; the HLS flow has it",
            )
        found.append(Recurrence(group, inner))
    return found


def _closure(start: State, direct: dict[State, set[State]]) -> set[State]:
    seen: set[State] = set()
    ahead: Iterable[State] = direct[start]
    while ahead:
        seen |= set(ahead)
        ahead = {t for s in ahead for t in direct[s]} - seen
    return seen
