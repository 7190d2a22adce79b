"""Scaled-dot-product attention in the forms of eager implementations and of the SDPA exporters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.fusions.algebra import Formula, constant, scalar, shape_of
from lowerkit.graph.fusions.base import Found, Fusion
from lowerkit.graph.weights import initializer


@dataclass(frozen=True)
class FuseAttention(Fusion):
    """MatMul(Softmax(s Q K' + mask), V) on [batch, heads, tokens, size] is Attention with scale s.

    The scale may stand on Q, on K, on their product or on several of them. The mask is additive. The same
    on [batch, tokens, size] is Attention with one head.

    The guard that exporters put on weights of 0 / 0, Where(IsNaN(w), 0, w), is for queries that see no key.
    It goes where there can be none, and where the mask is Where(m, 0, -inf): then the operator's mask is the
    boolean m, of which it makes the same. Weights masked otherwise stay as they are.

    A row whose mask is the lowest number or -inf throughout is uniform or NaN in Softmax, and in ONNX's
    definition of Attention; onnxruntime's kernel gives 0. A constant mask with such a row is not fused; of
    a computed one `lowerkit.graph.expand` keeps the meaning.
    """

    name: ClassVar[str] = "fuse-attention"
    roots: ClassVar[frozenset[str]] = frozenset({"MatMul"})
    keeps_shape: ClassVar[bool] = False

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        weights, v = root.inputs
        softmax, guarded = _unguarded(formula, weights)
        shape = shape_of(weights)
        if softmax is None or v is None or shape is None or len(shape) not in (3, 4):
            return None
        if weights is None or len(weights.uses()) > 1 or weights.is_graph_output():
            return None  # someone else wants the weights, so they are computed anyway
        if softmax.attributes.get_int("axis", -1) not in (-1, len(shape) - 1):
            return None
        logits = softmax.inputs[0]
        assert logits is not None
        scores, mask = _unmasked(formula, logits)
        if guarded and mask is not None:
            visible = _visible(formula, mask)
            if visible is None and not _never_hides_all(mask):
                return None
            mask = visible if visible is not None else mask
        coefficient, powers = formula.product(scores)
        product = formula.node(next(iter(powers)), "MatMul") if list(powers.values()) == [1] else None
        if product is None or coefficient <= 0:
            return None
        left, right = product.inputs
        assert left is not None
        assert right is not None
        (left_scale, q), (right_scale, transposed) = _scaled(formula, left), _scaled(formula, right)
        transpose = formula.node(transposed, "Transpose")
        if transpose is None or transpose.inputs[0] is None:
            return None
        k, before = _untransposed(transpose, transposed)
        key_scale, k = _scaled(formula, k) if not before else (1.0, k)
        scale = coefficient * left_scale * right_scale * key_scale
        if scale <= 0 or not _fits(q, k, v, mask, len(shape)):
            return None
        attributes: dict[str, float | int] = {"scale": scale}
        if len(shape) == 3:
            attributes |= {"q_num_heads": 1, "kv_num_heads": 1}
        inputs: list[ir.Value | None] = [q, k, v]
        if mask is not None:
            mask, widening = _widened(root, mask, shape[-2:])
            inputs.append(mask)
            before = [*before, *widening]
        return Found("Attention", inputs, attributes, before)


def _unguarded(formula: Formula, weights: ir.Value | None) -> tuple[ir.Node | None, bool]:
    """(Softmax, guarded) of weights that are a Softmax, or one in which 0 takes the place of NaN."""
    guard = formula.node(weights, "Where")
    if guard is None:
        return formula.node(weights, "Softmax"), False
    condition, zero, usual = guard.inputs
    softmax = formula.node(usual, "Softmax")
    return (softmax if scalar(zero) == 0 and formula.argument(condition, "IsNaN") is usual else None), True


def _visible(formula: Formula, mask: ir.Value) -> ir.Value | None:
    """m when `mask` is Where(m, 0, -inf), else None."""
    where = formula.node(mask, "Where")
    if where is None or scalar(where.inputs[1]) != 0 or scalar(where.inputs[2]) != -np.inf:
        return None
    visible = where.inputs[0]
    return visible if shape_of(visible) == shape_of(mask) else None


def _never_hides_all(mask: ir.Value) -> bool:
    """Whether Softmax under the additive `mask` is never NaN: no row of it can be -inf throughout."""
    known = constant(mask)
    if known is not None:
        return not np.isneginf(known).all(axis=-1).any()
    where = Formula().node(mask, "Where")
    if where is None:
        return False
    values = [scalar(value) for value in where.inputs[1:]]
    return all(value is not None and np.isfinite(value) for value in values)


def _unmasked(formula: Formula, logits: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """(scores, mask) of scores + mask; the mask is the smaller, or else not a product of matrices."""
    add = formula.node(logits, "Add")
    if add is None:
        return logits, None
    for scores, mask in (add.inputs, reversed(add.inputs)):
        assert scores is not None
        trial = Formula()
        _, powers = trial.product(scores)
        if len(powers) == 1 and trial.node(next(iter(powers)), "MatMul") is not None:
            return scores, mask
    return logits, None


def _scaled(formula: Formula, value: ir.Value) -> tuple[float, ir.Value]:
    """(c, v) of `value` = c * v for a scalar constant c."""
    trial = Formula()
    coefficient, powers = trial.product(value)
    if list(powers.values()) != [1]:
        return 1.0, value
    formula.nodes.update(trial.nodes)
    return coefficient, next(iter(powers))


def _untransposed(transpose: ir.Node, transposed: ir.Value) -> tuple[ir.Value, Sequence[ir.Node]]:
    """K of K', and the node that makes it: exporters join the transposition with the one before it."""
    source = transpose.inputs[0]
    assert source is not None
    rank = len(shape_of(transposed) or ())
    swap = [*range(rank - 2), rank - 1, rank - 2]
    perm = list(transpose.attributes.get_ints("perm", list(reversed(range(rank)))))
    if perm == swap:
        return source, ()
    joined = [perm[axis] for axis in swap]
    node = ir.node("Transpose", [source], {"perm": joined}, name=f"{transpose.name}.key")
    key, shape = node.outputs[0], shape_of(transposed)
    assert shape is not None
    key.name, key.type = f"{transposed.name}.key", transposed.type
    key.shape = ir.Shape([shape[axis] for axis in swap])
    return key, (node,)


def _widened(root: ir.Node, mask: ir.Value, rows: tuple[int, ...]) -> tuple[ir.Value, Sequence[ir.Node]]:
    """`mask` with [queries, keys] as its last axes, which onnxruntime's Attention does not broadcast."""
    shape = shape_of(mask)
    if shape is None or shape[-2:] == rows:
        return mask, ()
    target = (*shape[:-2], *rows)
    graph = root.graph
    assert isinstance(graph, ir.Graph)
    wanted = initializer(graph, f"{root.outputs[0].name}/mask_shape", np.array(target, np.int64))
    node = ir.node("Expand", [mask, wanted], name=f"{root.name}/mask")
    wide = node.outputs[0]
    wide.name, wide.type, wide.shape = f"{root.outputs[0].name}/mask", mask.type, ir.Shape(target)
    return wide, (node,)


def _fits(q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, rank: int) -> bool:
    """Whether shapes and types are those of Attention, without broadcasting between Q, K and V."""
    shapes = [shape_of(x) for x in (q, k, v)]
    if any(s is None or len(s) != rank or s[:-2] != (shapes[0] or ())[:-2] for s in shapes):
        return False
    if any(x.dtype != ir.DataType.FLOAT for x in (q, k, v)):
        return False
    if mask is None:
        return True
    mask_shape = shape_of(mask)
    # With one head the batch of a 3-D product is the batch of Attention, so a mask may not vary over it.
    most = 4 if rank == 4 else 2
    known = constant(mask)
    if known is not None and (known <= np.finfo(np.float32).min).all(axis=-1).any():
        return False
    return (
        mask_shape is not None and mask.dtype in (q.dtype, ir.DataType.BOOL) and 2 <= len(mask_shape) <= most
    )
