"""The tensor program: what is left of a lowered graph when every operator is polynomial.

Four kinds of steps suffice. An `Affine` step is any composition of linear operators, whatever their names were; its
matrix is sparse and in float64. Between affine steps stand products and polynomials of each element.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.polynomial import chebyshev
from scipy import sparse


@dataclass(frozen=True)
class Input:
    """A graph input, flattened in row-major order, or a part of one.

    Attributes:
        source, elements: of a part, the graph input, and which of its elements it has, int64 [size].
    """

    name: str
    shape: tuple[int, ...]
    node: str = ""
    source: str = ""
    elements: np.ndarray | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values that the step reads."""
        return ()

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The step's value, float64 [size], from those that it reads."""
        return picked(np.asarray(values[self.source or self.name], np.float64).ravel(), self.elements)

    def sent(self, index: np.ndarray) -> tuple[str, np.ndarray]:
        """The graph input, and which of its elements the elements `index` are; -1 stays."""
        if self.elements is None:
            return self.name, index
        return self.source, np.where(index >= 0, self.elements[index], -1).astype(index.dtype)


@dataclass(frozen=True)
class Affine:
    """sum of matrix @ value over `terms`, plus `bias`.

    Attributes:
        terms: value name -> CSR matrix [size, size of the value], float64.
        bias: float64 [size].
    """

    name: str
    shape: tuple[int, ...]
    node: str
    terms: Mapping[str, sparse.csr_array]
    bias: np.ndarray

    @property
    def reads(self) -> tuple[str, ...]:
        """See Input."""
        return tuple(self.terms)

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """See Input."""
        return sum((matrix @ values[name] for name, matrix in self.terms.items()), self.bias)


@dataclass(frozen=True)
class Product:
    """left[left_index] * right[right_index], element by element.

    Attributes:
        left_index, right_index: int64 [size]: which element of the factor each element of the product takes; None
            where the factor has the product's own elements in their order.
        axes: of a product of matrices before its sum, (batch, rows, columns, summed); empty for others.
    """

    name: str
    shape: tuple[int, ...]
    node: str
    left: str
    right: str
    left_index: np.ndarray | None = None
    right_index: np.ndarray | None = None
    axes: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """See Input."""
        return (self.left, self.right)

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """See Input."""
        found: np.ndarray = picked(values[self.left], self.left_index) * picked(
            values[self.right], self.right_index
        )
        return found

    @property
    def factors(self) -> tuple[tuple[str, np.ndarray | None], tuple[str, np.ndarray | None]]:
        """Both, each with its index."""
        return (self.left, self.left_index), (self.right, self.right_index)


@dataclass(frozen=True)
class Polynomial:
    """sum c_k T_k(t) of every element, where t maps [low, high] to [-1, 1]."""

    name: str
    shape: tuple[int, ...]
    node: str
    value: str
    coefficients: tuple[float, ...]
    low: float
    high: float

    @property
    def reads(self) -> tuple[str, ...]:
        """See Input."""
        return (self.value,)

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """See Input."""
        t = (2 * values[self.value] - (self.low + self.high)) / (self.high - self.low)
        found: np.ndarray = chebyshev.chebval(t, self.coefficients)
        return found


def picked(numbers: np.ndarray, index: np.ndarray | None) -> np.ndarray:
    """numbers[index]; all of them in order for None."""
    return numbers if index is None else numbers[index]


Step = Input | Affine | Product | Polynomial


@dataclass(frozen=True)
class Program:
    """Steps in order of computation; names are those of the graph's values.

    Attributes:
        outputs: names of the graph's outputs.
        multiples: name of a value of the graph -> name here of a multiple of it, and how many times as large it is.
        parts: value that is no step but divided (`split.py`) -> steps that are its parts, and their elements of it.
    """

    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    multiples: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    parts: Mapping[str, tuple[tuple[str, np.ndarray], ...]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def inputs(self) -> Iterator[Input]:
        """The graph's inputs that the outputs depend on."""
        return (step for step in self.steps if isinstance(step, Input))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every value, float64 in its shape; the meaning of the program."""
        values: dict[str, np.ndarray] = {}
        for step in self.steps:
            values[step.name] = step.evaluate(inputs if isinstance(step, Input) else values)
        return {step.name: values[step.name].reshape(step.shape) for step in self.steps}

    def digest(self) -> str:
        """SHA-256 of all that the program is."""
        found = hashlib.sha256(str(self).encode())
        for step in self.steps:
            for part in _parts(step):
                found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()

    def __str__(self) -> str:
        lines = [_line(step) for step in self.steps]
        lines += [f"{name} = {', '.join(part for part, _ in parts)}" for name, parts in self.parts.items()]
        return "\n".join([*lines, f"return {', '.join(self.outputs)}"])


def _parts(step: Step) -> Iterator[np.ndarray]:
    """The numbers that a step holds."""
    if isinstance(step, Affine):
        yield step.bias
        for matrix in step.terms.values():
            yield from (matrix.data, matrix.indices, matrix.indptr)
    elif isinstance(step, Product):
        yield from (index for _, index in step.factors if index is not None)
    elif isinstance(step, Input) and step.elements is not None:
        yield step.elements
    elif isinstance(step, Polynomial):
        yield np.array([*step.coefficients, step.low, step.high])


def _line(step: Step) -> str:
    shape = "x".join(map(str, step.shape))
    if isinstance(step, Affine):
        terms = " + ".join(
            f"M[{m.shape[0]}x{m.shape[1]}, {m.nnz} non-zero] {x}" for x, m in step.terms.items()
        )
        what = f"{terms} + bias"
    elif isinstance(step, Product):
        what = " * ".join(x if index is None else f"{x}[...]" for x, index in step.factors)
    elif isinstance(step, Polynomial):
        degree = len(step.coefficients) - 1
        what = f"polynomial of degree {degree} on [{step.low:.4g}, {step.high:.4g}] of {step.value}"
    else:
        what = f"input {step.source}".rstrip()
    return f"{step.name}: {shape} = {what}"
