"""Operators that do nothing at inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from lowerkit.graph.edit import take_place
from lowerkit.graph.shapes import static_shape

#: Chains of two that are one, or nothing.
_CHAINS = RewriteRuleSet(
    [
        rules.dropout_zero_rule,
        rules.dropout_inference_rule,
        rules.no_op_cast_rule,
        rules.no_op_transpose_rule,
        rules.reshape_reshape_rule,
        rules.transpose_transpose_rule,
    ]
)


@dataclass(frozen=True)
class RemoveNoOps:
    """Remove what does nothing at inference: Identity, Dropout, additions of 0, empty casts and reshapes.

    Valid before and after: any graph with inferred shapes.
    """

    name: ClassVar[str] = "remove-no-ops"

    def __call__(self, model: ir.Model) -> None:
        """Remove, in place."""
        _CHAINS.apply_to_model(model)
        for graph in model.graphs():
            for node in graph:
                if node.domain == "" and (source := _passed_through(node)) is not None:
                    take_place(node, [ir.node("Identity", [source], name=node.name)])
        common.IdentityEliminationPass()(model)


def _passed_through(node: ir.Node) -> ir.Value | None:
    """The input that the node's only output equals, or None."""
    if len(node.outputs) != 1:
        return None
    if node.op_type in ("Reshape", "Expand", "Flatten", "Squeeze", "Unsqueeze", "Tile"):
        candidates = [node.inputs[0]]
    elif node.op_type == "Where":
        candidates = [
            x for x, chosen in zip(node.inputs[1:], (1, 0), strict=True) if _is_all(node.inputs[0], chosen)
        ]
    elif (neutral := _NEUTRAL.get(node.op_type)) is not None and len(node.inputs) == 2:
        candidates = [x for x, other in neutral(node) if other]
    else:
        return None
    shape, dtype = static_shape(node.outputs[0]), node.outputs[0].dtype
    for x in candidates:
        if x is not None and shape is not None and static_shape(x) == shape and x.dtype == dtype:
            return x
    return None


def _is_all(value: ir.Value | None, number: float) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and bool(np.all(tensor.numpy() == number))


_Candidates = list[tuple[ir.Value | None, bool]]
#: Operator -> its inputs that the output may equal, and whether the other one's value lets it.
_NEUTRAL: dict[str, Callable[[ir.Node], _Candidates]] = {
    "Add": lambda n: [(n.inputs[0], _is_all(n.inputs[1], 0)), (n.inputs[1], _is_all(n.inputs[0], 0))],
    "Sub": lambda n: [(n.inputs[0], _is_all(n.inputs[1], 0))],
    "Mul": lambda n: [(n.inputs[0], _is_all(n.inputs[1], 1)), (n.inputs[1], _is_all(n.inputs[0], 1))],
    "Max": lambda n: [
        (n.inputs[0], _is_all(n.inputs[-1], -np.inf)),
        (n.inputs[-1], _is_all(n.inputs[0], -np.inf)),
    ],
    "Min": lambda n: [
        (n.inputs[0], _is_all(n.inputs[-1], np.inf)),
        (n.inputs[-1], _is_all(n.inputs[0], np.inf)),
    ],
    "Div": lambda n: [(n.inputs[0], _is_all(n.inputs[1], 1))],
}
