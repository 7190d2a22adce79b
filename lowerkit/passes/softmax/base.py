"""What the softmax methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lowerkit.passes.base import Method


@dataclass(frozen=True)
class SoftmaxMethod(Method):
    """A method for Softmax over one axis; the attribute `axis` is passed on, counted from the end."""

    family: ClassVar[str] = "softmax"

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, negative."""
        axis = node.attributes.get_int("axis", -1)
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return {"axis": axis if axis < 0 or shape is None else axis - len(shape)}
