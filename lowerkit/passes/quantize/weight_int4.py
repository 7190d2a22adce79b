"""Weights in 4 bits with a scale for each group of rows, activations in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lowerkit.graph.shapes import static_shape
from lowerkit.passes.activation.bodies import Body
from lowerkit.passes.base import Bound, Evidence
from lowerkit.passes.quantize.base import LinearMethod, symmetric
from lowerkit.passes.quantize.bodies import MATMUL_WEIGHT_INT4

#: Integers on either side of 0.
STEPS = 7


@dataclass(frozen=True)
class WeightInt4(LinearMethod):
    """A matrix in 4 bits, with one scale for `group` rows of each column; float32 products.

    For the rows k of group g, w'_kn = t_gn v_kn with t_gn = max |w_kn| / 7 over the group and the integer
    v_kn = round(w_kn / t_gn), from -7 to 7. Each weight is off by at most t_gn / 2, so

        |y - y'| <= sum_k |x_k| t_gn / 2 <= K max|x| max|w| / 14.

    Groups keep a large weight from widening the steps of more than its own. `group` must divide the rows; a matrix
    that it does not divide is kept, and so are convolutions.
    """

    group: int = 32

    name: ClassVar[str] = "weight-int4"
    source: ClassVar[str] = (
        "Lin et al., AWQ (MLSys 2024), section 2, and Frantar et al., GPTQ (ICLR 2023), section 4: the grid with "
        "groups, rounded to nearest"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "an eighth of the weights' traffic; an unpacking and a multiply per weight and block of rows",
        "gpu": "an eighth of the weights' traffic",
        "fpga": "not applicable: that target has its own integers",
        "he": "not applicable: weights are encoded at the scale of their ciphertexts",
    }
    functions: ClassVar[Mapping[str, Body]] = {"MatMul": MATMUL_WEIGHT_INT4}

    def __post_init__(self) -> None:
        if self.group not in (32, 64, 128) or isinstance(self.group, bool):
            raise ValueError(f"group must be 32, 64 or 128, not {self.group!r}")

    def spares(self, node: ir.Node) -> str | None:
        """Convolutions, and matrices whose rows are no whole groups."""
        return super().spares(node) or self._indivisible(node)

    def refuses(self, node: ir.Node) -> str | None:
        """Weights that are not finite, or whose rows are no whole groups."""
        return super().refuses(node) or self._indivisible(node)

    def _indivisible(self, node: ir.Node) -> str | None:
        shape = static_shape(node.inputs[1])
        if shape is not None and shape[0] % self.group:
            return f"needs rows in groups of {self.group}, and the matrix has {shape[0]}"
        return None

    def bound(self) -> Bound:
        """From half a step of the weights."""
        return Bound(0.5 / STEPS, "operands", "every finite product", Evidence.PROVED)

    def stored(self, node: ir.Node, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Integers, and their scale per group and column."""
        integers, scale = self.quantised(weight)
        return {"w": integers.astype(ml_dtypes.int4), "w_scale": scale}

    def quantised(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(integers [K, N], scales [K / group, N]) of a matrix."""
        groups = weight.reshape(-1, self.group, weight.shape[1])
        parts = [symmetric(rows, STEPS) for rows in groups]
        integers = np.concatenate([integers for integers, _ in parts])
        return integers, np.stack([scale for _, scale in parts])

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: x times `weight`."""
        integers, scale = self.quantised(np.asarray(attributes["weight"], np.float64))
        weight = integers * np.repeat(scale.astype(np.float64), self.group, axis=0)
        result: np.ndarray = np.asarray(x, np.float64) @ weight
        return result
