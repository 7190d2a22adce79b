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
    """

    slots: int
    places: np.ndarray
    period: int
    clean: bool = True

    def __post_init__(self) -> None:
        assert self.slots % self.period == 0
        assert len(np.unique(self.places)) == len(self.places)
        assert self.places.size == 0 or 0 <= self.places.min() <= self.places.max() < self.period

    @property
    def copies(self) -> int:
        """How often the vector holds the tensor."""
        return self.slots // self.period

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """float64 [slots] with the elements at all of their places, and 0 elsewhere."""
        one = np.zeros(self.period)
        one[self.places] = numbers
        return np.tile(one, self.copies)


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
