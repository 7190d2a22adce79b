"""What the softmax methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.passes.base import Method

#: Axes of attention weights: batch, heads, queries, keys.
RANK = 4
#: One number for a tensor, or one for each head.
PerHead = float | tuple[float, ...]


def broadcast(numbers: PerHead) -> np.ndarray:
    """The numbers in float64, of shape () or (heads, 1, 1)."""
    array = np.array(numbers, np.float64)
    return array.reshape(-1, 1, 1) if array.ndim else array


def refuses_heads(node: ir.Node, axis: int, what: str, *numbers: PerHead) -> str | None:
    """Why a node is no softmax of attention weights with as many heads as there are `numbers`, or None."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or len(shape) != RANK:
        rank = "unknown rank" if shape is None else f"rank {len(shape)}"
        return f"{what} per head, and needs weights of shape (batch, heads, queries, keys), not of {rank}"
    if axis not in (-1, -2):
        return f"{what} per head, and needs rows along queries or keys"
    for given in numbers:
        if isinstance(given, tuple) and len(given) != shape[1]:
            return f"has numbers for {len(given)} heads, not for {shape[1]}"
    return None


@dataclass(frozen=True)
class SoftmaxMethod(Method):
    """A method for Softmax over one axis; the attribute `axis` is passed on, counted from the end."""

    family: ClassVar[str] = "softmax"

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, negative."""
        axis = node.attributes.get_int("axis", -1)
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return {"axis": axis if axis < 0 or shape is None else axis - len(shape)}
