"""Mixture of experts with top-k gating, where every expert is written out for every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.graph.fusions.algebra import Formula, constant, scalar, shape_of
from lowerkit.graph.fusions.base import Found, Fusion
from lowerkit.graph.weights import initializer


@script(LOWERKIT, default_opset=op)
def MixtureOfExperts(  # type: ignore[no-untyped-def]
    X, Gate, GateBias, W1, B1, W2, B2, k: int = 1, normalise: int = 0, approximate: str = "none"
):
    """Y [B, T, d] = sum over a token's k best experts of share_e (GELU(x W1_e + B1_e) W2_e + B2_e).

    X [B, T, d], Gate [d, E], GateBias [E], W1 [E, d, h], B1 [E, 1, h], W2 [E, h, d], B2 [E, 1, d]. The experts are
    those with the k largest of the logits X Gate + GateBias, of equals the first. Shares are softmax over all E
    logits (Riquelme et al., Scaling Vision with Sparse Mixture of Experts, 2021, and M3ViT), or with `normalise` over
    the k chosen ones, which then sum to 1.
    """
    logits = op.Add(op.MatMul(X, Gate), GateBias)
    count = op.Unsqueeze(op.Constant(value_int=k), op.Constant(value_ints=[0]))
    _best, chosen = op.TopK(logits, count, axis=-1)
    softmax = op.Softmax(logits, axis=-1)
    taken = op.GatherElements(softmax, chosen, axis=-1)
    last = op.Constant(value_ints=[-1])
    total = op.ReduceSum(taken, last, keepdims=1)
    renormalised = op.Cast(op.Constant(value_int=normalise), to=9)
    shares = op.Where(renormalised, op.Div(taken, total), taken)
    zero = op.CastLike(op.Constant(value_float=0.0), softmax)
    dense = op.ScatterElements(op.Expand(zero, op.Shape(softmax)), chosen, shares, axis=-1)
    along = op.Constant(value_ints=[1])
    hidden = op.Gelu(op.Add(op.MatMul(op.Unsqueeze(X, along), W1), B1), approximate=approximate)
    outputs = op.Add(op.MatMul(hidden, W2), B2)
    weights = op.Unsqueeze(op.Transpose(dense, perm=[0, 2, 1]), last)
    return op.ReduceSum(op.Mul(outputs, weights), along, keepdims=0)


@dataclass(frozen=True)
class FuseMixtureOfExperts(Fusion):
    """ReduceSum over experts of Mul(MatMul(Gelu(MatMul(x, W1) + B1), W2) + B2, gates) is MixtureOfExperts.

    The gates are ScatterElements, into zeros, of what TopK finds: of the softmax of all logits, of that divided by its
    sum, or the softmax of the k largest logits. Biases may be missing. torch.onnx.export gives this form.
    """

    name: ClassVar[str] = "fuse-mixture-of-experts"
    roots: ClassVar[frozenset[str]] = frozenset({"Einsum", "ReduceSum"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        if root.op_type == "Einsum":
            if _equation(root) != "abcd,acb->acd":
                return None
            return _match(root, root.inputs[0], root.inputs[1], formula)
        product = formula.node(root.inputs[0], "Mul")
        if product is None or not _sums(root, 1, keepdims=0):
            return None
        for outputs, column in (product.inputs, reversed(product.inputs)):
            found = _match(root, outputs, _turned(column, formula), formula)
            if found is not None:
                return found
        return None


def _match(root: ir.Node, outputs: ir.Value | None, gates: ir.Value | None, formula: Formula) -> Found | None:
    down = _experts(outputs, "abcd,bde->abce", formula)
    gelu = formula.node(down[0], "Gelu") if down is not None else None
    up = _experts(gelu.inputs[0], "abc,dce->adbe", formula) if gelu is not None else None
    gating = _gating(gates, formula)
    if down is None or gelu is None or up is None or gating is None:
        return None
    x, gate, gate_bias, count, normalise = gating
    if up[0] is not x:
        return None
    shape, wide, narrow = shape_of(x), shape_of(up[1]), shape_of(down[1])
    if (
        shape is None
        or wide is None
        or narrow is None
        or len(shape) != 3
        or shape != shape_of(root.outputs[0])
    ):
        return None
    size, _, hidden = wide
    if narrow != (size, hidden, shape[2]) or shape_of(gate) != (shape[2], size) or x.dtype is None:
        return None
    parameters = []
    for what, value, full in (
        ("gate_bias", gate_bias, (size,)),
        ("b1", up[2], (size, 1, hidden)),
        ("b2", down[2], (size, 1, shape[2])),
    ):
        if value is not None and shape_of(value) != full:
            return None
        parameters.append((what, value, full))
    assert root.graph is not None
    biases = [
        initializer(root.graph, f"{root.outputs[0].name}/{what}", np.zeros(full, x.dtype.numpy()))
        if value is None
        else value
        for what, value, full in parameters
    ]
    attributes = {
        "k": count,
        "normalise": int(normalise),
        "approximate": gelu.attributes.get_string("approximate", "none"),
    }
    inputs = [x, gate, biases[0], up[1], biases[1], down[1], biases[2]]
    return Found("MixtureOfExperts", inputs, attributes, function=MixtureOfExperts)


def _experts(
    value: ir.Value | None, equation: str, formula: Formula
) -> tuple[ir.Value | None, ir.Value, ir.Value | None] | None:
    """What goes in, W [E, inner, columns] and the bias or None, when `value` is a product by stacked weights.

    That is an Einsum with the equation, or a MatMul. Where the equation's input has no axis of experts, the MatMul's
    has one of 1, and what goes in is without it.
    """
    value, bias = _without_bias(value, formula)
    product = formula.node(value, "MatMul", "Einsum")
    if product is None or (product.op_type == "Einsum" and _equation(product) != equation):
        return None
    source, weights = product.inputs
    if weights is None or len(shape_of(weights) or ()) != 3:
        return None
    if product.op_type == "MatMul" and equation.startswith("abc,"):
        spread = formula.node(source, "Unsqueeze")
        if spread is None or not _is_ints(spread.inputs[1], (1, -3)):
            return None
        source = spread.inputs[0]
    return source, weights, bias


def _equation(einsum: ir.Node) -> str:
    """An Einsum's equation with the letters a, b, c, ... in the order in which they come; of two inputs, else empty."""
    text = "".join(einsum.attributes.get_string("equation", "").split())
    letters = dict.fromkeys(c for c in text if c.isalpha())
    names = {letter: chr(ord("a") + i) for i, letter in enumerate(letters)}
    return "".join(names.get(c, c) for c in text) if len(einsum.inputs) == 2 else ""


def _turned(value: ir.Value | None, formula: Formula) -> ir.Value | None:
    """Gates [B, T, E] that `value` has as [B, E, T, 1], or None."""
    column = formula.node(value, "Unsqueeze")
    if column is None or not _is_ints(column.inputs[1], (3, -1)):
        return None
    turned = formula.node(column.inputs[0], "Transpose")
    if turned is None or tuple(turned.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    return turned.inputs[0]


def _without_bias(value: ir.Value | None, formula: Formula) -> tuple[ir.Value | None, ir.Value | None]:
    """A sum as the part that is computed and the constant; `value` itself, and None, for anything else."""
    add = formula.node(value, "Add")
    if add is not None:
        for computed, bias in (add.inputs, reversed(add.inputs)):
            if constant(bias) is not None and constant(computed) is None:
                return computed, bias
    return value, None


def _gating(
    value: ir.Value | None, formula: Formula
) -> tuple[ir.Value, ir.Value, ir.Value | None, int, bool] | None:
    """x, the gate's weights and bias, k, and whether shares sum to 1, for gates [B, T, E]."""
    scatter = formula.node(value, "ScatterElements")
    if scatter is None:
        return None
    zeros, chosen, shares = scatter.inputs[:3]
    background = constant(zeros)
    if background is None or background.any() or not _last(scatter, 0):
        return None
    if scatter.attributes.get_string("reduction", "none") != "none":
        return None
    best = formula.node(chosen, "TopK")
    count = scalar(best.inputs[1]) if best is not None else None
    if best is None or chosen is not best.outputs[1] or count is None or not _last(best, -1):
        return None
    if not best.attributes.get_int("largest", 1):
        return None
    read = _shares(shares, best, formula)
    if read is None:
        return None
    logits, normalise = read
    logits, bias = _without_bias(logits, formula)
    product = formula.node(logits, "MatMul")
    if product is None or product.inputs[0] is None or product.inputs[1] is None:
        return None
    return product.inputs[0], product.inputs[1], bias, int(count), normalise


def _shares(value: ir.Value | None, best: ir.Node, formula: Formula) -> tuple[ir.Value | None, bool] | None:
    """The logits, and whether the shares sum to 1."""
    softmax = formula.node(value, "Softmax")
    if softmax is not None:
        right = softmax.inputs[0] is best.outputs[0] and _last(softmax, -1)
        return (best.inputs[0], True) if right else None
    normalise = False
    quotient = formula.node(value, "Div")
    if quotient is not None:
        total = formula.node(quotient.inputs[1], "ReduceSum")
        if total is None or total.inputs[0] is not quotient.inputs[0] or not _sums(total, 2, keepdims=1):
            return None
        value, normalise = quotient.inputs[0], True
    softmax = formula.node(best.inputs[0], "Softmax")
    if value is not best.outputs[0] or softmax is None or not _last(softmax, -1):
        return None
    return softmax.inputs[0], normalise


def _last(node: ir.Node, default: int) -> bool:
    """Whether the node's axis is the last of three."""
    return node.attributes.get_int("axis", default) in (-1, 2)


def _sums(node: ir.Node, axis: int, keepdims: int) -> bool:
    """Whether a ReduceSum is over that axis alone, of four where they are not kept, of three where they are."""
    rank = 3 if keepdims else 4
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    return node.attributes.get_int("keepdims", 1) == keepdims and _is_ints(axes, (axis, axis - rank))


def _is_ints(value: ir.Value | None, allowed: tuple[int, ...]) -> bool:
    """Whether a value is a constant of one number among those."""
    found = scalar(value)
    return found is not None and int(found) in allowed
