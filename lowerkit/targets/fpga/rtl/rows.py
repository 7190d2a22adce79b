"""Products made of logic, where a device's multiplier blocks are too few.

A product is a sum of rows, one for each bit of its shorter operand: the other operand, shifted, or 0. Rows are added in
pairs, so that sums are short at first. The highest bit of a signed operand counts negatively.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowerkit.targets.fpga.cost import blocks as blocks_of
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.rtl.graph import Graph, Node, reached
from lowerkit.targets.fpga.rtl.pipeline import Pipeline, Stage


def limit_blocks(pipelines: Sequence[Pipeline], most: int, operands: tuple[int, int] = (18, 18)) -> int:
    """Make products of logic, the smallest first, until the others take at most `most` multiplier blocks.

    Args:
        operands: widths of a block's signed operands, in bits.

    Returns the number of blocks that are left.
    """
    found = [(stage, node) for p in pipelines for stage in p.stages for node in products(stage)]
    found.sort(key=lambda each: _size(each[1]))
    taken = sum(_blocks(node, operands) for _, node in found)
    chosen: dict[Stage, list[Node]] = {}
    for stage, node in found:
        if taken <= most:
            break
        taken -= _blocks(node, operands)
        chosen.setdefault(stage, []).append(node)
    for stage, nodes in chosen.items():
        _rewrite(stage, nodes)
    return taken


def products(stage: Stage) -> list[Node]:
    """Those that a multiplier computes, operands first."""
    return [n for n in reached(_roots(stage)) if n.op == "mul"]


def rows(graph: Graph, a: Node, b: Node) -> Node:
    """a b as a sum of rows."""
    if a.value is not None or (b.value is None and a.range.bits < b.range.bits):
        a, b = b, a
    zero = graph.const(0)
    sums = [graph.select(graph.slice(b, i, 1), a, zero) for i in range(b.range.bits)]
    # Of each sum, the next one's weight is 2^apart as large; that of a sign is negative.
    negative, apart = b.range.signed, 1
    while len(sums) > 1:
        last = [*["add"] * (len(sums) // 2 - 1), "sub" if negative and len(sums) % 2 == 0 else "add"]
        pairs = zip(last, sums[::2], sums[1::2], strict=False)
        joined = [
            graph.binary(op, low, graph.binary("shl", high, graph.const(apart))) for op, low, high in pairs
        ]
        negative &= len(sums) % 2 == 1
        sums = joined + sums[2 * len(joined) :]
        apart *= 2
    return graph.binary("sub", zero, sums[0]) if negative else sums[0]


def _size(product: Node) -> int:
    a, b = product.args
    return a.range.bits * b.range.bits


def _blocks(product: Node, operands: tuple[int, int]) -> int:
    a, b = (_signed(n.range) for n in product.args)
    return blocks_of((a, b), operands)


def _signed(range: Range) -> int:
    return range.bits + (not range.signed)


def _roots(stage: Stage) -> list[Node]:
    found = [n for c in stage.gives if c.writer for n in c.writer.nodes]
    found += [n for s in stage.states for n in (s.update, s.initial)]
    return found + [n for m in stage.memories for n in (m.index, m.value)]


def _rewrite(stage: Stage, chosen: Sequence[Node]) -> None:
    """Put rows in the place of products; operands first, as a product's operands may have others in them."""
    graph, wanted = stage.graph, set(chosen)
    made: dict[Node, Node] = {}
    for node in reached(_roots(stage)):
        if node in wanted:
            a, b = (graph.replaced(n, made) for n in node.args)
            made[node] = graph.cast(rows(graph, a, b), node.range)

    def new(node: Node) -> Node:
        return graph.replaced(node, made)

    stage.states = [replace(s, update=new(s.update), initial=new(s.initial)) for s in stage.states]
    stage.memories = [replace(m, index=new(m.index), value=new(m.value)) for m in stage.memories]
    for c in stage.gives:
        assert c.writer
        c.writer = replace(c.writer, nodes=tuple(new(n) for n in c.writer.nodes))
