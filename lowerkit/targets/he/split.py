"""Tensors that are larger than a ciphertext, as several values: a rewriting of the tensor program before it is packed.

Every value whose elements do not fit into the slots is divided into parts, each a value of its own:

- a product of matrices by its batch (the heads of attention), then by rows, columns and the summed axis;
- what such a product reads by the parts that read it; what is computed of parts alone likewise, so that softmax, sums
  and polynomials go part by part;
- anything else along its first axis: channels, tokens, units.

An affine map becomes one for each part of its result, with a term for each part of its operand from which anything
comes. A product whose factors' parts do not line up reads them through a map that selects, at one level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from scipy import sparse

from lowerkit.targets.he.packing.layout import power_of_two
from lowerkit.targets.he.program import Affine, Input, Polynomial, Product, Program, Step


def split(program: Program, slots: int, *, tiled: bool = True) -> Program:
    """The same program with no value of more than `slots` numbers; the very same where there is none.

    `Program.parts` then says which elements of a value are in which of its parts.

    Args:
        tiled: whether an input may stay whole that affine maps alone read: the client sends it as they need it.
    """
    labels: dict[str, np.ndarray] = {}
    frames = {s.name: _frame(s, slots) for s in program.steps if isinstance(s, Product) and s.axes}
    for step in program.steps:
        found = _labels(program, step, labels, frames, slots, tiled)
        labels[step.name] = np.unique(found, return_inverse=True)[1]
    if not any(part.any() for part in labels.values()):
        return program
    return _Rewriting(program, labels).run()


def _labels(
    program: Program,
    step: Step,
    labels: Mapping[str, np.ndarray],
    frames: Mapping[str, np.ndarray],
    slots: int,
    tiled: bool,
) -> np.ndarray:
    """Which part every element of the step belongs to, int64 [size]; equal numbers belong together."""
    if isinstance(step, Polynomial):
        return labels[step.value]
    size = math.prod(step.shape)
    if isinstance(step, Input) and tiled and sent_as_read(program, step):
        return np.zeros(size, np.int64)
    if step.name in frames:
        return frames[step.name]
    if isinstance(step, Product):
        candidates = [labels[v] if index is None else labels[v][index] for v, index in step.factors]
        found = max(candidates, key=lambda c: int(c.max()))
    elif isinstance(step, Affine):
        found = _wanted(program, step, frames)
        inherited = (_within(matrix, labels[value]) for value, matrix in step.terms.items())
        if found is None:
            found = next((each for each in inherited if each is not None), None)
    else:
        found = None
    if found is None:
        found = np.zeros(size, np.int64)
    # What is still too large goes by its first axis.
    return found if np.bincount(found).max() <= slots else _pair(found, _chunks(step.shape, slots))


def sent_as_read(program: Program, step: Input) -> bool:
    """Whether maps of an input alone read it, so that the client may send its elements to where each is needed."""
    readers = [s for s in program.steps if step.name in s.reads]
    alone = all(isinstance(r, Affine) and len(r.terms) == 1 for r in readers)
    return alone and step.name not in program.outputs


def _frame(step: Product, slots: int) -> np.ndarray:
    """Parts of a product of matrices whose axes, each padded to a power of two, fit into the slots."""
    lengths = list(step.axes)
    for axis in range(len(lengths)):
        while lengths[axis] > 1 and math.prod(power_of_two(n) for n in lengths) > slots:
            lengths[axis] = power_of_two(lengths[axis]) // 2
    index = np.indices(step.axes).reshape(len(lengths), -1)
    chunk = [part // length for part, length in zip(index, lengths, strict=True)]
    counts = [-(-n // length) for n, length in zip(step.axes, lengths, strict=True)]
    found: np.ndarray = np.ravel_multi_index(chunk, counts)
    return found


def _wanted(program: Program, step: Affine, frames: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Elements of a factor of a product of matrices that the same parts of it read belong together."""
    size = math.prod(step.shape)
    for reader in program.steps:
        if reader.name not in frames or not isinstance(reader, Product) or not frames[reader.name].any():
            continue
        for name, index in reader.factors:
            if name == step.name:
                index = np.arange(size) if index is None else index
                first, last = np.full(size, len(index)), np.zeros(size, np.int64)
                np.minimum.at(first, index, frames[reader.name])
                np.maximum.at(last, index, frames[reader.name])
                return _pair(first, last)
    return None


def _within(matrix: sparse.csr_array, labels: np.ndarray) -> np.ndarray | None:
    """The part of the operand that every row reads; None where one reads several, or nothing."""
    if not labels.any() or np.diff(matrix.indptr).min(initial=1) == 0:
        return None
    read, starts = labels[matrix.indices], matrix.indptr[:-1]
    first: np.ndarray = np.minimum.reduceat(read, starts)
    return first if np.array_equal(first, np.maximum.reduceat(read, starts)) else None


def _chunks(shape: tuple[int, ...], slots: int) -> np.ndarray:
    """Parts of about equal size along the first axis that is longer than 1, or of all elements in a row."""
    size = math.prod(shape)
    rows = next((n for n in shape if n > 1), 1)
    each = size // rows
    if each > slots:
        rows, each = size, 1
    count = -(-rows // (slots // each))
    return np.arange(size) // each // -(-rows // count)


def _pair(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Equal where both are."""
    return np.unique(np.stack([one, two]), axis=1, return_inverse=True)[1].ravel()


class _Rewriting:
    def __init__(self, program: Program, labels: Mapping[str, np.ndarray]) -> None:
        self.program, self.labels = program, labels
        #: By value: the elements of each part, and every element's number in its part.
        self.parts = {n: [np.flatnonzero(x == k) for k in range(int(x.max()) + 1)] for n, x in labels.items()}
        self.local = {n: np.empty(len(x), np.int64) for n, x in labels.items()}
        for name, parts in self.parts.items():
            for elements in parts:
                self.local[name][elements] = np.arange(len(elements))

    def run(self) -> Program:
        steps = [part for step in self.program.steps for part in self._divided(step)]
        known = {
            name: tuple((self._name(name, k), elements) for k, elements in enumerate(parts))
            for name, parts in self.parts.items()
            if len(parts) > 1
        }
        return replace(self.program, steps=tuple(steps), parts=known)

    def _name(self, value: str, part: int) -> str:
        return f"{value}[{part}]" if len(self.parts[value]) > 1 else value

    def _divided(self, step: Step) -> Iterator[Step]:
        if len(self.parts[step.name]) == 1 and all(len(self.parts[name]) == 1 for name in step.reads):
            yield step
            return
        for k, elements in enumerate(self.parts[step.name]):
            name, shape = self._name(step.name, k), self._shape(step, elements)
            if isinstance(step, Input):
                yield Input(name, shape, step.node, step.name, elements)
            elif isinstance(step, Affine):
                terms = self._terms(step.terms, elements)
                yield replace(step, name=name, shape=shape, terms=terms, bias=step.bias[elements])
            elif isinstance(step, Polynomial):
                yield replace(step, name=name, shape=shape, value=self._name(step.value, k))
            else:
                yield from self._product(step, k, elements)

    def _shape(self, step: Step, elements: np.ndarray) -> tuple[int, ...]:
        """The axes of a part that is a box of its tensor; else all elements in a row."""
        axes = [np.unique(axis) for axis in np.unravel_index(elements, step.shape)]
        shape = tuple(len(axis) for axis in axes)
        return shape if math.prod(shape) == len(elements) else (len(elements),)

    def _terms(
        self, terms: Mapping[str, sparse.csr_array], elements: np.ndarray
    ) -> dict[str, sparse.csr_array]:
        """The rows `elements`, by parts of the operands; zero blocks left out, but for the last one."""
        found: dict[str, sparse.csr_array] = {}
        for value, matrix in terms.items():
            rows = sparse.csr_array(matrix[elements])
            for j, columns in enumerate(self.parts[value]):
                block = sparse.csr_array(sparse.csc_array(rows)[:, columns])
                block.sort_indices()
                found[self._name(value, j)] = block
        return {name: block for name, block in found.items() if block.nnz} or dict([found.popitem()])

    def _product(self, step: Product, k: int, elements: np.ndarray) -> Iterator[Step]:
        factors: list[tuple[str, np.ndarray | None]] = []
        for place, (value, index) in enumerate(step.factors):
            taken = elements if index is None else index[elements]
            part = np.unique(self.labels[value][taken])
            if len(part) == 1:
                name, local = self._name(value, int(part[0])), self.local[value][taken]
                size = len(self.parts[value][int(part[0])])
            else:  # parts that do not line up
                chosen, local = np.unique(taken, return_inverse=True)
                name, size = f"{self._name(step.name, k)}.{'left' if place == 0 else 'right'}", len(chosen)
                whole = sparse.csr_array(sparse.eye_array(len(self.labels[value])))
                terms = self._terms({value: whole}, chosen)
                yield Affine(name, (size,), step.node, terms, np.zeros(size))
            aligned = np.array_equal(local, np.arange(size))
            factors.append((name, None if aligned else local))
        (left, one), (right, two) = factors
        axes = self._shape(replace(step, shape=step.axes), elements) if step.axes else ()
        shape = (len(elements),) if step.axes else self._shape(step, elements)
        name = self._name(step.name, k)
        yield Product(name, shape, step.node, left, right, one, two, axes)
