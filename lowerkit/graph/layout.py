"""Chains of Reshape, Transpose, Squeeze and Unsqueeze as the fewest that do the same.

Such a chain moves blocks of elements that no step takes apart: atoms. The sizes of the atoms and the order in
which the chain leaves them say all that it does, however many steps it took.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lowerkit.graph.edit import take_place
from lowerkit.graph.shapes import static_shape
from lowerkit.graph.weights import initializer

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_LAYOUTS = _RESHAPES | {"Transpose"}


@dataclass(frozen=True)
class SimplifyLayouts:
    """Replace chains of layout operators by [Reshape] [Transpose] [Reshape], where those are fewer.

    A MatMul between Reshapes that join and part the axes of the batch is one on the parted axes.
    Valid before and after: any graph with inferred shapes.
    """

    name: ClassVar[str] = "simplify-layouts"

    def __call__(self, model: ir.Model) -> int:
        """Simplify, in place; the number of nodes written anew."""
        count = _sweep(model, _LAYOUTS, _simplify)
        parted = _sweep(model, frozenset({"MatMul"}), _part_batch)
        if count or parted:
            RemoveUnusedNodesPass()(model)
        return count + parted + (_sweep(model, _LAYOUTS, _simplify) if parted else 0)


def _sweep(model: ir.Model, op_types: frozenset[str], rewrite: Callable[[ir.Node], int]) -> int:
    nodes = [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type in op_types]
    return sum(rewrite(node) for node in nodes if node.graph is not None)


def _simplify(node: ir.Node) -> int:
    """Shorten the chain that ends in `node`, when nothing but a layout operator reads its end."""
    chain = _chain(node)
    if len(chain) < 2 or any(_is_layout(user) and _is_alone(node.outputs[0]) for user in _users(node)):
        return 0
    source, target = chain[-1].inputs[0], node.outputs[0]
    before, after = static_shape(source), static_shape(target)
    assert source is not None
    if before is None or after is None or 0 in before:
        return 0
    atoms = _atoms(list(reversed(chain)), before)
    if atoms is None:
        return 0
    steps = _steps(*atoms, before, after)
    kinds = [node.op_type for node in reversed(chain)]
    if len(steps) > len(chain) or [op_type for op_type, _ in steps] == kinds:
        return 0
    if len(steps) == len(chain) and kinds != ["Transpose", "Reshape"]:
        return 0
    _write(node, source, steps)
    return 1


def _chain(node: ir.Node) -> list[ir.Node]:
    """`node` and the layout operators that lead to it and to nothing else, from the last to the first."""
    chain: list[ir.Node] = []
    current: ir.Node | None = node
    while current is not None and _is_layout(current) and static_shape(current.outputs[0]) is not None:
        chain.append(current)
        source = current.inputs[0]
        current = source.producer() if source is not None and _is_alone(source) else None
    return chain


def _is_layout(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in _LAYOUTS


def _is_alone(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _users(node: ir.Node) -> list[ir.Node]:
    return list(node.outputs[0].consumers())


# Atoms. A source's atoms are numbered in its order; sizes[i] is that of atom i.


def _atoms(chain: list[ir.Node], shape: tuple[int, ...]) -> tuple[list[int], list[int]] | None:
    """(sizes, order): the source's atoms, and the order in which the chain leaves them; None if it cannot be said."""
    # Each axis is a list of atoms; an atom is a list [size], shared by identity between both ends.
    source: list[list[int]] = [[size] for size in shape if size != 1]
    axes = [[atom] for atom in source]
    places = iter(axes)
    now: list[list[list[int]]] = [next(places) if size != 1 else [] for size in shape]
    for node in chain:
        if node.op_type == "Transpose":
            rank = len(now)
            now = [now[axis] for axis in node.attributes.get_ints("perm", tuple(reversed(range(rank))))]
        else:
            target = static_shape(node.outputs[0])
            flat = [atom for axis in now for atom in axis]
            parted = _part(flat, source, target) if target is not None else None
            if parted is None:
                return None
            now = parted
    number = {id(atom): index for index, atom in enumerate(source)}
    return [atom[0] for atom in source], [number[id(atom)] for axis in now for atom in axis]


def _part(
    flat: list[list[int]], source: list[list[int]], target: tuple[int, ...]
) -> list[list[list[int]]] | None:
    """`flat` as the axes of `target`; atoms that reach over the end of an axis are split, in `source` too."""
    rest = list(flat)
    axes = []
    for size in target:
        axis: list[list[int]] = []
        while (missing := size // math.prod(atom[0] for atom in axis)) > 1:
            atom = rest.pop(0)
            if missing % atom[0] and atom[0] % missing:
                return None
            if atom[0] > missing:
                left = [atom[0] // missing]
                atom[0] = missing
                place = next(i for i, other in enumerate(source) if other is atom)
                source.insert(place + 1, left)
                rest.insert(0, left)
            axis.append(atom)
        axes.append(axis)
    return axes


def _steps(
    sizes: list[int], order: list[int], before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[str, tuple[int, ...]]]:
    """The fewest of ("Reshape", shape) and ("Transpose", perm) that lead from `before` to `after`."""
    if order == sorted(order):
        return [] if before == after else [("Reshape", after)]
    sources, targets = _axes(before, range(len(sizes)), sizes), _axes(after, order, sizes)
    moved = sorted(sources, key=lambda axis: order.index(axis[0])) if _are_whole(sources, order) else None
    if moved is not None:
        perm = _permutation(before, after, moved, sources, targets)
        if tuple(before[axis] for axis in perm) == after:
            return [("Transpose", perm)]
    if _are_whole(targets, list(range(len(sizes)))):
        # Ones go where the result has them; the transposition leaves them in their places.
        places = [axis for axis, size in enumerate(after) if size != 1]
        lead = list(after)
        rank = dict(zip(sorted(targets), places, strict=True))
        for group, place in rank.items():
            lead[place] = math.prod(sizes[atom] for atom in group)
        home = dict(zip(places, targets, strict=True))
        perm = tuple(rank[home[axis]] if axis in home else axis for axis in range(len(after)))
        return [("Reshape", tuple(lead)), ("Transpose", perm)]
    if moved is not None:
        return [("Transpose", perm), ("Reshape", after)]
    starts = [i for i, atom in enumerate(order) if i == 0 or order[i - 1] != atom - 1]
    runs = [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]
    joined = sorted(runs)
    shape = tuple(math.prod(sizes[atom] for atom in run) for run in joined)
    return [("Reshape", shape), ("Transpose", tuple(joined.index(run) for run in runs)), ("Reshape", after)]


_Axis = tuple[int, ...]


def _axes(shape: tuple[int, ...], order: Sequence[int], sizes: list[int]) -> list[_Axis]:
    """The atoms of each axis of `shape` that is not 1, `order` being those of all axes."""
    rest, axes = iter(order), []
    for size in shape:
        axis: list[int] = []
        while math.prod(sizes[atom] for atom in axis) < size:
            axis.append(next(rest))
        if axis:
            axes.append(tuple(axis))
    return axes


def _are_whole(axes: list[_Axis], order: list[int]) -> bool:
    """Whether the atoms of each axis stand side by side in `order`, as they do in the axis."""
    return all(tuple(order[(i := order.index(axis[0])) : i + len(axis)]) == axis for axis in axes)


def _permutation(
    before: tuple[int, ...],
    after: tuple[int, ...],
    moved: list[_Axis],
    sources: list[_Axis],
    targets: list[_Axis],
) -> tuple[int, ...]:
    """Axes of `before` in the order of `moved`; ones where `after` has them, or else in front."""
    places = [axis for axis, size in enumerate(before) if size != 1]
    ones = [axis for axis, size in enumerate(before) if size == 1]
    where = dict(zip(sources, places, strict=True))
    perm = [where[group] for group in moved]
    if moved != targets or len(before) != len(after):
        return (*ones, *perm)
    big, small = iter(perm), iter(ones)
    return tuple(next(big) if size != 1 else next(small) for size in after)


def _write(node: ir.Node, source: ir.Value, steps: list[tuple[str, tuple[int, ...]]]) -> None:
    """Compute the output of `node` from `source` by `steps`."""
    graph, old, value = node.graph, node.outputs[0], source
    assert isinstance(graph, ir.Graph)
    made: list[ir.Node] = []
    for index, (op_type, numbers) in enumerate(steps or [("Identity", ())]):
        name = f"{node.name}.{index}" if len(steps) > 1 else node.name
        shape = static_shape(value)
        assert shape is not None
        if op_type == "Reshape":
            wanted = initializer(graph, f"{old.name}/shape_{index}", np.array(numbers, np.int64))
            step = ir.node("Reshape", [value, wanted], name=name)
            shape = numbers
        elif op_type == "Transpose":
            step = ir.node("Transpose", [value], {"perm": numbers}, name=name)
            shape = tuple(shape[axis] for axis in numbers)
        else:
            step = ir.node("Identity", [value], name=name)
        value = step.outputs[0]
        value.name, value.type, value.shape = f"{old.name}/layout_{index}", old.type, ir.Shape(shape)
        made.append(step)
    take_place(node, made)


def _part_batch(node: ir.Node) -> int:
    """MatMul of Reshapes [..., m, k] -> [batch, m, k] and [..., k, n] -> [batch, k, n] without those.

    One of the two may come from any other shape: a Reshape of a Reshape is one.
    """
    reshapes = [value.producer() if value is not None else None for value in node.inputs]
    graph, old = node.graph, node.outputs[0]
    joined, out = [static_shape(value) for value in node.inputs], static_shape(old)
    if not all(r is not None and r.domain == "" and r.op_type in _RESHAPES for r in reshapes) or out is None:
        return 0
    sources = [reshape.inputs[0] for reshape in reshapes if reshape is not None]
    for source, shape in zip(sources, joined, strict=True):
        parted = static_shape(source)
        if parted is None or shape is None or len(parted) <= len(shape) or parted[-2:] != shape[-2:]:
            continue
        batch = parted[:-2]
        if math.prod(batch) != math.prod(shape[:-2]):
            continue
        break
    else:
        return 0
    assert isinstance(graph, ir.Graph)
    if any(shape is None or len(shape) < 3 or shape[:-2] != out[:-2] for shape in joined):
        return 0
    made = []
    for index, shape in enumerate(joined):
        wanted = (*batch, *(shape or ())[-2:])
        if static_shape(sources[index]) != wanted:
            made.append(
                _reshape(graph, sources[index], wanted, f"{node.name}.{index}", f"{old.name}/{index}")
            )
            sources[index] = made[-1].outputs[0]
    product = ir.node("MatMul", sources, name=f"{node.name}.parted")
    result = product.outputs[0]
    result.name, result.type, result.shape = f"{old.name}/parted", old.type, ir.Shape((*batch, *out[-2:]))
    join = _reshape(graph, result, out, node.name or "", old.name or "")
    take_place(node, [*made, product, join])
    return 1


def _reshape(graph: ir.Graph, x: ir.Value | None, shape: tuple[int, ...], name: str, output: str) -> ir.Node:
    wanted = initializer(graph, f"{output}/shape", np.array(shape, np.int64))
    node = ir.node("Reshape", [x, wanted], name=name)
    value = node.outputs[0]
    value.name, value.shape, value.type = output, ir.Shape(shape), x.type if x is not None else None
    return node
