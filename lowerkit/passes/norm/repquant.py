"""LayerNorm and RMSNorm whose channels are scaled alike, so that one quantiser fits them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.channels import channel_readers, drop_unused, undo_in_products
from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.weights import initializer
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.base import Bound, Contract, Evidence, Method
from lowerkit.passes.norm.base import HIGHEST, LOWEST, NormMethod

#: No channel's scale is further than this below the largest one's.
SPREAD = 2.0**20


@script(LOWERKIT, default_opset=op)
def ScaledLayerNorm(  # type: ignore[no-untyped-def]
    X,
    Scale,
    Bias,
    axis: int = -1,
    epsilon: float = 1e-5,
    output_scale: float = 1.0,
    output_zero_point: int = 0,
    bits: int = 8,
):
    """LayerNormalization; the quantiser of its output is for targets that have integers."""
    return op.LayerNormalization(X, Scale, Bias, axis=axis, epsilon=epsilon)


@script(LOWERKIT, default_opset=op)
def ScaledRMSNorm(  # type: ignore[no-untyped-def]
    X,
    Scale,
    axis: int = -1,
    epsilon: float = 1e-5,
    output_scale: float = 1.0,
    output_zero_point: int = 0,
    bits: int = 8,
):
    """RMSNormalization; the quantiser of its output is for targets that have integers."""
    return op.RMSNormalization(X, Scale, axis=axis, epsilon=epsilon)


@dataclass(frozen=True)
class RepQuant(NormMethod):
    """Normalisation with one quantiser for all channels that is as good as one for each.

    The channels of a LayerNorm's output Y differ in range by orders of magnitude, and one scale for all leaves
    the small ones a few levels. Channel c with the calibrated range [min_c, max_c], widened to contain 0, has
    with `bits` bits

        scale_c = (max_c - min_c) / (2^bits - 1),    zero_c = round(-min_c / scale_c),

    and takes the integers round(Y_c / scale_c) + zero_c. With s = mean_c scale_c, z = round(mean_c zero_c),
    r_c = scale_c / s and t_c = scale_c (zero_c - z), the value

        Y'_c = (Y_c + t_c) / r_c

    has Y'_c / s + z = Y_c / scale_c + zero_c: under the one quantiser (s, z) it takes the same integers. It costs
    nothing, since gamma' = gamma / r and beta' = (beta + t) / r give Y' in the place of Y, and what reads it is

        Y W + b = Y' (r W) + (b - t W),

    with the rows of W scaled by r, so the function is the same in real arithmetic. In floating point, as
    zero_c is in [0, 2^bits - 1], |t_c| is at most the width of the channel's range, and neither + t nor - t W
    cancels more than the channel's own size. RMSNorm has no beta: its channels are quantised symmetrically,
    scale_c = max |Y_c| / (2^(bits-1) - 1) and zero_c = 2^(bits-1), so that t is 0.

    No scale is below 2^-20 of the largest, that of a channel which is 0 throughout included. NaN and
    infinities go through as before.

    The plan names the normalisation. What reads its output must be products, MatMul or Gemm, with constant
    matrices; means, selections and changes of shape that leave the channels whole may stand between. The
    operator carries s, z and `bits` as attributes for a target that quantises; the body rounds nothing.
    """

    scale: Sequence[float] = ()
    zero_point: Sequence[int] = ()
    bits: int = 8

    name: ClassVar[str] = "repquant"
    contract: ClassVar[Contract] = Contract.EXACT
    source: ClassVar[str] = (
        "Li et al., RepQuant: Towards accurate post-training quantization of large transformer models via scale "
        "reparameterization (2024); RepQ-ViT (ICCV 2023), section 3.2"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "none: constants change, and a product without a bias gets one",
        "gpu": "none; activations quantised per tensor, as int8 matrix units want them",
        "fpga": "none; one multiplier and shift requantises all channels instead of a table of them",
        "he": "none: plain constants change; channels of one size need fewer bits of precision",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {
        "LayerNormalization": ScaledLayerNorm,
        "RMSNormalization": ScaledRMSNorm,
    }

    def __post_init__(self) -> None:
        if not _is_int(self.bits) or not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be an integer from 2 to 16, not {self.bits!r}")
        if not isinstance(self.scale, (list, tuple)) or not all(
            isinstance(s, (int, float)) and LOWEST <= s <= HIGHEST for s in self.scale
        ):
            raise ValueError(f"scale must be a list of numbers from {LOWEST} to {HIGHEST}, one per channel")
        if not isinstance(self.zero_point, (list, tuple)) or not all(
            _is_int(z) and 0 <= z < 2**self.bits for z in self.zero_point
        ):
            raise ValueError(
                f"zero_point must be a list of integers from 0 to {2**self.bits - 1}, one per channel"
            )
        if len(self.scale) != len(self.zero_point):
            raise ValueError(
                "scale and zero_point must be of one length, "
                f"not {len(self.scale)} and {len(self.zero_point)}"
            )
        if self.scale and max(self.scale) > SPREAD * min(self.scale):
            raise ValueError("scale must not differ between channels by more than 2^20")
        # Plan files give lists.
        object.__setattr__(self, "scale", tuple(float(s) for s in self.scale))
        object.__setattr__(self, "zero_point", tuple(self.zero_point))

    @classmethod
    def fit_node(cls, node: ir.Node, stats: TensorStats | None, options: Mapping[str, Any]) -> Method:
        """Scale and zero point of every channel of the node's output over the calibrated examples."""
        method = cls(**options)
        weights = _weights(node)
        if method.scale or method.zero_point or stats is None or weights is None:
            return method
        rms = node.op_type == "RMSNormalization"
        epsilon, axis = node.attributes.get_float("epsilon", 1e-5), node.attributes.get_int("axis", -1)
        found = []
        for example in stats.examples:
            axes = tuple(range(axis % example.ndim, example.ndim))
            y = _normalised(example, axes, rms, epsilon) * weights[0] + weights[1]
            rows = y.reshape(-1, y.shape[-1])
            rows = rows[np.isfinite(rows).all(axis=1)]
            found += [rows.min(axis=0), rows.max(axis=0)] if len(rows) else []
        if not found:
            return method
        low, high = np.minimum(np.min(found, axis=0), 0), np.maximum(np.max(found, axis=0), 0)
        return cls(*_quantisers(low, high, method.bits, symmetric=rms), bits=method.bits)

    def bound(self) -> Bound:
        """Zero: equal in real arithmetic."""
        return Bound(0.0, "absolute", "every row, after the products that read it", Evidence.PROVED)

    @property
    def common(self) -> tuple[float, int]:
        """The one scale and zero point."""
        if not self.scale:
            return 1.0, 0
        return float(np.mean(self.scale)), int(np.rint(np.mean(self.zero_point)))

    @property
    def factor(self) -> np.ndarray:
        """r, per channel."""
        return np.array(self.scale) / self.common[0]

    @property
    def offset(self) -> np.ndarray:
        """t, per channel."""
        return np.array(self.scale) * (np.array(self.zero_point, np.float64) - self.common[1])

    def refuses(self, node: ir.Node) -> str | None:
        """Weights that are no constants, channels without a scale, and readers that cannot undo the change."""
        reason = super().refuses(node)
        if reason is not None:
            return reason
        if _weights(node) is None:
            return "needs a constant scale and bias"
        readers = channel_readers(node.outputs[0])
        if readers.refusal is not None:
            return f"needs its output {readers.refusal}"
        if not self.scale:
            return "needs the scale and zero point of every channel: calibrate, or give them as options in the plan"
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is not None and shape[-1] != len(self.scale):
            return f"has the scale of {len(self.scale)} channels, and the input has {shape[-1]}"
        if node.op_type == "RMSNormalization" and self.offset.any():
            return "needs equal zero points for an RMSNormalization, which has no bias"
        return None

    def inputs(self, model: ir.Model, node: ir.Node) -> list[ir.Value | None]:
        """X, gamma' and, for LayerNormalization, beta'."""
        weights, name = _weights(node), node.outputs[0].name
        assert weights is not None
        arrays = {"scale": weights[0] / self.factor, "bias": (weights[1] + self.offset) / self.factor}
        if node.op_type == "RMSNormalization":
            del arrays["bias"]
        made = (initializer(model.graph, f"{name}/{k}", v.astype(np.float32)) for k, v in arrays.items())
        return [node.inputs[0], *made]

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, negative, and `epsilon`; the quantiser of the output."""
        scale, zero_point = self.common
        quantiser = {"output_scale": scale, "output_zero_point": zero_point, "bits": self.bits}
        return {**super().attributes(node), **quantiser}

    def rewrite(self, model: ir.Model, node: ir.Node) -> ir.Node:
        """Put the operator in the node's place, its output under another name, and have the products undo it."""
        weights = [value for value in node.inputs[1:] if value is not None]
        undo_in_products(channel_readers(node.outputs[0]), self.factor, self.offset)
        new = super().rewrite(model, node)
        new.outputs[0].name = f"{new.outputs[0].name}/scaled"
        drop_unused(weights)
        return new

    def restored(self, y: np.ndarray) -> np.ndarray:
        """See `Method.restored`: Y from Y'."""
        restored: np.ndarray = np.asarray(y, np.float64) * self.factor - self.offset
        return restored

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: Y' with gamma 1 and beta 0, or with `scale` and `bias`."""
        rms, epsilon = attributes.get("rms", False), attributes.get("epsilon", 1e-5)
        y = _normalised(x, (-1,), rms, epsilon) * attributes.get("scale", 1.0) + attributes.get("bias", 0.0)
        result: np.ndarray = (y + self.offset) / self.factor if self.scale else y
        return result


def _normalised(x: np.ndarray, axes: tuple[int, ...], rms: bool, epsilon: float) -> np.ndarray:
    """Without scale and bias, in float64."""
    x = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if not rms:
            x = x - x.mean(axis=axes, keepdims=True)
        result: np.ndarray = x / np.sqrt((x * x).mean(axis=axes, keepdims=True) + epsilon)
    return result


def _weights(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and bias of the node in float64, zeros for no bias; None when they are no constants."""
    given = [constant(value) for value in node.inputs[1:] if value is not None]
    if not given or any(array is None for array in given):
        return None
    arrays = [array.astype(np.float64) for array in given if array is not None]
    return arrays[0], arrays[1] if len(arrays) > 1 else np.zeros_like(arrays[0])


def _quantisers(
    low: np.ndarray, high: np.ndarray, bits: int, symmetric: bool
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Scale and zero point per channel for ranges that contain 0."""
    width = np.maximum(-low, high) / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
    scale = width.astype(np.float32).astype(np.float64)
    largest = scale.max()
    scale = np.maximum(scale, max(largest / SPREAD, LOWEST)) if largest > 0 else np.ones_like(scale)
    zero = np.full(len(scale), 2 ** (bits - 1)) if symmetric else np.rint(-low / scale)
    zero = np.clip(zero, 0, 2**bits - 1).astype(int)
    return tuple(scale.tolist()), tuple(zero.tolist())


def _is_int(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
