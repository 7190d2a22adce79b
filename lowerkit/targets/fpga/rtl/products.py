"""Products, as hardware has them: shifts and sums for simple constants, else multipliers no wider than a DSP block.

Sources: non-adjacent forms of constants: Reitwiesner, Binary arithmetic (1960); wide products of DSP blocks' limbs:
de Dinechin and Pasca, Large multipliers with fewer DSP blocks (FPL 2009).

A multiplier has registers at both sides (see `schedule`), so that what adds limbs up is cut from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowerkit.targets.fpga.lang.expr import Range

if TYPE_CHECKING:
    from lowerkit.targets.fpga.rtl.graph import Graph, Node

#: Bits of a multiplier's operand; one of them is a sign where either operand has one.
OPERAND = 18
#: Digits of a constant up to which a product is cheaper as a sum.
DIGITS = 3
#: What intervals of sums may reach: below `lang.expr.LARGEST`, with a bit for each of a few terms.
WIDEST = 58


def product(graph: Graph, a: Node, b: Node, range: Range) -> Node:
    """a b, whose range is known, of other nodes."""
    if a.value is not None:
        a, b = b, a
    if range.bits > WIDEST:
        return graph.multiplier(a, b, range)
    if b.value is not None and len(found := digits(b.value)) <= DIGITS:
        return graph.cast(_of_digits(graph, a, found), range)
    signed = a.range.signed or b.range.signed
    total: Node | None = None
    for x, low in _limbs(graph, a, signed):
        for y, high in _limbs(graph, b, signed):
            if x is a and y is b:
                return graph.multiplier(a, b, range)
            term = graph.binary("shl", graph.binary("mul", x, y), graph.const(low + high))
            total = term if total is None else graph.binary("add", total, term)
    assert total is not None
    return graph.cast(total, range)


def digits(number: int) -> list[tuple[int, int]]:
    """(sign, place) with number = sum sign 2^place, no two places next to each other: as few as there can be."""
    found, place = [], 0
    while number:
        if number & 1:
            sign = 2 - (number & 3)
            found.append((sign, place))
            number -= sign
        number >>= 1
        place += 1
    return found


def _of_digits(graph: Graph, a: Node, found: list[tuple[int, int]]) -> Node:
    total = graph.const(0)
    # From the highest digit on, which is positive for a positive constant.
    for sign, place in reversed(found):
        term = graph.binary("shl", a, graph.const(place))
        total = graph.binary("add" if sign > 0 else "sub", total, term)
    return total


def _limbs(graph: Graph, a: Node, signed: bool) -> list[tuple[Node, int]]:
    """Parts that a multiplier takes, and their places; all but the highest are not negative."""
    if a.range.bits <= OPERAND - (signed and not a.range.signed):
        return [(a, 0)]
    width = OPERAND - signed
    above = _limbs(graph, graph.binary("shr", a, graph.const(width)), signed)
    return [(graph.slice(a, 0, width), 0), *((part, place + width) for part, place in above)]
