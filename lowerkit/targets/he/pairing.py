"""Products of ciphertexts that are not rescaled themselves, but with the layer after them, by one long prime.

What rotations and products cost grows with the number of primes, and faster than it, while a prime's length, up to 60
bits, costs nothing. A product of ciphertexts at rest has the square of their scale; where only products with plaintexts
read it, it may keep that, and one prime of 60 bits then divides by both scales: a square and the layer after it take
one level. That leaves plaintexts less precise than primes of their own would, so that as many pairs are made as the
precision allows, from the last on. It is the idea of the waterline rescaling of EVA (Dathathri et al., PLDI 2020,
section 5.3), for chains whose levels each have one scale for all that is at rest.
"""

from __future__ import annotations

from collections.abc import Set

from lowerkit.targets.he.packed import Packed

_LINEAR = ("add", "sub", "add_plain", "rotate")


def unscaled(packed: Packed, pairs: int) -> frozenset[int]:
    """Values that keep the square of the scale: such products, and their sums and rotations.

    Args:
        pairs: depths at which plaintext products may read such values, the deepest that there are; none are taken where
            products of ciphertexts at the same depth are rescaled.
    """
    found = _closed(packed, {i for i, op in enumerate(packed.ops) if op.kind in ("mul", *_LINEAR)})
    depths = packed.depths(found)
    kept = sorted({depths[i] for i in found})[max(len({depths[i] for i in found}) - pairs, 0) :]
    found = _closed(packed, {i for i in found if depths[i] in kept})
    depths = packed.depths(found)
    squared = {depths[i] for i, op in enumerate(packed.ops) if op.kind == "mul" and i not in found}
    # A long prime cannot divide a product of ciphertexts to a scale that is near its level's.
    return frozenset() if squared & paired_depths(packed, found) else found


def paired_depths(packed: Packed, values: Set[int]) -> set[int]:
    """The depths at which products with plaintexts read `values`."""
    depths = packed.depths(values)
    return {depths[i] for i, op in enumerate(packed.ops) if op.kind == "mul_plain" and op.args[0] in values}


def _closed(packed: Packed, found: set[int]) -> frozenset[int]:
    """Of these values those that only each other read and, in the end, products with plaintexts."""
    while True:
        depths, wrong = packed.depths(found), found & set(packed.outputs)
        for i, op in enumerate(packed.ops):
            inner = [a for a in op.args if a in found]
            if op.kind in _LINEAR and i in found:
                if len(inner) < len(op.args) or len({depths[a] for a in op.args}) > 1:
                    wrong.update((i, *inner))
            elif op.kind != "mul_plain":
                wrong.update(inner)
        if not wrong:
            return frozenset(found)
        found -= wrong
