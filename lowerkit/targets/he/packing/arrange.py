"""Where the outputs of an affine map should stand, for the sake of whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from lowerkit.targets.he.packing.layout import Layout, power_of_two


def orders(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Ranks of a tensor's elements, int64 [size]: row-major, and for what is a matrix column-major too.

    With tokens in rows, the latter is the feature-major layout, in which all tokens share each rotation.
    """
    size = int(np.prod(shape))
    yield np.arange(size)
    long = [n for n in shape if n > 1]
    if len(long) == 2:
        yield np.arange(size).reshape(long[1], long[0]).T.ravel()


def free(shape: tuple[int, ...], sets: np.ndarray | None) -> Iterator[np.ndarray]:
    """Places for outputs that may stand anywhere, int64 [size]: candidates.

    Args:
        sets: of outputs that the next affine map only sums (`presum.equal_columns`). The members of a set are put
            as far apart as the power of two above the number of sets, so that their sums go round.
    """
    size = int(np.prod(shape))
    yield from orders(shape)
    if sets is None or sets.shape[1] & (sets.shape[1] - 1):
        return
    for rank in (np.arange(len(sets)), _padded(shape, sets[:, 0]), _grid(shape, sets[:, 0])):
        places = np.full(size, -1)
        block = power_of_two(int(rank.max()) + 1)
        places[sets] = rank[:, None] + block * np.arange(sets.shape[1])[None, :]
        unused = np.flatnonzero(places < 0)
        places[unused] = places.max() + 1 + np.arange(len(unused))
        yield places


def _padded(shape: tuple[int, ...], members: np.ndarray) -> np.ndarray:
    """Places of `members` by channel, the first axis that is longer than 1: each from a power of two on."""
    channels = next((n for n in shape if n > 1), 1)
    channel = members // (int(np.prod(shape)) // channels)
    counts = np.bincount(channel, minlength=channels)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    found: np.ndarray = channel * power_of_two(int(counts.max())) + np.arange(len(members)) - first[channel]
    return found


def _grid(shape: tuple[int, ...], members: np.ndarray) -> np.ndarray:
    """Places of `members` by their coordinates, each axis padded to a power of two: steps of windows have own bits."""
    found, stride = np.zeros(len(members), np.int64), 1
    for axis in reversed(np.unravel_index(members, shape)):
        values, rank = np.unique(axis, return_inverse=True)
        found += stride * rank
        stride *= power_of_two(len(values))
    return found


def anchored(matrix: sparse.csr_array, source: Layout) -> Iterator[tuple[int, np.ndarray]]:
    """Places of a convolution's outputs, int64 [outputs]: each at the first element of its window, modulo a fold.

    Then the same few rotations serve all outputs. Those with the same window, the output channels, stand some stride
    apart, going on in the next copy of the source after the fold. Folds are those of `Diagonals`.
    """
    if np.diff(matrix.indptr).min(initial=1) == 0:
        return
    first = np.minimum.reduceat(source.places[matrix.indices], matrix.indptr[:-1])
    order = np.argsort(first, kind="stable")
    new = np.concatenate([[True], np.diff(first[order]) > 0])
    starts = np.flatnonzero(new)
    rank = np.empty(len(first), np.int64)
    rank[order] = np.arange(len(first)) - starts[np.cumsum(new) - 1]
    powers = [1 << i for i in reversed(range(1, source.period.bit_length()))]
    for fold in powers:
        for stride in (s for s in powers if s <= fold and rank.max() // (fold // s) < source.copies):
            around = fold // stride
            places: np.ndarray = (first + rank % around * stride) % fold + rank // around * source.period
            if len(np.unique(places)) == len(places):
                yield fold, places
