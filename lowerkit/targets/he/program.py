"""The tensor program: what is left of a lowered graph when every operator is polynomial.

Four kinds of steps suffice. An `Affine` step is any composition of linear operators, whatever their names were; its
matrix is sparse and in float64. Between affine steps stand products and polynomials of each element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.polynomial import chebyshev
from scipy import sparse


@dataclass(frozen=True)
class Input:
    """A graph input, flattened in row-major order."""

    name: str
    shape: tuple[int, ...]
    node: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values that the step reads."""
        return ()

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The step's value, float64 [size], from those that it reads."""
        return np.asarray(values[self.name], np.float64).ravel()


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
    """left * right, element by element."""

    name: str
    shape: tuple[int, ...]
    node: str
    left: str
    right: str

    @property
    def reads(self) -> tuple[str, ...]:
        """See Input."""
        return (self.left, self.right)

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """See Input."""
        found: np.ndarray = values[self.left] * values[self.right]
        return found


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


Step = Input | Affine | Product | Polynomial


@dataclass(frozen=True)
class Program:
    """Steps in order of computation; names are those of the graph's values.

    Attributes:
        outputs: names of the graph's outputs.
    """

    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

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

    def __str__(self) -> str:
        return "\n".join(_line(step) for step in self.steps) + f"\nreturn {', '.join(self.outputs)}"


def _line(step: Step) -> str:
    shape = "x".join(map(str, step.shape))
    if isinstance(step, Affine):
        terms = " + ".join(
            f"M[{m.shape[0]}x{m.shape[1]}, {m.nnz} non-zero] {x}" for x, m in step.terms.items()
        )
        what = f"{terms} + bias"
    elif isinstance(step, Product):
        what = f"{step.left} * {step.right}"
    elif isinstance(step, Polynomial):
        degree = len(step.coefficients) - 1
        what = f"polynomial of degree {degree} on [{step.low:.4g}, {step.high:.4g}] of {step.value}"
    else:
        what = "input"
    return f"{step.name}: {shape} = {what}"


def fused(program: Program) -> Program:
    """The same program with affine steps of affine steps multiplied out: each costs a level.

    A step whose matrix only moves and scales elements goes into all of its readers; any other goes into its only
    reader, so that nothing is computed twice.
    """
    steps: dict[str, Step] = {}
    program = _on_unit(program)
    readers = {step.name: sum(step.name in s.reads for s in program.steps) for step in program.steps}
    for step in program.steps:
        if isinstance(step, Affine):
            step = _substituted(step, steps, readers)
        steps[step.name] = step
    needed = set(program.outputs)
    for step in reversed(steps.values()):
        if step.name in needed:
            needed.update(step.reads)
    kept = tuple(s for s in steps.values() if s.name in needed or isinstance(s, Input))
    return Program(kept, program.outputs)


def _on_unit(program: Program) -> Program:
    """Every polynomial on [-1, 1], after an affine step that maps its interval there."""
    steps: list[Step] = []
    for step in program.steps:
        if isinstance(step, Polynomial) and (step.low, step.high) != (-1.0, 1.0):
            size, factor = int(np.prod(step.shape)), 2 / (step.high - step.low)
            scaling = sparse.csr_array(
                sparse.dia_array((np.full((1, size), factor), [0]), shape=(size, size))
            )
            shift = np.full(size, -factor * (step.low + step.high) / 2)
            mapped = Affine(f"{step.name}.unit", step.shape, step.node, {step.value: scaling}, shift)
            steps.append(mapped)
            step = replace(step, value=mapped.name, low=-1.0, high=1.0)
        steps.append(step)
    return Program(tuple(steps), program.outputs)


def _substituted(step: Affine, steps: Mapping[str, Step], readers: Mapping[str, int]) -> Affine:
    terms: dict[str, sparse.csr_array] = {}
    bias = np.array(step.bias, np.float64)

    def add(name: str, matrix: sparse.csr_array) -> None:
        terms[name] = sparse.csr_array(terms[name] + matrix) if name in terms else matrix

    for name, matrix in step.terms.items():
        source = steps[name]
        if not isinstance(source, Affine) or not (readers[name] == 1 or _moves(source)):
            add(name, matrix)
            continue
        bias += matrix @ source.bias
        for inner, first in source.terms.items():
            add(inner, sparse.csr_array(matrix @ first))
    return Affine(step.name, step.shape, step.node, terms, bias)


def _moves(step: Affine) -> bool:
    return all(np.diff(matrix.indptr).max(initial=0) <= 1 for matrix in step.terms.values())
