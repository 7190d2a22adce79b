"""BatchNormalization at inference: a factor and an offset per channel, which a linear layer before it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.shapes import static_shape
from lowerkit.graph.weights import initializer


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold BatchNormalization into the Gemm, or the MatMul or MatMul and Add, before it.

    Exact in real arithmetic, rounding differs. Valid before and after: any graph with inferred shapes.
    """

    name: ClassVar[str] = "fold-batch-norm"

    def __call__(self, model: ir.Model) -> None:
        """Fold, in place."""
        _GEMM.apply_to_model(model)
        for node in list(model.graph):
            if node.domain == "" and node.op_type == "BatchNormalization":
                _fold_into_matmul(node)


_GEMM = RewriteRuleSet([rules.fuse_batchnorm_into_gemm_rule])


def channel_affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """(factor, offset) per channel in float64 of a BatchNormalization with constants, at inference."""
    arrays = [constant(x) for x in node.inputs[1:5]]
    if any(a is None for a in arrays) or node.attributes.get_int("training_mode", 0) != 0:
        return None
    scale, shift, mean, variance = (a.astype(np.float64) for a in arrays if a is not None)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return factor, shift - mean * factor


def _fold_into_matmul(node: ir.Node) -> None:
    """BatchNormalization(x W + b) is x (W factor) + (b factor + offset) on [rows, channels]."""
    value = node.inputs[0]
    affine = channel_affine(node)
    if value is None or affine is None or any(output.uses() for output in node.outputs[1:]):
        return
    factor, offset = affine
    bias = np.zeros(len(factor))
    producer = _only_for(value, node)
    if producer is not None and producer.op_type == "Add":
        terms = [constant(x) for x in producer.inputs]
        index = next((i for i, term in enumerate(terms) if term is not None), None)
        if index is None or terms[index].size not in (1, len(factor)):  # type: ignore[union-attr]
            return
        bias = np.broadcast_to(terms[index].astype(np.float64).reshape(-1), bias.shape)  # type: ignore[union-attr]
        if static_shape(producer.inputs[1 - index]) != static_shape(value):
            return
        value = producer.inputs[1 - index]
        producer = _only_for(value, producer) if value is not None else None
    if producer is None or producer.op_type != "MatMul" or value is None:
        return
    weight, shape = constant(producer.inputs[1]), static_shape(value)
    # The channels of a BatchNormalization are axis 1, which is a product's last axis on two axes alone.
    if weight is None or weight.ndim != 2 or shape is None or len(shape) != 2:
        return
    graph, name = node.graph, node.outputs[0].name
    assert isinstance(graph, ir.Graph)
    scaled = initializer(graph, f"{name}/weight", (weight.astype(np.float64) * factor).astype(weight.dtype))
    shift = initializer(graph, f"{name}/bias", (bias * factor + offset).astype(weight.dtype))
    product = ir.node("MatMul", [producer.inputs[0], scaled], name=producer.name)
    product.outputs[0].name = f"{name}/product"
    product.outputs[0].shape, product.outputs[0].type = value.shape, value.type
    total = ir.node("Add", [product.outputs[0], shift], name=node.name)
    take_place(node, [product, total])


def _only_for(value: ir.Value, user: ir.Node) -> ir.Node | None:
    """The standard operator that makes `value` for `user` alone."""
    producer = value.producer()
    if producer is None or producer.domain != "" or value.is_graph_output():
        return None
    return producer if [node for node, _ in value.uses()] == [user] else None
