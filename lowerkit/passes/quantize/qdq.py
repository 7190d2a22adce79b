"""Linear layers that a model has quantised itself, by QuantizeLinear and DequantizeLinear, as integer operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lowerkit.graph.domain import DOMAIN, add_function
from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.linear import addend
from lowerkit.graph.shapes import infer_shapes, static_shape
from lowerkit.graph.weights import initializer
from lowerkit.passes.quantize.base import window
from lowerkit.passes.quantize.bodies import CONV_INT8_STATIC, MATMUL_INT8_STATIC

_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


@dataclass(frozen=True)
class _Bytes:
    """A value as bytes: real = (stored - zero) scale, scale and zero in float64, one for all or one along `axis`."""

    stored: ir.Value
    scale: np.ndarray
    zero: np.ndarray
    axis: int


def use_integers(model: ir.Model, native: frozenset[str]) -> None:
    """Put the operators of `native` in the place of MatMul, Gemm and Conv between bytes, in place.

    The first operand is DequantizeLinear(QuantizeLinear(x)) with one scale and zero point for the tensor; the weight is
    DequantizeLinear of constant bytes, with one scale or one per output channel. Both DequantizeLinears go where
    nothing else reads them. Equal up to the rounding of float32: integers are summed exactly. A bias becomes an Add.
    What does not fit stays. Valid before and after: any graph with inferred shapes.
    """
    changed = False
    for node in list(model.graph):
        function = CONV_INT8_STATIC if node.op_type == "Conv" else MATMUL_INT8_STATIC
        inputs = _integer_inputs(model, node) if node.domain == "" and function.name in native else None
        if inputs is None:
            continue
        add_function(model, function)
        attributes = window(node) if node.op_type == "Conv" else {}
        _replace(model, node, ir.node(function.name, inputs, attributes, domain=DOMAIN, name=node.name))
        changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
        infer_shapes(model)


def _replace(model: ir.Model, node: ir.Node, product: ir.Node) -> None:
    name, bias = node.outputs[0].name, node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        take_place(node, [product])
        return
    product.outputs[0].name, product.outputs[0].type = f"{name}/product", node.outputs[0].type
    total = ir.node("Add", [product.outputs[0], addend(model, node, bias)], name=f"{node.name}/bias")
    take_place(node, [product, total])


def _integer_inputs(model: ir.Model, node: ir.Node) -> list[ir.Value] | None:
    """X, its scale and zero point, the weight's integers and their scales; None where the node does not fit."""
    x, w = (_dequantised(value) for value in node.inputs[:2]) if _fits(node) else (None, None)
    if x is None or w is None or x.scale.size != 1:
        return None
    real, weight = _quantised_from(x), _weight(node, w)
    if real is None or weight is None:
        return None
    # Signed bytes are unsigned ones, 128 less.
    zero = x.zero.reshape(()) + (128 if x.stored.dtype == ir.DataType.INT8 else 0)
    made: dict[str, np.ndarray] = {
        f"{x.stored.name}/x_scale": x.scale.reshape(()).astype(np.float32),
        f"{x.stored.name}/x_zero": np.asarray(zero, np.uint8),
        f"{w.stored.name}/w": weight[0],
        f"{w.stored.name}/w_scale": weight[1],
    }
    return [real, *(initializer(model.graph, name, array) for name, array in made.items())]


def _fits(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return False
    if node.op_type == "Conv":
        shape = static_shape(node.inputs[0])
        explicit = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        return explicit and shape is not None and len(shape) == 4
    return not node.attributes.get_int("transA", 0)


def _dequantised(value: ir.Value | None) -> _Bytes | None:
    """The bytes that a DequantizeLinear turns into `value`."""
    node = value.producer() if value is not None else None
    return _bytes(node, node.inputs[0]) if node is not None and node.op_type == "DequantizeLinear" else None


def _quantised_from(x: _Bytes) -> ir.Value | None:
    """The float32 value that a QuantizeLinear turns into the bytes `x`, by the same scale and zero point."""
    node = x.stored.producer()
    found = _bytes(node, x.stored) if node is not None and node.op_type == "QuantizeLinear" else None
    if node is None or found is None or not np.array_equal(found.scale, x.scale) or found.zero != x.zero:
        return None
    real = node.inputs[0]
    return real if real is not None and real.dtype == ir.DataType.FLOAT else None


def _bytes(node: ir.Node, stored: ir.Value | None) -> _Bytes | None:
    """`stored` as what `node`, a QuantizeLinear or DequantizeLinear, says of it; None unless that is constant."""
    scale = constant(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant(given) if given is not None else np.zeros((), np.uint8)
    blocks = node.attributes.get_int("block_size", 0)
    if stored is None or stored.dtype not in _BYTES or scale is None or zero is None or blocks:
        return None
    zero = np.broadcast_to(zero.astype(np.float64), scale.shape)
    return _Bytes(stored, scale.astype(np.float64), zero, node.attributes.get_int("axis", 1))


def _weight(node: ir.Node, w: _Bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Signed bytes and a scale for every output channel, laid out as the operator takes them."""
    stored = constant(w.stored)
    if stored is None or stored.ndim != (4 if node.op_type == "Conv" else 2):
        return None
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    channels = 0 if node.op_type == "Conv" or transposed else 1
    if w.scale.size != 1 and w.axis % stored.ndim != channels:
        return None
    along = [1] * stored.ndim
    along[channels] = w.zero.size
    integers = stored.astype(np.float64) - w.zero.reshape(along)
    if integers.size and (integers.min() < -128 or integers.max() > 127):
        return None
    alpha = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
    scale = np.broadcast_to(w.scale.reshape(-1) * alpha, (stored.shape[channels],)).astype(np.float32)
    integers = integers.T if transposed else integers
    return np.ascontiguousarray(integers.astype(np.int8)), scale
