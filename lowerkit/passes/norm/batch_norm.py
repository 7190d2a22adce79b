"""LayerNorm and RMSNorm replaced by a fixed scale and shift per channel, as a batch norm is at inference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.base import Bound, Contract, Method
from lowerkit.passes.norm.base import NormMethod


@script(LOWERKIT, default_opset=op)
def BatchNorm(X, Scale, Bias, mean, variance, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """X factor + shift; factor and shift are of constants alone, and fold to one vector each."""
    factor = Scale / op.Sqrt(variance + op.CastLike(op.Constant(value_float=epsilon), variance))
    return X * factor + (Bias - mean * factor)


@script(LOWERKIT, default_opset=op)
def BatchRMSNorm(X, Scale, mean, variance, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """X factor + shift; factor and shift are of constants alone, and fold to one vector each."""
    factor = Scale / op.Sqrt(variance + op.CastLike(op.Constant(value_float=epsilon), variance))
    return X * factor + op.Neg(mean * factor)


@dataclass(frozen=True)
class BatchNormMethod(NormMethod):
    """y = (x - mean_c) / sqrt(variance_c + epsilon) * scale_c + bias_c, with the numbers of channel c fixed.

    Another function: the original's mean and variance are those of one row over its channels, these are those
    of one channel over all calibrated rows. For RMSNormalization the mean is 0 and the variance the mean
    square. What is left is a multiplication and an addition by constants, which merge into a linear layer
    that follows: no reduction, no root, no division, and the function is affine in x.

    The paper trains with lambda LayerNorm(x) + (1 - lambda) RepBN(x), lambda falling from 1 to 0, where RepBN
    adds eta x with a trained eta, which is affine too and is in scale and shift here. Without that training
    accuracy is lost: the weights behind the norm know rows of unit variance.

    NaN and infinities stay in their elements, as products and sums leave them.
    """

    mean: Sequence[float] = ()
    variance: Sequence[float] = ()

    name: ClassVar[str] = "batch-norm"
    contract: ClassVar[Contract] = Contract.REPLACE
    source: ClassVar[str] = (
        "Guo et al., SLAB: Efficient transformers with simplified linear attention and progressive "
        "re-parameterized batch normalization (ICML 2024), section 3.1"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "one multiply-add per element; none where it merges into a linear layer",
        "gpu": "one multiply-add per element, without a barrier for a row's sums",
        "fpga": "no row buffer and no second pass; one multiply-add per element, or none once merged",
        "he": "one product by plain numbers; nothing once merged",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {
        "LayerNormalization": BatchNorm,
        "RMSNormalization": BatchRMSNorm,
    }

    def __post_init__(self) -> None:
        for name in ("mean", "variance"):
            numbers = getattr(self, name)
            if not isinstance(numbers, (list, tuple)) or not all(_is_finite(number) for number in numbers):
                raise ValueError(f"{name} must be a list of finite numbers, one per channel")
            # Plan files give lists.
            object.__setattr__(self, name, tuple(float(number) for number in numbers))
        if len(self.mean) != len(self.variance):
            raise ValueError(
                f"mean and variance must be of one length, not {len(self.mean)} and {len(self.variance)}"
            )
        if any(number < 0 for number in self.variance):
            raise ValueError(f"variance must not be negative, and {min(self.variance)!r} is there")

    @classmethod
    def fit_node(cls, node: ir.Node, stats: TensorStats | None, options: Mapping[str, Any]) -> Method:
        """Mean and variance of every channel over the calibrated examples, rounded to float32."""
        rows = [example.reshape(-1, example.shape[-1]) for example in stats.examples] if stats else []
        if not rows or options:
            return cls(**options)
        x = np.concatenate(rows).astype(np.float64)
        x = x[np.isfinite(x).all(axis=1)]
        if not len(x):
            return cls()
        mean = np.zeros(x.shape[1]) if node.op_type == "RMSNormalization" else x.mean(axis=0)
        variance = ((x - mean) ** 2).mean(axis=0)
        return cls(*(tuple(v.astype(np.float32).astype(float).tolist()) for v in (mean, variance)))

    def bound(self) -> Bound | None:
        """None: another function."""
        return None

    def refuses(self, node: ir.Node) -> str | None:
        """Normalisation over more than the last axis, and channels that it has no numbers for."""
        reason = super().refuses(node)
        if reason is not None:
            return reason
        if super().attributes(node)["axis"] != -1:
            return "normalises the last axis alone"
        if not self.mean:
            return (
                "needs the mean and variance of every channel: calibrate, or give them as options in the plan"
            )
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is not None and shape[-1] != len(self.mean):
            return f"has the mean and variance of {len(self.mean)} channels, and the input has {shape[-1]}"
        return None

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """The two vectors, float32."""
        return {"mean": np.array(self.mean, np.float32), "variance": np.array(self.variance, np.float32)}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`epsilon`."""
        return {"epsilon": super().attributes(node)["epsilon"]}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: without scale and bias; `epsilon` as in the node."""
        factor = 1 / np.sqrt(np.array(self.variance) + attributes.get("epsilon", 1e-5))
        with np.errstate(invalid="ignore"):
            result: np.ndarray = np.asarray(x, np.float64) * factor - np.array(self.mean) * factor
        return result


def _is_finite(number: object) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number) and abs(number) <= 3e38
