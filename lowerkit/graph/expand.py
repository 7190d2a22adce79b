"""Canonical operators in terms of simpler canonical ones, for targets without a kernel for them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import DOMAIN, add_function, describe_node
from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.activation import Rsqrt
from lowerkit.graph.fusions.algebra import shape_of
from lowerkit.graph.shapes import infer_shapes
from lowerkit.graph.weights import initializer


def expand(model: ir.Model, ops: frozenset[str], spared: Callable[[ir.Node], bool] | None = None) -> None:
    """Replace the standard operators of types `ops` in `model`, in place, by simpler ones, but for `spared`.

    Raises:
        UnsupportedError: for a node whose attributes or inputs have no expansion; names the node.
    """
    found = False
    for op, expansion in _EXPANSIONS.items():  # what one leaves, a later one may expand
        for node in list(model.graph.all_nodes()) if op in ops else ():
            if node.op_type == op and node.domain == "" and not (spared is not None and spared(node)):
                expansion(model, node)
                found = True
    if found:
        RemoveUnusedNodesPass()(model)
        infer_shapes(model)


class _Builder:
    """Makes named nodes that will take the place of `node`; names are `node/what`."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node = model, node
        self.nodes: list[ir.Node] = []

    def __call__(
        self, what: str, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: object
    ) -> ir.Value:
        made = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            name=f"{self.node.name}/{what}",
            metadata_props={"lowerkit.spelled": self.node.metadata_props.get("lowerkit.spelled", "")},
        )
        value = made.outputs[0]
        value.name = f"{self.node.outputs[0].name}/{what}"
        self.nodes.append(made)
        return value

    def constant(self, what: str, array: np.ndarray) -> ir.Value:
        return initializer(self.model.graph, f"{self.node.outputs[0].name}/{what}", array)

    def replace(self, result: ir.Value) -> None:
        take_place(self.node, self.nodes, result)


def _expand_attention(model: ir.Model, node: ir.Node) -> None:
    """softmax(scale Q K' + mask) V, on [batch, heads, tokens, size]; with one head also without that axis.

    The scale is applied to Q, which is the smaller of the two products where there are more tokens than
    channels per head, and where most exporters have it.
    """

    def refuse(reason: str) -> UnsupportedError:
        hint = "choose a target that has its own Attention, or export attention as MatMul and Softmax"
        return UnsupportedError(f"no expansion for {reason}", node=describe_node(node), hint=hint)

    inputs: list[ir.Value | None] = [*node.inputs, None]
    q, k, v, mask = inputs[:4]
    if any(extra is not None for extra in inputs[4:]):
        raise refuse("a key-value cache or padding lengths")
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        raise refuse("outputs beyond the first")
    for name, neutral in (("softcap", 0.0), ("softmax_precision", 0), ("qk_matmul_output_mode", 0)):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value != neutral:
            raise refuse(f"attribute {name}")
    assert q is not None
    assert k is not None
    assert v is not None
    shapes = [shape_of(x) for x in (q, k, v)]
    if any(shape is None for shape in shapes) or q.dtype is None:
        raise refuse("inputs of unknown shape")
    q_shape, k_shape, v_shape = (shape or () for shape in shapes)
    heads = node.attributes.get_int("q_num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
    make = _Builder(model, node)
    flat = len(q_shape) == 3
    if flat and heads != (1, 1):
        q, k, v = (
            _split_heads(make, what, x, count, shape)
            for what, x, count, shape in (
                ("q", q, heads[0], q_shape),
                ("k", k, heads[1], k_shape),
                ("v", v, heads[1], v_shape),
            )
        )
        batch, tokens, width = q_shape
        q_shape = (batch, heads[0], tokens, width // heads[0])
        k_shape = (batch, heads[1], k_shape[1], k_shape[2] // heads[1])
        v_shape = (batch, heads[1], v_shape[1], v_shape[2] // heads[1])
    if len(q_shape) == 4 and q_shape[1] != k_shape[1]:
        k, v = (
            _repeat_heads(make, what, x, shape, q_shape[1] // shape[1])
            for what, x, shape in (("k", k, k_shape), ("v", v, v_shape))
        )
    dtype = q.dtype.numpy() if q.dtype is not None else np.dtype(np.float32)
    scale = node.attributes.get_float("scale", 1 / math.sqrt(q_shape[-1]))
    scaled = make("scaled", "Mul", q, make.constant("scale", np.array(scale, dtype)))
    rank = len(q_shape)
    key = make("key", "Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = make("scores", "MatMul", scaled, key)
    tokens, keys = q_shape[-2], k_shape[-2]
    causal = np.tri(tokens, keys, dtype=bool) if node.attributes.get_int("is_causal", 0) else None
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        weights = _masked_softmax(make, scores, mask, causal, dtype)
    else:
        if causal is not None:
            hidden = np.where(causal, 0, -np.inf).astype(dtype)
            scores = make("causal", "Add", scores, make.constant("causal_mask", hidden))
        if mask is not None:
            widening = mask.producer()
            if widening is not None and widening.op_type == "Expand" and widening.inputs[0] is not None:
                mask = widening.inputs[0]  # Add broadcasts
            scores = make("masked", "Add", scores, mask)
        weights = make("softmax", "Softmax", scores, axis=-1)
    result = make("output", "MatMul", weights, v)
    if flat and heads != (1, 1):
        joined = make("heads", "Transpose", result, perm=[0, 2, 1, 3])
        shape = np.array([q_shape[0], tokens, heads[0] * v_shape[-1]], np.int64)
        result = make("join", "Reshape", joined, make.constant("join_shape", shape))
    make.replace(result)


def _masked_softmax(
    make: _Builder, scores: ir.Value, mask: ir.Value, causal: np.ndarray | None, dtype: np.dtype
) -> ir.Value:
    """Softmax over the keys that a boolean mask lets through; a query that sees none gets weights of 0."""
    if causal is not None:
        mask = make("visible", "And", mask, make.constant("causal_mask", causal))
    zero, low = make.constant("zero", np.array(0, dtype)), make.constant("low", np.array(-np.inf, dtype))
    hidden = make("hidden", "Where", mask, zero, low)
    softmax = make("softmax", "Softmax", make("masked", "Add", scores, hidden), axis=-1)
    last = make.constant("last_axis", np.array([-1], np.int64))
    count = make("count", "ReduceMax", make("counted", "Cast", mask, to=ir.DataType.INT32.value), last)
    return make("weights", "Where", make("any", "Cast", count, to=ir.DataType.BOOL.value), softmax, zero)


def _split_heads(make: _Builder, what: str, x: ir.Value, count: int, shape: tuple[int, ...]) -> ir.Value:
    """[batch, tokens, heads * size] as [batch, heads, tokens, size]."""
    target = np.array([shape[0], shape[1], count, shape[2] // count], np.int64)
    split = make(f"{what}_split", "Reshape", x, make.constant(f"{what}_shape", target))
    return make(f"{what}_heads", "Transpose", split, perm=[0, 2, 1, 3])


def _repeat_heads(make: _Builder, what: str, x: ir.Value, shape: tuple[int, ...], times: int) -> ir.Value:
    """Each head `times` over, for queries in groups that share keys and values."""
    index = np.repeat(np.arange(shape[1]), times)
    return make(f"{what}_repeated", "Gather", x, make.constant(f"{what}_index", index), axis=1)


def _expand_division(model: ir.Model, node: ir.Node) -> None:
    """x / y as x times Reciprocal(y), for a divisor that is not constant."""
    x, y = node.inputs
    assert x is not None
    assert y is not None
    if y.const_value is not None or y.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return
    make = _Builder(model, node)
    make.replace(make("quotient", "Mul", x, make("reciprocal", "Reciprocal", y)))


def _expand_norm(model: ir.Model, node: ir.Node) -> None:
    """(x - mean) Rsqrt(variance + epsilon) scale + bias; RMSNormalization has neither mean nor bias."""
    x, scale, bias = (*node.inputs, None)[:3]
    shape = shape_of(x)
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        hint = "choose a target that has its own normalisation"
        raise UnsupportedError(
            "no expansion for outputs beyond the first", node=describe_node(node), hint=hint
        )
    if x is None or scale is None or shape is None or x.dtype is None:
        return
    first = node.attributes.get_int("axis", -1) % len(shape)
    make = _Builder(model, node)
    axes = make.constant("axes", np.arange(first, len(shape), dtype=np.int64))
    if node.op_type == "LayerNormalization":
        x = make("centred", "Sub", x, make("mean", "ReduceMean", x, axes, keepdims=1))
    mean_square = make("variance", "ReduceMean", make("square", "Mul", x, x), axes, keepdims=1)
    epsilon = make.constant("epsilon", np.array(node.attributes.get_float("epsilon", 1e-5), np.float32))
    root = make("rsqrt", "Rsqrt", make("widened", "Add", mean_square, epsilon), domain=DOMAIN)
    result = make("scaled", "Mul", make("normal", "Mul", x, root), scale)
    if bias is not None:
        result = make("shifted", "Add", result, bias)
    add_function(model, Rsqrt)
    make.replace(result)


def _expand_softmax(model: ir.Model, node: ir.Node) -> None:
    """e / sum e with e = Exp(x - mean): for targets without a maximum, which cannot overflow on a calibrated range.

    Less its mean a row's exponentials add up to at least its length n, as exp is convex (Jensen), and for x within an
    interval of width R to at most n exp(R^2 / 8) (Hoeffding's lemma): Reciprocal sees a range that no mean widens.
    """
    (x,) = node.inputs
    assert x is not None
    make = _Builder(model, node)
    axes = make.constant("axes", np.array([node.attributes.get_int("axis", -1)], np.int64))
    powers = make("powers", "Exp", make("centred", "Sub", x, make("mean", "ReduceMean", x, axes, keepdims=1)))
    total = make("sum", "ReduceSum", powers, axes, keepdims=1)
    make.replace(make("weights", "Mul", powers, make("reciprocal", "Reciprocal", total)))


_EXPANSIONS: dict[str, Callable[[ir.Model, ir.Node], None]] = {
    "Attention": _expand_attention,
    "Div": _expand_division,
    "LayerNormalization": _expand_norm,
    "RMSNormalization": _expand_norm,
    "Softmax": _expand_softmax,
}
