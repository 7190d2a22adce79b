"""How many words of each array a kernel reads: what its memory, or the port behind it, has to give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lowerkit.targets.fpga.lang.access import parts
from lowerkit.targets.fpga.lang.expr import Expr, Load, Var
from lowerkit.targets.fpga.lang.program import For, Kernel, Let, Register, Statement, Store, Update, When


def words_read(kernel: Kernel) -> Mapping[str, int]:
    """By array, the words that are read in one run.

    A word is held while loops run that do not change its address, and lanes of an unrolled loop that want the same
    word share it. A body behind a guard counts as often as that lets it run at most.
    """
    reader = _Reader()
    reader.block(kernel.body, [], unrolled=False)
    return dict(reader.words)


@dataclass(frozen=True)
class _Around:
    """A loop or a guard around a statement."""

    statement: For | When
    unrolled: bool


@dataclass
class _Reader:
    words: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    #: The counters that a named value depends on.
    depends: dict[Var, frozenset[Var]] = field(default_factory=dict)

    def block(self, body: Iterable[Statement], nest: list[_Around], unrolled: bool) -> None:
        for statement in body:
            if isinstance(statement, For):
                self.depends[statement.counter] = frozenset({statement.counter})
                inner = [*nest, _Around(statement, unrolled)]
                self.block(statement.body, inner, unrolled or statement.pipeline)
            elif isinstance(statement, When):
                self.expression(statement.condition, nest)
                self.block(statement.body, [*nest, _Around(statement, unrolled)], unrolled)
            elif isinstance(statement, Let):
                self.depends[statement.var] = self.expression(statement.value, nest)
            elif isinstance(statement, Register):
                # Its value changes with every loop around its updates.
                counters = frozenset(a.statement.counter for a in nest if isinstance(a.statement, For))
                self.depends[statement.var] = counters | self.expression(statement.initial, nest)
            elif isinstance(statement, (Update, Store)):
                self.expression(statement.value, nest)
                for index in statement.indices if isinstance(statement, Store) else ():
                    self.expression(index, nest)

    def expression(self, e: Expr, nest: list[_Around]) -> frozenset[Var]:
        """Count what it reads; the counters that it depends on."""
        if isinstance(e, Var):
            return self.depends.get(e, frozenset())
        found: frozenset[Var] = frozenset()
        for part in parts(e):
            found |= self.expression(part, nest)
        if isinstance(e, Load):
            self.words[e.array.name] += _times(found, nest)
        return found


def _times(counters: frozenset[Var], nest: list[_Around]) -> int:
    """How often a word with such an address is read."""
    runs = held = lanes = 1
    for around in nest:
        statement = around.statement
        if isinstance(statement, When):
            if statement.most is not None and not around.unrolled:
                runs = min(runs, statement.most)
                held = min(held, runs)
        elif around.unrolled:
            lanes *= statement.count if statement.counter in counters else 1
        else:
            runs *= statement.count
            held = runs if statement.counter in counters else held
    return held * lanes
