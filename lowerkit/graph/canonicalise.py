"""Canonicalise: constants folded, dead code gone, and every non-linearity called by its name.

The canonical graph is the one that plans, calibration and targets speak of. It is written in standard
operators of a recent opset wherever one exists (Gelu, LayerNormalization, Attention, ...) and in function
operators of the domain `lowerkit` elsewhere (Silu). Everything here is exact up to float rounding; values
that survive keep their names, and a named operator's output has the name of what it replaced, so that
validation lines the graphs up. `metadata_props["lowerkit.spelled"]` of a named node says how it was spelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common

from lowerkit.graph.batch_norm import FoldBatchNorm
from lowerkit.graph.conv_affine import FoldConvAffine
from lowerkit.graph.fusions import activation, attention, moe, norm, softmax
from lowerkit.graph.layout import SimplifyLayouts
from lowerkit.graph.names import name_nodes
from lowerkit.graph.no_ops import RemoveNoOps
from lowerkit.graph.reductions import KeepReducedAxes
from lowerkit.graph.shapes import constant_values, infer_shapes
from lowerkit.graph.weights import initializer

#: Folding makes no constant larger than this many elements: a folded Expand can dwarf the model.
FOLD_LIMIT = 1 << 20


class Pass(Protocol):
    """A step of canonicalisation. Valid before and after: a graph with inferred static shapes."""

    name: ClassVar[str]

    def __call__(self, model: ir.Model) -> object: ...


@dataclass(frozen=True)
class FoldShapeArithmetic:
    """Replace what exporters compute from shapes by its value; shapes are static.

    Valid before and after: any graph with inferred shapes.
    """

    name: ClassVar[str] = "fold-shape-arithmetic"

    def __call__(self, model: ir.Model) -> None:
        """Replace, in place."""
        values = constant_values(model)
        for node in list(model.graph):
            if node.op_type == "Constant" or not node.outputs:
                continue
            names = [output.name for output in node.outputs]
            if all(name in values for name in names) and not any(o.is_graph_output() for o in node.outputs):
                for output in node.outputs:
                    _become_constant(model, output, values[output.name or ""])


@dataclass(frozen=True)
class FoldConstants:
    """Replace nodes with constant inputs by their value, up to a size, with onnxscript's optimiser.

    Random operators are left alone. Valid before and after: any graph.
    """

    name: ClassVar[str] = "fold-constants"

    def __call__(self, model: ir.Model) -> None:
        """Fold, in place."""
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        onnxscript.optimizer.fold_constants(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


@dataclass(frozen=True)
class MergeDuplicates:
    """Compute equal subexpressions once and store equal weights once. Valid before and after: any graph."""

    name: ClassVar[str] = "merge-duplicates"

    def __call__(self, model: ir.Model) -> None:
        """Merge, in place."""
        common.DeduplicateInitializersPass()(model)
        common.CommonSubexpressionEliminationPass()(model)


@dataclass(frozen=True)
class Clean:
    """Drop dead nodes, weights and functions, sort, name nodes, infer shapes. Valid after: canonical."""

    name: ClassVar[str] = "clean"

    def __call__(self, model: ir.Model) -> None:
        """Clean, in place."""
        common.RemoveUnusedNodesPass()(model)
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        common.TopologicalSortPass()(model)
        name_nodes(model)
        infer_shapes(model)


#: In the order in which they run. A formula is named before those that contain it.
PASSES: Sequence[Pass] = (
    FoldShapeArithmetic(),
    FoldConstants(),
    RemoveNoOps(),
    Clean(),
    KeepReducedAxes(),
    SimplifyLayouts(),
    RemoveNoOps(),
    MergeDuplicates(),
    FoldConvAffine(),
    FoldBatchNorm(),
    activation.FuseSoftplus(),
    activation.FuseSigmoid(),
    softmax.FuseSoftmax(),
    softmax.FuseLogSoftmax(),
    activation.FuseGelu(),
    activation.FuseSilu(),
    activation.FuseMish(),
    activation.FuseHardSwish(),
    activation.FuseHardSigmoid(),
    norm.FuseLayerNorm(),
    norm.FuseAffineLayerNorm(),
    norm.FuseRmsNorm(),
    norm.FuseNormScale(),
    norm.FuseLayerNormBias(),
    attention.FuseAttention(),
    moe.FuseMixtureOfExperts(),
    activation.FuseRsqrt(),
    MergeDuplicates(),
    Clean(),
)


def canonicalise(model: ir.Model, dump: Callable[[str, ir.Model], None] | None = None) -> ir.Model:
    """The canonical form of `model`, which stays as it is.

    Args:
        model: at the canonical opset, shapes static, as `lowerkit.graph.load.upgrade` leaves it.
        dump: called as (pass name, graph) after every pass that changed something, and with
            "canonical" at the end.
    """
    canonical = model.clone()
    _own_constants(canonical)
    for step in PASSES:
        changed = step(canonical)
        if dump is not None and changed:
            dump(step.name, canonical)
    if dump is not None:
        dump("canonical", canonical)
    return canonical


def _own_constants(model: ir.Model) -> None:
    """A clone shares tensors with its original, and passes name those of Constant nodes anew."""
    for node in model.graph.all_nodes():
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype != ir.DataType.STRING:
                copy = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
                node.attributes["value"] = ir.AttrTensor("value", copy)


def _become_constant(model: ir.Model, value: ir.Value, array: np.ndarray) -> None:
    constant = initializer(model.graph, f"{value.name}.value", array)
    ir.convenience.replace_all_uses_with(value, constant)
