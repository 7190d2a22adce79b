"""Affine maps of a tensor that the client encrypts: it sends each number where it is needed.

Tile tensors (Aharoni et al., HElayers, PoPETs 2023) replicate one operand along the dimensions of the other, so that
a matrix product becomes element-wise products of tiles, summed over tiles and then within one. Here the replication
is any map from slots to elements: slot i B + o of vector k holds the element that the (k g + i)-th non-zero number of
row o multiplies, for g groups of B slots. A dense row and a convolution's window are then the same thing. The sum
over the groups goes round the whole vector, so that every group ends with all outputs: they are replicated for free.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.layout import Gather, subsets


def group_counts(matrix: sparse.csr_array, block: int, slots: int) -> list[int]:
    """Numbers of groups into which vectors of `slots` can be split, `block` being the least slots of a group."""
    widest = int(np.diff(matrix.indptr).max(initial=1))
    found = [1]
    while slots // (2 * found[-1]) >= block and found[-1] < widest:
        found.append(2 * found[-1])
    return found


def tiles(
    matrix: sparse.csr_array, places: np.ndarray, slots: int, groups: int, inner: int = 0
) -> tuple[Gather, np.ndarray]:
    """How the client fills vectors, and what each of them is multiplied with, float64 [vectors, slots].

    Args:
        matrix: [outputs, size of the input].
        places: int64 [outputs], below slots / groups.
        inner: as of layouts: where else outputs are wanted.
    """
    block, copies = slots // groups, subsets(inner)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    rank = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    vectors = max(-(-int(rank.max(initial=0) + 1) // groups), 1)
    slot = (rank % groups * block + places[rows])[:, None] + copies
    index = np.full((vectors, slots), -1, np.int32)
    weights = np.zeros((vectors, slots))
    index[(rank // groups)[:, None], slot] = matrix.indices[:, None]
    weights[(rank // groups)[:, None], slot] = matrix.data[:, None]
    return Gather(index), weights


def summed(program: Packed, inputs: Sequence[int], weights: np.ndarray, groups: int) -> int:
    """Emit the sum of the products, and its sum over the groups."""
    total = program.total([program.mul_plain(x, row) for x, row in zip(inputs, weights, strict=True)])
    span = program.slots // groups
    while span < program.slots:
        total = program.add(total, program.rotate(total, span))
        span *= 2
    return total
