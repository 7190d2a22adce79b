"""Linear layers with constant weights: which nodes are, and their biases as additions of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.shapes import infer_shapes, static_shape
from lowerkit.graph.weights import initializer


def is_linear(node: ir.Node) -> bool:
    """Whether `node` is a MatMul by a constant matrix, or a Conv over two axes with constant filters and no bias.

    Padding is given as numbers; x is float32 of static shape.
    """
    if not _is_product(node) or node.op_type == "Gemm":
        return False
    return len([value for value in node.inputs if value is not None]) == 2


def separate_biases(model: ir.Model, wanted: Callable[[ir.Node], bool]) -> None:
    """Make those Gemm and Conv that have constant weights, and are `wanted`, products followed by an Add, in place.

    A Gemm becomes a MatMul: alpha goes into the matrix, beta into the addend. The product keeps the node's name, the
    sum the value's. Exact up to rounding. Valid before and after: any graph with inferred shapes.
    """
    found = [node for node in model.graph if _is_product(node) and not is_linear(node) and wanted(node)]
    for node in found:
        _separate(model, node)
    if found:
        infer_shapes(model)


def _is_product(node: ir.Node) -> bool:
    """As `is_linear`; Gemm, and Conv with a bias, too."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm", "Conv") or len(node.inputs) < 2:
        return False
    x, w = node.inputs[:2]
    shape, weight = static_shape(x), static_shape(w)
    if x is None or x.dtype != ir.DataType.FLOAT or shape is None or weight is None or constant(w) is None:
        return False
    if node.op_type == "Conv":
        explicit = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        return explicit and len(shape) == len(weight) == 4
    return len(weight) == 2 and len(shape) >= 2 and not node.attributes.get_int("transA", 0)


def _separate(model: ir.Model, node: ir.Node) -> None:
    x, weight = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    name = node.outputs[0].name
    if node.op_type == "Gemm":
        weight = _scaled(model, node)
        attributes: dict[str, ir.Attr] = {}
    else:
        attributes = {key: value for key, value in node.attributes.items() if isinstance(value, ir.Attr)}
    product = ir.node(
        "Conv" if node.op_type == "Conv" else "MatMul",
        [x, weight],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    product.attributes.update(attributes)
    if bias is None:
        take_place(node, [product])
        return
    product.outputs[0].name = f"{name}/product"
    product.outputs[0].type = node.outputs[0].type
    total = ir.node("Add", [product.outputs[0], addend(model, node, bias)], name=f"{node.name}/bias")
    take_place(node, [product, total])


def _scaled(model: ir.Model, node: ir.Node) -> ir.Value:
    """The matrix of a Gemm as a MatMul takes it."""
    value, weight = node.inputs[1], constant(node.inputs[1])
    assert value is not None
    assert weight is not None
    alpha, transposed = node.attributes.get_float("alpha", 1.0), node.attributes.get_int("transB", 0)
    if alpha == 1 and not transposed:
        return value
    matrix = (weight.T if transposed else weight) * np.float32(alpha)
    return initializer(model.graph, f"{value.name}/matrix", np.ascontiguousarray(matrix))


def addend(model: ir.Model, node: ir.Node, bias: ir.Value) -> ir.Value:
    """What an Add to the product takes for the `bias` of a Gemm or Conv; of shape [1, O, 1, 1] for a Conv."""
    array, beta = constant(bias), node.attributes.get_float("beta", 1.0)
    if node.op_type == "Conv":
        if array is not None:
            return initializer(model.graph, f"{bias.name}/addend", array.reshape(1, -1, 1, 1))
        shape = initializer(model.graph, f"{node.name}/by_channel", np.array([1, -1, 1, 1], np.int64))
        return _inserted(node, ir.node("Reshape", [bias, shape], name=f"{node.name}/addend"))
    if beta == 1:
        return bias
    if array is not None:
        return initializer(model.graph, f"{bias.name}/addend", (array * np.float32(beta)).astype(array.dtype))
    factor = initializer(model.graph, f"{node.name}/beta", np.array(beta, np.float32))
    return _inserted(node, ir.node("Mul", [bias, factor], name=f"{node.name}/addend"))


def _inserted(node: ir.Node, made: ir.Node) -> ir.Value:
    """The value of `made`, put before `node`."""
    made.outputs[0].name = f"{made.name}:0"
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_before(node, made)
    return made.outputs[0]
