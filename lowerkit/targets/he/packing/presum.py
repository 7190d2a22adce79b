"""Sums that a matrix takes anyway, taken before it: average pooling, and any columns that are equal.

Where the columns of several elements are equal, the matrix sees their sum alone. If these elements lie at the same
distances everywhere, a few rotations sum all of them at once, at no level, and the matrix is narrower by as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.layout import Layout, power_of_two


def equal_columns(matrix: sparse.csr_array) -> np.ndarray | None:
    """Sets of equal columns that are not 0, int64 [sets, members], where all have the same size, above 1.

    None where they do not. Sets are in order of their first members, and members in order.
    """
    columns = sparse.csc_array(matrix)
    columns.sort_indices()
    found: dict[tuple[bytes, bytes], list[int]] = {}
    for j in range(columns.shape[1]):
        part = slice(columns.indptr[j], columns.indptr[j + 1])
        if part.start != part.stop:
            key = (columns.indices[part].tobytes(), columns.data[part].tobytes())
            found.setdefault(key, []).append(j)
    sizes = {len(members) for members in found.values()}
    if len(sizes) != 1 or sizes.pop() == 1:
        return None
    return np.array(list(found.values()))


@dataclass(frozen=True)
class Presum:
    """Rotations that sum the sets, and what is left.

    Attributes:
        steps: x becomes x + rotate(x, step) for each.
        matrix: the columns of the sets' first members.
        layout: of the sums.
    """

    steps: tuple[int, ...]
    matrix: sparse.csr_array
    layout: Layout

    def emit(self, program: Packed, x: int) -> int:
        """The sums of x."""
        for step in self.steps:
            x = program.add(x, program.rotate(x, step))
        return x


def presum(matrix: sparse.csr_array, sets: np.ndarray, source: Layout) -> Presum | None:
    """The rotations for sets of equal columns, or None where these do not lie alike.

    Where sets have no power of two members, these have to lie in a row, and 0 where the row goes on up to one.
    """
    places = np.sort(source.places[sets], axis=1)
    distances = places - places[:, :1]
    if np.any(distances != distances[0]):
        return None
    row = _filled(places[:, 0], distances[0], source)
    steps = _basis(row.tolist())
    if steps is None:
        return None
    around = np.array_equal(row, np.arange(len(row)) * (source.period // len(row)))
    period = source.period // len(row) if around else source.period
    kept = sparse.csr_array(sparse.csc_array(matrix)[:, sets[:, 0]])
    layout = Layout(source.slots, places[:, 0], period, around and source.clean, source.inner)
    return Presum(steps, kept, layout)


def _filled(first: np.ndarray, distances: np.ndarray, source: Layout) -> np.ndarray:
    """The distances of a set's members, and of the zeros that make them a power of two."""
    members, stride = len(distances), distances[1]
    row = stride * np.arange(power_of_two(members))
    if len(row) == members or not np.array_equal(row[:members], distances) or not source.tidy:
        return distances
    padding = (first[:, None] + row[members:]) % source.slots
    return row if bool((source.held()[padding] < 0).all()) else distances


def _basis(distances: list[int]) -> tuple[int, ...] | None:
    """Numbers whose subset sums are `distances`, which are sorted and start with 0."""
    basis: list[int] = []
    sums = [0]
    while len(sums) < len(distances):
        step = next(d for d in distances if d not in sums)
        basis.append(step)
        sums = sorted([*sums, *(s + step for s in sums)])
        if not set(sums) <= set(distances):
            return None
    return tuple(basis)
