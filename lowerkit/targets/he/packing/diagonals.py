"""Affine maps of an encrypted vector by its generalised diagonals.

Output o shall stand in slot d. Its product with the element in slot s (or in any copy of it) is made by rotating
the vector by k = s - d and multiplying with a plaintext; all pairs with the same k share the rotation and the
product (Halevi and Shoup, Algorithms in HElib, CRYPTO 2014, section 4.3). Two refinements keep rotations few:

- *Folding by F*: k is taken modulo F, so that partial sums for o end in slots d, d + F, d + 2F, ... of the period;
  log2(period / F) rotations then add these up. With F = 1 that is one product and a sum over all slots (GAZELLE,
  Juvekar et al., USENIX Security 2018, section 4.2, is the general case).
- *Baby steps and giant steps*: k = g n + b; the vector is rotated by the b only, and sums over b are rotated by the
  g n, plaintexts being rotated back beforehand: 2 sqrt(#k) rotations instead of #k.

Where the vector holds copies, outputs may be spread over several of them: all share the same rotations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.layout import Layout, subsets


@dataclass(frozen=True)
class Diagonals:
    """How an affine map is computed; see the module.

    Attributes:
        fold: F, a power of two that divides the source's period.
        places: int64 [outputs]: wanted slot of each output; below F within its copy of the source.
        copies: how many copies of the source one copy of the outputs takes, a power of two. The outputs are
            repeated all round.
        giant: n.
        inner: as of layouts: where else outputs are wanted.
    """

    fold: int
    places: np.ndarray
    copies: int
    giant: int = 1
    inner: int = 0

    def layout(self, source: Layout) -> Layout:
        """Of the product."""
        period = self.fold if self.copies == 1 else self.copies * source.period
        return Layout(source.slots, self.places, period, self.fold == source.period, self.inner)


def offsets(matrix: sparse.csr_array, source: Layout, plan: Diagonals) -> tuple[np.ndarray, np.ndarray]:
    """k and the slot of the output for every non-zero element of the matrix and every inner place of its output.

    Both int64 [elements, inner places], elements in CSR order.
    """
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    wanted = plan.places[rows][:, None] + subsets(plan.inner)
    # Of the source's inner copies, the one with the bits of the slot that is wanted.
    nearest = source.places[matrix.indices][:, None] | (wanted & source.inner)
    return (nearest - wanted) % plan.fold, wanted


def giant_steps(steps: np.ndarray) -> list[int]:
    """Giant steps that are worth a try for the set of `steps`."""
    root = np.sqrt(max(len(steps), 1))
    span = max(int(steps.max(initial=0)).bit_length(), 1)
    return sorted({2**i for i in range(span)} | {int(np.ceil(root))})


def rotations(steps: np.ndarray, giant: int) -> tuple[int, int]:
    """Baby and giant rotations for the set of `steps`."""
    return int(np.count_nonzero(distinct(steps % giant))), int(np.count_nonzero(distinct(steps // giant)))


def distinct(numbers: np.ndarray) -> np.ndarray:
    """The set of `numbers`, which are not negative, ascending."""
    seen = np.zeros(int(numbers.max(initial=0)) + 1, bool)
    seen[numbers] = True
    found: np.ndarray = np.flatnonzero(seen)
    return found


def diagonals(
    program: Packed, x: int, matrix: sparse.csr_array, source: Layout, plan: Diagonals
) -> tuple[int, Layout]:
    """Emit matrix @ x. Returns the product and its layout."""
    slots, period = program.slots, source.period
    steps, wanted = offsets(matrix, source, plan)
    nearest = source.places[matrix.indices][:, None] | (wanted & source.inner)
    target = (wanted // period * period + (nearest - steps) % period).ravel()
    data, steps = np.repeat(matrix.data, steps.shape[1]), steps.ravel()
    copies = np.arange(source.copies // plan.copies) * plan.copies * period
    giants = steps // plan.giant
    sums: list[int] = []
    for giant in distinct(giants):
        shift = int(giant) * plan.giant
        parts = []
        for step in distinct(steps[giants == giant]):
            here = steps == step
            weights = np.zeros(slots)
            weights[(target[here][None, :] + copies[:, None]).ravel()] = np.tile(data[here], len(copies))
            turned = program.rotate(x, int(step) - shift)
            parts.append(program.mul_plain(turned, np.roll(weights, shift)))
        sums.append(program.rotate(program.total(parts), shift))
    total = program.total(sums) if sums else program.mul_plain(x, np.zeros(slots))
    span = plan.fold
    while span < period:
        total = program.add(total, program.rotate(total, span))
        span *= 2
    return total, plan.layout(source)
