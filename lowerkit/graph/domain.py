"""The `lowerkit` operator domain: how method operators live inside a valid ONNX model.

Every approximation is an operator `lowerkit::Name` with a model-local function body in standard ops,
written in onnxscript beside its method. Tables and polynomial coefficients are ordinary inputs of the
node (initializers of the graph), scalars are attributes, so that one body serves every parameter choice.
"""

from __future__ import annotations

from typing import Protocol

import onnx
import onnx_ir as ir
from onnxscript import opset23, values

DOMAIN = "lowerkit"
VERSION = 1
#: Operators of the domain that canonical graphs have, for want of standard ones; all others are methods'.
CANONICAL = frozenset({"MixtureOfExperts", "Rsqrt", "Silu"})

#: The opset that canonical graphs and function bodies are written in.
OPSET = 23
#: The newest opset that the float reference (onnxruntime) loads; models above it are refused.
NEWEST_OPSET = 26

#: For `@script(LOWERKIT, default_opset=op)` in method files.
LOWERKIT = values.Opset(DOMAIN, VERSION)
op = opset23


class Function(Protocol):
    """An operator of the domain `lowerkit` with its body: an onnxscript function, or one from ONNX text."""

    @property
    def name(self) -> str: ...

    def to_function_proto(self) -> onnx.FunctionProto: ...


def add_function(model: ir.Model, function: Function) -> None:
    """Make `function` local to `model`, once."""
    local = ir.serde.deserialize_function(function.to_function_proto())
    # A body is valid in every opset from OPSET on; a model has one opset for all its bodies.
    local.opset_imports[""] = model.opset_imports[""]
    model.opset_imports[DOMAIN] = VERSION
    model.functions.setdefault(local.identifier(), local)


def describe_node(node: ir.Node) -> str:
    """`node 'name' (Op)` for messages; the domain is shown when it is not the standard one."""
    domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
    return f"node '{node.name or '?'}' ({domain}{node.op_type})"
