"""Affine maps of an encrypted vector by its generalised diagonals.

Output o shall stand in slot d. Its product with the element in slot s (or in any copy of it) is made by rotating
the vector by k = s - d and multiplying with a plaintext; all pairs with the same k share the rotation and the
product (Halevi and Shoup, Algorithms in HElib, CRYPTO 2014, section 4.3). Two refinements keep rotations few:

- *Folding by F*: k is taken modulo F, so that partial sums for o end in slots d, d + F, d + 2F, ... of the period;
  log2(period / F) rotations then add these up. With F = 1 that is one product and a sum over all slots (GAZELLE,
  Juvekar et al., USENIX Security 2018, section 4.2, is the general case).
- *Baby steps and giant steps*: k = g + b, where b has some of the bits of k and g the others; the vector is rotated
  by the b only, and sums over b are rotated by the g, plaintexts being rotated back beforehand: 2 sqrt(#k) rotations
  instead of #k. Which bits are best depends on the k: windows of convolutions have theirs in several runs.

Where the vector holds copies, outputs may be spread over several of them: all share the same rotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        baby: the bits of b, as a number.
        inner: as of layouts: where else outputs are wanted.
    """

    fold: int
    places: np.ndarray
    copies: int
    baby: int = 0
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


def rotations(steps: np.ndarray, baby: int) -> tuple[int, int]:
    """Baby and giant rotations for the set of `steps`."""
    return int(np.count_nonzero(distinct(steps & baby))), int(np.count_nonzero(distinct(steps & ~baby)))


def best_split(steps: np.ndarray, values: int = 1) -> int:
    """Bits of the baby steps that make rotations few, of all runs of low bits together with one of high bits.

    By number alone, and the most baby steps of equal numbers: maps of one value share these.

    Args:
        values: how many are rotated by the baby steps.
    """
    bits = int(steps.max(initial=0)).bit_length()
    whole = (1 << bits) - 1
    masks = np.array([(1 << i) - 1 | whole - ((1 << j) - 1) for j in range(bits + 1) for i in range(j + 1)])
    masks = np.unique(masks & np.bitwise_or.reduce(steps, initial=0))
    babies, giants = (_counts(steps, part) for part in (masks, whole & ~masks))
    return int(masks[np.lexsort((-babies, values * babies + giants))[0]])


def _counts(steps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """How many numbers above 0 steps & mask are, for every mask."""
    seen = np.zeros((len(masks), 1 << int(masks.max()).bit_length()), bool)
    seen[np.arange(len(masks))[:, None], steps & masks[:, None]] = True
    found: np.ndarray = np.count_nonzero(seen[:, 1:], axis=1)
    return found


def distinct(numbers: np.ndarray) -> np.ndarray:
    """The set of `numbers`, which are not negative, ascending."""
    seen = np.zeros(int(numbers.max(initial=0)) + 1, bool)
    seen[numbers] = True
    found: np.ndarray = np.flatnonzero(seen)
    return found


def diagonals(
    program: Packed, maps: Sequence[tuple[int, sparse.csr_array, Layout]], plan: Diagonals
) -> tuple[int, Layout]:
    """Emit the sum of matrix @ x over `maps`: x, matrix, layout of x. Returns the sum and its layout.

    The sources have the same period. Their baby steps are their own; giant steps and what folds are the sum's.
    """
    slots, (*_, source) = program.slots, maps[0]
    sums: dict[int, list[int]] = {}
    for x, matrix, layout in maps:
        for step, weights in _plaintexts(matrix, layout, plan):
            shift = step & ~plan.baby
            turned = program.rotate(x, step - shift)
            sums.setdefault(shift, []).append(program.mul_plain(turned, np.roll(weights, shift)))
    shifted = [program.rotate(program.total(parts), shift) for shift, parts in sorted(sums.items())]
    total = program.total(shifted) if shifted else program.mul_plain(maps[0][0], np.zeros(slots))
    span = plan.fold
    while span < source.period:
        total = program.add(total, program.rotate(total, span))
        span *= 2
    return total, plan.layout(source)


def _plaintexts(
    matrix: sparse.csr_array, source: Layout, plan: Diagonals
) -> Iterator[tuple[int, np.ndarray]]:
    """Every k, ascending, and what the vector that is rotated by it is multiplied with, float64 [slots]."""
    period = source.period
    steps, wanted = offsets(matrix, source, plan)
    nearest = source.places[matrix.indices][:, None] | (wanted & source.inner)
    target = (wanted // period * period + (nearest - steps) % period).ravel()
    data, steps = np.repeat(matrix.data, steps.shape[1]), steps.ravel()
    copies = np.arange(source.copies // plan.copies) * plan.copies * period
    order = np.argsort(steps, kind="stable")
    counts = np.bincount(steps)
    for here in np.split(order, np.cumsum(counts[counts > 0]))[:-1]:
        weights = np.zeros(source.slots)
        weights[(target[here][None, :] + copies[:, None]).ravel()] = np.tile(data[here], len(copies))
        yield int(steps[here[0]]), weights
