"""One iteration of a loop nest as a graph of operations: loops unrolled, names resolved, equal nodes shared.

Operations are those of `lang.expr`, besides them

- `const`: a number; `source`: what comes from outside of the iteration, see `Source`.
- `cast`: a number that is known to be of a narrower range.
- `read`: a word of a memory of constants at an address; `fetch`: an element of a buffer; `recall`: of memory
  that the stage itself writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowerkit.targets.fpga.lang.expr import Array, Binary, Range, Var
from lowerkit.targets.fpga.lang.interpret import OPERATIONS
from lowerkit.targets.fpga.rtl.products import product

#: Operations of two operands.
BINARY = ("add", "sub", "mul", "min", "max", "shl", "shr", "lt", "le", "eq")


@dataclass(frozen=True)
class Source:
    """Where a value comes from.

    Attributes:
        kind: `counter` of a loop, `state` of a register from the iteration before, `token` (a value that another
            stage computed), or `element` of a stream's beat.
        key: the loop's variable, the register, the value's variable, or the array.
        lane: of the beat's elements, which one.
    """

    kind: str
    key: Any
    lane: int = 0


@dataclass(frozen=True, eq=False)
class Node:
    """An operation.

    Attributes:
        detail: the number of a `const`, the `Source`, (low, width) of a `slice`, words [depth], or an array.
        name: a hint for printed code.
    """

    op: str
    args: tuple[Node, ...]
    range: Range
    detail: Any = None
    name: str = ""

    @property
    def value(self) -> int | None:
        """Of a number."""
        return self.detail if self.op == "const" else None


@dataclass
class Graph:
    """Makes nodes: the same operation of the same operands is made once, and what ranges decide is folded."""

    _made: dict[tuple[Any, ...], Node] = field(default_factory=dict)
    _numbers: dict[Node, np.ndarray | None] = field(default_factory=dict)

    def const(self, number: int) -> Node:
        """A number."""
        return self._make("const", (), Range(number, number), number)

    def source(self, source: Source, range: Range, name: str) -> Node:
        """A value from outside; a number where its range holds one alone."""
        if range.low == range.high and source.kind == "counter":
            return self.const(range.low)
        return self._make("source", (), range, source, name)

    def binary(self, op: str, a: Node, b: Node) -> Node:
        """An operation of two operands."""
        found = Binary.of(op, Var("a", a.range), Var("b", b.range)).range
        if found.low == found.high:
            return self.const(found.low)
        if op in ("add", "sub", "shl", "shr") and b.value == 0:
            return a
        if op == "add" and a.value == 0:
            return b
        if op == "sub" and b.value is not None:
            return self.binary("add", a, self.const(-b.value))
        if op == "add" and a.value is not None:
            a, b = b, a
        if op == "add" and b.value is not None and a.op == "add" and (inner := a.args[1].value) is not None:
            return self.binary("add", a.args[0], self.const(inner + b.value))
        if op == "shr" and b.value is None and b.range.low > 0:
            # What every count shifts by is wires; the shifter is for the rest.
            least = self.const(b.range.low)
            return self.binary("shr", self.binary("shr", a, least), self.binary("sub", b, least))
        if op == "mul":
            return product(self, a, b, found)
        if op in ("min", "max"):
            if a.range.high <= b.range.low:
                return a if op == "min" else b
            if b.range.high <= a.range.low:
                return b if op == "min" else a
        return self._make(op, (a, b), found)

    def multiplier(self, a: Node, b: Node, range: Range) -> Node:
        """A product that is computed as such."""
        swapped = ("mul", id(b), id(a), range, None)
        return self._made.get(swapped) or self._make("mul", (a, b), range)

    def select(self, condition: Node, yes: Node, no: Node) -> Node:
        """One of two."""
        if condition.range.low > 0 or condition.range.high < 0:
            return yes
        if condition.value == 0:
            return no
        return yes if yes is no else self._make("select", (condition, yes, no), yes.range.union(no.range))

    def bit_length(self, a: Node) -> Node:
        """The bits that a number takes: one more than the leading one's place, which is found by halving."""
        found = Range(a.range.low.bit_length(), a.range.high.bit_length())
        if found.low == found.high:
            return self.const(found.low)
        one = self.select(a, self.const(1), self.const(0))
        return self.cast(self.binary("add", self._leading(a), one), found)

    def _leading(self, a: Node) -> Node:
        """The place of a number's leading one; 0 for 0."""
        if a.range.high <= 1:
            return self.const(0)
        half = 1 << ((a.range.bits - 1).bit_length() - 1)
        above, below = self.binary("shr", a, self.const(half)), self.slice(a, 0, half)
        place = self.binary("add", self._leading(above), self.const(half))
        return self.select(above, place, self._leading(below))

    def slice(self, a: Node, low: int, width: int) -> Node:
        """Some of a number's bits."""
        if a.value is not None:
            return self.const((a.value >> low) & ((1 << width) - 1))
        if low == 0 and a.range.low >= 0 and a.range.bits <= width:
            return a
        most = (1 << width) - 1
        if a.range.low >= 0:
            most = min(most, a.range.high >> low)
        return self._make("slice", (a,), Range(0, most), (low, width))

    def cast(self, a: Node, range: Range, name: str = "") -> Node:
        """The same number, known to be of `range` as well."""
        if range.low <= a.range.low and a.range.high <= range.high:
            return a
        return self._make("cast", (a,), range, None, name)

    def read(self, words: np.ndarray, address: Node, range: Range, name: str) -> Node:
        """A word [depth] at an address."""
        if address.value is not None:
            return self.const(int(words[address.value]))
        return self._make("read", (address,), range, words, name)

    def fetch(self, array: Array, address: Node) -> Node:
        """An element of a buffered array."""
        return self._make("fetch", (address,), array.range, array, array.name)

    def recall(self, array: Array, lane: int, index: Node) -> Node:
        """What an earlier iteration kept at a place of the lane's memory."""
        return self._make("recall", (index,), array.range, (array, lane), array.name)

    def replaced(self, root: Node, others: Mapping[Node, Node]) -> Node:
        """The same expression with other nodes for some."""
        made: dict[Node, Node] = {}
        for node in reached([root]):
            args = tuple(made[a] for a in node.args)
            if node in others:
                made[node] = others[node]
            elif args == node.args or node.op in ("fetch", "recall"):
                # A memory is read where it was: the address is the same number.
                made[node] = node
            elif node.op in BINARY:
                made[node] = self.binary(node.op, args[0], args[1])
            elif node.op == "select":
                made[node] = self.select(args[0], args[1], args[2])
            elif node.op == "slice":
                made[node] = self.slice(args[0], *node.detail)
            elif node.op == "cast":
                made[node] = self.cast(args[0], node.range, node.name)
            else:
                made[node] = self.read(node.detail, args[0], node.range, node.name)
        return made[root]

    def shortened(self, update: Node, state: Node) -> Node:
        """The same number, with less to do after the state is known: what else is added is added up before.

        floor(a / 2^c) + b = floor((a + b 2^c) / 2^c), and (a + b) + c = a + (b + c), where a depends on the state.
        """
        late = after(reached([update]), {state})

        def sum_of(node: Node, term: Node) -> Node:
            """node + term, for a node that depends on the state."""
            bare = node
            while bare.op == "cast":
                bare = bare.args[0]
            if bare.op == "shr" and (count := bare.args[1].value) is not None:
                raised = self.binary("shl", term, self.const(count))
                return self.binary("shr", sum_of(bare.args[0], raised), self.const(count))
            if bare.op == "add":
                first, second = bare.args if bare.args[0] in late else bare.args[::-1]
                if second not in late:
                    return sum_of(first, self.binary("add", second, term))
            return self.binary("add", node, term)

        bare = update.args[0] if update.op == "cast" else update
        if bare.op != "add":
            return update
        first, second = bare.args if bare.args[0] in late else bare.args[::-1]
        if first not in late or second in late:
            return update
        return self.cast(sum_of(first, second), update.range)

    def numbers(self, node: Node, grid: dict[Var, np.ndarray]) -> np.ndarray | None:
        """The node's values in every iteration, if they are those of loop counters alone. The grid is one graph's."""
        if node not in self._numbers:
            self._numbers[node] = self._evaluate(node, grid)
        return self._numbers[node]

    def _evaluate(self, node: Node, grid: dict[Var, np.ndarray]) -> np.ndarray | None:
        if node.op == "const":
            return np.asarray(node.detail)
        if node.op in ("fetch", "recall"):
            return None
        if node.op == "source":
            source: Source = node.detail
            return np.asarray(grid[source.key]) if source.kind == "counter" else None
        parts = [self.numbers(a, grid) for a in node.args]
        given = [p for p in parts if p is not None]
        if len(given) < len(parts):
            return None
        if node.op == "select":
            return np.where(given[0] != 0, given[1], given[2])
        if node.op == "slice":
            return np.asarray((given[0] >> node.detail[0]) & ((1 << node.detail[1]) - 1))
        if node.op == "cast":
            return given[0]
        if node.op == "read":
            words: np.ndarray = node.detail
            return np.asarray(words[given[0]])
        return np.asarray(OPERATIONS[node.op](*given), np.int64)

    def _make(
        self, op: str, args: tuple[Node, ...], range: Range, detail: Any = None, name: str = ""
    ) -> Node:
        key = (op, *map(id, args), range, detail.tobytes() if isinstance(detail, np.ndarray) else detail)
        if key not in self._made:
            self._made[key] = Node(op, args, range, detail, name)
        return self._made[key]


def reached(roots: Iterable[Node]) -> list[Node]:
    """All nodes that the roots are made of, operands first."""
    found: dict[Node, None] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, done = stack.pop()
        if done:
            found[node] = None
        elif node not in found:
            stack.append((node, True))
            stack += [(a, False) for a in reversed(node.args)]
    return list(found)


def after(nodes: Iterable[Node], first: Iterable[Node]) -> set[Node]:
    """Those of nodes, operands first, that depend on some, and these."""
    found = set(first)
    for node in nodes:
        if any(a in found for a in node.args):
            found.add(node)
    return found
