"""Which slot holds which element of a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """One vector of slots that holds a tensor, perhaps several times over.

    Attributes:
        slots: length of the vector.
        places: int64 [size]: slot of each element's first copy, below `period`.
        period: copies of every element stand `period` slots apart, all round; `slots` where there is one copy.
        clean: whether all other slots hold 0. If not they hold what may not be let in, and may be larger.
        inner: bits below the period that places do not have: copies stand at places with any of them set, too.
    """

    slots: int
    places: np.ndarray
    period: int
    clean: bool = True
    inner: int = 0

    def __post_init__(self) -> None:
        assert self.slots % self.period == 0
        assert np.bincount(self.places).max(initial=0) <= 1
        assert self.places.size == 0 or 0 <= self.places.min() <= self.places.max() < self.period
        assert self.inner < self.period
        assert not np.any(self.places & self.inner)

    @property
    def copies(self) -> int:
        """How many periods the vector has."""
        return self.slots // self.period

    @property
    def tidy(self) -> bool:
        """Whether no slot holds anything but elements and 0."""
        return self.clean or len(self.places) << self.inner.bit_count() == self.period

    def held(self) -> np.ndarray:
        """Which element every slot holds, int64 [slots]; -1 for none."""
        one = np.full(self.period, -1)
        one[self.places[:, None] + subsets(self.inner)] = np.arange(len(self.places))[:, None]
        return np.tile(one, self.copies)

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """float64 [slots] with the elements at all of their places, and 0 elsewhere."""
        found: np.ndarray = np.append(numbers, 0.0)[self.held()]
        return found

    def key(self) -> tuple[object, ...]:
        """Equal for layouts that are."""
        return (self.period, self.clean, self.inner, self.places.tobytes())


def subsets(bits: int) -> np.ndarray:
    """All numbers whose bits are among `bits`, int64, ascending."""
    found = np.zeros(1, np.int64)
    for i in range(bits.bit_length()):
        if bits >> i & 1:
            found = np.concatenate([found, found + (1 << i)])
    return found


@dataclass(frozen=True)
class Gather:
    """How a client spreads a tensor over the slots of several vectors.

    Attributes:
        index: int32 [vectors, slots]: element of the flattened tensor in each slot, -1 for 0.
    """

    index: np.ndarray

    def vectors(self, tensor: np.ndarray) -> np.ndarray:
        """float64 [vectors, slots]."""
        padded = np.append(np.asarray(tensor, np.float64).ravel(), 0.0)
        found: np.ndarray = padded[self.index]
        return found


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
