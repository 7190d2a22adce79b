"""Fewer rotation keys: a rotation as several, by steps that have keys.

Every step that a program rotates by takes a key, and keys are most of what a server holds. Of steps that are sums of
two others the least used go first; where that does not suffice, what is left are the powers of a radix, of which every
step is a sum of digits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np


def routes(uses: Mapping[int, int], slots: int, most: int) -> dict[int, tuple[int, ...]]:
    """Step -> at most `most` different steps in all whose sum it is, modulo `slots`, as few of them as possible.

    Args:
        uses: how often the program rotates by each step, from 1 to slots - 1.
        most: at least 1.
    """
    base = set(uses)
    while len(base) > most:
        spare = [s for s in sorted(base) if _is_sum(s, base - {s}, slots)]
        if not spare:
            base = _powers(slots, most)
            break
        base.remove(min(spare, key=lambda s: uses[s]))
    return _shortest(uses, base, slots)


def _is_sum(step: int, base: Collection[int], slots: int) -> bool:
    return any((step - a) % slots in base for a in base)


def _powers(slots: int, most: int) -> set[int]:
    """Powers of the least radix, itself a power of two, of which `most` suffice."""
    radix = 2
    while radix**most < slots:
        radix *= 2
    return {radix**i for i in range(most) if radix**i < slots}


def _shortest(uses: Collection[int], base: Collection[int], slots: int) -> dict[int, tuple[int, ...]]:
    """Breadth-first search from no rotation at all; `last[s]` is the last step on a shortest way to s."""
    last = np.zeros(slots, np.int64)
    reached = np.zeros(slots, bool)
    reached[0] = True
    front = np.array([0])
    while not reached[list(uses)].all():
        found = []
        for step in sorted(base, reverse=True):
            places = (front + step) % slots
            places = places[~reached[places]]
            last[places], reached[places] = step, True
            found.append(places)
        front = np.concatenate(found)
    ways: dict[int, tuple[int, ...]] = {}
    for step in uses:
        way, place = list[int](), step
        while place:
            way.append(int(last[place]))
            place = (place - way[-1]) % slots
        ways[step] = tuple(sorted(way, reverse=True))
    return ways
