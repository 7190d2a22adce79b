"""Independent samples in one ciphertext: the program of one sample, with the samples innermost.

A graph for B samples computes the same for each, so that all matrices consist of B equal blocks. The packing of one
sample into 1/L of the slots, with every slot L times over, then serves L samples with the rotations and products of
one. What does not fit that way goes on in further ciphertexts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy import sparse

from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.ways import Held, Network
from lowerkit.targets.he.program import Affine, Product, Program, Step


def one_of(program: Program) -> tuple[Program, int]:
    """The program of one sample, and how many independent ones the program is for: the inputs' first axis, or 1."""
    counts = {step.shape[0] if step.shape else 1 for step in program.inputs()}
    count = counts.pop() if len(counts) == 1 else 1
    if count > 1 and all(program[name].shape[:1] == (count,) for name in program.outputs):
        steps = [_one(step, count, program) for step in program.steps]
        found = [step for step in steps if step is not None]
        if len(found) == len(steps):
            return Program(tuple(found), program.outputs, program.multiples), count
    return program, 1


def _one(step: Step, count: int, program: Program) -> Step | None:
    """A step for the first of `count` samples; None where samples are not independent."""
    size = int(np.prod(step.shape))
    if size % count:
        return None
    shape = (1, *step.shape[1:]) if step.shape[:1] == (count,) else (size // count,)
    if isinstance(step, Affine):
        blocks = {name: _block(matrix, count) for name, matrix in step.terms.items()}
        bias = step.bias.reshape(count, -1)
        terms = {name: block for name, block in blocks.items() if block is not None}
        if len(terms) < len(blocks) or not np.allclose(bias, bias[0], rtol=1e-6, atol=0):
            return None
        return replace(step, shape=shape, terms=terms, bias=bias[0])
    if isinstance(step, Product):
        sizes = [int(np.prod(program[name].shape)) // count for name in step.reads]
        left, right = (_index(index, count, n) for (_, index), n in zip(step.factors, sizes, strict=True))
        if (step.left_index is not None and left is None) or (step.right_index is not None and right is None):
            return None
        batch, *matrices = step.axes or (count,)
        axes = (batch // count, *matrices) if step.axes else ()
        whole = batch % count == 0
        return replace(step, shape=shape, left_index=left, right_index=right, axes=axes) if whole else None
    return replace(step, shape=shape)


def _block(matrix: sparse.csr_array, count: int) -> sparse.csr_array | None:
    """The first of `count` blocks on the diagonal, where they are equal up to float32's rounding and all there is."""
    rows, columns = (n // count for n in matrix.shape)
    first = sparse.csr_array(matrix[:rows])
    widths = np.diff(matrix.indptr).reshape(count, -1)
    if first.nnz * count != matrix.nnz or np.any(widths != widths[0]) or matrix.shape[1] % count:
        return None
    indices = matrix.indices.reshape(count, -1) - columns * np.arange(count)[:, None]
    data = matrix.data.reshape(count, -1)
    if np.any(indices != indices[0]) or not np.allclose(data, data[0], rtol=1e-6, atol=0):
        return None
    if first.nnz and not 0 <= indices[0].min() <= indices[0].max() < columns:
        return None
    return sparse.csr_array((data[0], indices[0], first.indptr), shape=(rows, columns))


def _index(index: np.ndarray | None, count: int, size: int) -> np.ndarray | None:
    """The first sample's part of a product's index, into its own `size` elements; None where samples mix."""
    if index is None:
        return None
    parts = index.reshape(count, -1) - size * np.arange(count)[:, None]
    alone = bool((parts == parts[0]).all()) and 0 <= parts[0].min() <= parts[0].max() < size
    return parts[0] if alone else None


def interleaved(network: Network, sizes: Mapping[str, int], count: int, lanes: int) -> Network:
    """The network of one sample for `count` of them, `lanes` to a ciphertext, which has as many times its slots.

    Lanes beyond the last sample repeat that one, so that no polynomial sees what no sample holds.

    Args:
        sizes: how many numbers a sample has, by graph input.
        lanes: a power of two.
    """
    made = Network(Packed(network.program.slots * lanes), outputs=network.outputs)
    tensors: dict[str, list[Held]] = {name: [] for name in network.tensors}
    for first in range(0, count, lanes):
        samples = np.minimum(first + np.arange(lanes), count - 1)
        values = _again(network, made, sizes, samples)
        kept = samples[: count - first, None]
        for name, parts in network.tensors.items():
            size = sum(len(part.elements) for part in parts)
            for part in parts:
                slots = part.slots * lanes + np.arange(len(kept))[:, None]
                elements = part.elements + size * kept
                tensors[name].append(Held(values[part.value], slots.ravel(), elements.ravel()))
    return made.finished({name: tuple(parts) for name, parts in tensors.items()})


def _again(network: Network, made: Network, sizes: Mapping[str, int], samples: np.ndarray) -> list[int]:
    """Emit the network's operations for the samples of the lanes; value -> that in `made`."""
    lanes, program, values = len(samples), made.program, list[int]()
    gathers = iter(network.gathers)
    for op in network.program.ops:
        program.layer = op.layer
        args = [values[a] for a in op.args]
        if op.kind == "input":
            name, index = next(gathers)
            wide = np.where(index >= 0, index + sizes[name] * samples[:, None], -1)
            values.append(made.input(name, wide.T.ravel().astype(np.int32)))
        elif op.kind == "rotate":
            values.append(program.rotate(args[0], op.step * lanes))
        elif op.plain >= 0:
            plain = np.repeat(network.program.plains[op.plain], lanes)
            values.append(getattr(program, op.kind)(*args, plain))
        else:
            values.append(getattr(program, op.kind)(*args))
    return values
