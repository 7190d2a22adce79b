"""Affine maps of a tensor that the client encrypts: it sends each number where it is needed.

Tile tensors (Aharoni et al., HElayers, PoPETs 2023) replicate one operand along the dimensions of the other, so that
a matrix product becomes element-wise products of tiles, summed over tiles and then within one. Here the replication
is any map from slots to elements: slot i B + o of vector k holds the element that the (k g + i)-th non-zero number of
row o multiplies, for g groups of B slots. A dense row and a convolution's window are then the same thing. The sum
over the groups goes round the whole vector, so that every group ends with all outputs: they are replicated for free.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.layout import Gather, Layout


def group_counts(matrix: sparse.csr_array, block: int, slots: int) -> list[int]:
    """Numbers of groups into which vectors of `slots` can be split, `block` being the least slots of a group."""
    widest = int(np.diff(matrix.indptr).max(initial=1))
    found = [1]
    while slots // (2 * found[-1]) >= block and found[-1] < widest:
        found.append(2 * found[-1])
    return found


def tiles(
    program: Packed, matrix: sparse.csr_array, places: np.ndarray, groups: int
) -> tuple[int, Gather, Layout]:
    """Emit matrix @ input with its inputs, in `groups` groups.

    Args:
        matrix: [outputs, size of the input].
        places: int64 [outputs], below slots / groups.

    Returns:
        The product, how the client fills its inputs, and the product's layout.
    """
    slots, block = program.slots, program.slots // groups
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    rank = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    vectors = max(-(-int(rank.max(initial=0) + 1) // groups), 1)
    slot = rank % groups * block + places[rows]
    index = np.full((vectors, slots), -1, np.int32)
    weights = np.zeros((vectors, slots))
    index[rank // groups, slot] = matrix.indices
    weights[rank // groups, slot] = matrix.data
    total = program.total([program.mul_plain(program.input(), row) for row in weights])
    span = block
    while span < slots:
        total = program.add(total, program.rotate(total, span))
        span *= 2
    return total, Gather(index), Layout(slots, places, block)
