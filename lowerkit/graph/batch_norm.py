"""BatchNormalization at inference: a factor and an offset per channel, which a linear layer beside it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from lowerkit.graph.channels import channel_readers, undo_in_products
from lowerkit.graph.edit import take_place
from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.shapes import static_shape
from lowerkit.graph.weights import initializer


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold BatchNormalization into the Gemm, or the MatMul or MatMul and Add, before it, or else into those behind.

    Its channels are axis 1. On more axes than two, those are a product's columns between two transpositions.
    Exact in real arithmetic, rounding differs. Valid before and after: any graph with inferred shapes.
    """

    name: ClassVar[str] = "fold-batch-norm"

    def __call__(self, model: ir.Model) -> None:
        """Fold, in place."""
        _GEMM.apply_to_model(model)
        for node in list(model.graph):
            if node.domain == "" and node.op_type == "BatchNormalization":
                _fold(node)
        # What is dead still counts as a use of its inputs.
        RemoveUnusedNodesPass()(model)


_GEMM = RewriteRuleSet([rules.fuse_batchnorm_into_gemm_rule])


def channel_affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """(factor, offset) per channel in float64 of a BatchNormalization with constants, at inference."""
    arrays = [constant(x) for x in node.inputs[1:5]]
    if any(a is None for a in arrays) or node.attributes.get_int("training_mode", 0) != 0:
        return None
    scale, shift, mean, variance = (a.astype(np.float64) for a in arrays if a is not None)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return factor, shift - mean * factor


def _fold(node: ir.Node) -> None:
    affine = channel_affine(node)
    if affine is None or any(output.uses() for output in node.outputs[1:]):
        return
    first, last = _on_last_axis(node)
    if first is None or last is None or _fold_into_product(first, last, *affine):
        return
    value, result = first.inputs[0], last.outputs[0]
    readers = channel_readers(result)
    if value is None or readers.refusal is not None or not readers.products:
        return
    # The products read `value`, which is (result - offset) / factor.
    undo_in_products(readers, affine[0], -affine[1])
    ir.convenience.replace_all_uses_with(result, value)


def _on_last_axis(node: ir.Node) -> tuple[ir.Node | None, ir.Node | None]:
    """The first and the last node of those that scale and shift the last axis: `node`, or it and two Transposes."""
    value = node.inputs[0]
    shape = static_shape(value)
    if value is None or shape is None or len(shape) == 2:
        return (node, node) if shape is not None else (None, None)
    before, uses = _only_for(value, node), list(node.outputs[0].uses())
    if before is None or before.op_type != "Transpose" or len(uses) != 1 or node.outputs[0].is_graph_output():
        return None, None
    after = uses[0].node
    there = list(before.attributes.get_ints("perm", ()))
    back = list(after.attributes.get_ints("perm", ())) if after.op_type == "Transpose" else []
    rank = len(shape)
    if len(there) != rank or len(back) != rank or after.domain != "" or there[1] != rank - 1:
        return None, None
    return (before, after) if [there[axis] for axis in back] == list(range(rank)) else (None, None)


def _fold_into_product(first: ir.Node, last: ir.Node, factor: np.ndarray, offset: np.ndarray) -> bool:
    """BatchNormalization(x W + b) is x (W factor) + (b factor + offset) where the channels are the last axis."""
    value = first.inputs[0]
    if value is None:
        return False
    bias = np.zeros(len(factor))
    producer = _only_for(value, first)
    if producer is not None and producer.op_type == "Add":
        terms = [constant(x) for x in producer.inputs]
        index = next((i for i, term in enumerate(terms) if term is not None), None)
        term = terms[index] if index is not None else None
        if index is None or term is None or term.size not in (1, *term.shape[-1:]):
            return False
        bias = np.broadcast_to(term.astype(np.float64).reshape(-1), bias.shape)
        if static_shape(producer.inputs[1 - index]) != static_shape(value):
            return False
        value = producer.inputs[1 - index]
        producer = _only_for(value, producer) if value is not None else None
    if producer is None or producer.op_type != "MatMul" or value is None:
        return False
    weight = constant(producer.inputs[1])
    if weight is None or weight.ndim != 2:
        return False
    graph, name = last.graph, last.outputs[0].name
    assert isinstance(graph, ir.Graph)
    scaled = initializer(graph, f"{name}/weight", (weight.astype(np.float64) * factor).astype(weight.dtype))
    shift = initializer(graph, f"{name}/bias", (bias * factor + offset).astype(weight.dtype))
    product = ir.node("MatMul", [producer.inputs[0], scaled], name=producer.name)
    product.outputs[0].name = f"{name}/product"
    product.outputs[0].shape, product.outputs[0].type = value.shape, value.type
    total = ir.node("Add", [product.outputs[0], shift], name=last.name)
    take_place(last, [product, total])
    return True


def _only_for(value: ir.Value, user: ir.Node) -> ir.Node | None:
    """The standard operator that makes `value` for `user` alone."""
    producer = value.producer()
    if producer is None or producer.domain != "" or value.is_graph_output():
        return None
    return producer if [node for node, _ in value.uses()] == [user] else None
