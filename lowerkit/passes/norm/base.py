"""What the normalisation methods share: x y(v) scale + bias, where y(v) stands for v^(-1/2)."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.weights import initializer
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.base import Contract, Method

#: The range of normal float32 numbers.
SMALLEST, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)
#: Calibrated ranges lie between these, where no coefficient leaves float32.
LOWEST, HIGHEST = 1e-20, 1e20


@dataclass(frozen=True)
class NormMethod(Method):
    """A method for LayerNormalization and RMSNormalization."""

    family: ClassVar[str] = "norm"

    def refuses(self, node: ir.Node) -> str | None:
        """Too small an epsilon, and an input of unknown rank."""
        if self.attributes(node)["epsilon"] < SMALLEST:
            return "needs an epsilon of at least 2^-126"
        if node.inputs[0] is None or node.inputs[0].shape is None:
            return "needs an input of known rank"
        return None

    def inputs(self, model: ir.Model, node: ir.Node) -> list[ir.Value | None]:
        """X, Scale and, for LayerNormalization, Bias: zeros where it has none."""
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type == "LayerNormalization" and len(inputs) == 2:
            scale = inputs[1]
            assert scale.shape is not None
            zeros = np.zeros(tuple(scale.shape.numpy()), np.float32)
            inputs.append(initializer(model.graph, f"{scale.name}.no_bias", zeros))
        return list(inputs)

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, negative, and `epsilon`."""
        axis = node.attributes.get_int("axis", -1)
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        axis = axis if axis < 0 or shape is None else axis - len(shape)
        return {"axis": axis, "epsilon": node.attributes.get_float("epsilon", 1e-5)}


@dataclass(frozen=True)
class RowNorm(NormMethod):
    """One that normalises rows with another inverse square root.

    v is the variance of a row, or its mean square for RMSNormalization, plus epsilon. The normalised value
    before the bias has the relative error of the inverse square root.
    """

    @abstractmethod
    def inverse_root(self, v: np.ndarray) -> np.ndarray:
        """y(v) in float64, step by step."""

    def outside(self, stats: TensorStats) -> str | None:
        """Rows, taken over the last axis, whose sum of squares may overflow float32."""
        size = 1 if stats.channel_min is None else stats.channel_min.size
        largest = max(abs(stats.minimum), abs(stats.maximum)) if stats.count else 0.0
        if size * largest**2 > LARGEST:
            return f"values reach {largest:.2g}, and a row's sum of squares may leave float32"
        return None

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: without scale and bias; `rms=True` for RMSNorm, `epsilon` as in the node."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            if not attributes.get("rms"):
                x = x - x.mean(axis=-1, keepdims=True)
            v = (x * x).mean(axis=-1, keepdims=True) + attributes.get("epsilon", 1e-5)
            result: np.ndarray = x * self.inverse_root(v)
        return result


@dataclass(frozen=True)
class CalibratedNorm(RowNorm):
    """A method whose inverse square root is good for v in [`low`, `high`] alone.

    The range is that of the calibrated rows, `margin` times wider at both ends. Rows without any deviation
    do not count: 0 times any number is 0. Subclasses add an option, named by `size`, that trades cost for error.
    """

    low: float = 0.01
    high: float = 100.0
    margin: float = 2.0

    contract: ClassVar[Contract] = Contract.APPROXIMATE
    #: The option that trades cost for error, its largest value, and the error that is small enough.
    size: ClassVar[str]
    largest: ClassVar[int]
    enough: ClassVar[float]

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not LOWEST <= value <= HIGHEST:
                raise ValueError(f"{name} must be a number from {LOWEST} to {HIGHEST}, not {value!r}")
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, not {self.low!r} and {self.high!r}")
        size = getattr(self, self.size)
        if not isinstance(size, int) or not 1 <= size <= self.largest:
            raise ValueError(f"{self.size} must be an integer from 1 to {self.largest}, not {size!r}")
        if not isinstance(self.margin, (int, float)) or not 1 <= self.margin <= 1e6:
            raise ValueError(f"margin must be a number from 1 to 1000000, not {self.margin!r}")

    @property
    def domain(self) -> str:
        """For bounds."""
        return (
            f"rows with variance (mean square) + epsilon in [{self.low:.4g}, {self.high:.4g}]; "
            "relative to the result without bias"
        )

    @classmethod
    def fit_node(cls, node: ir.Node, stats: TensorStats | None, options: Mapping[str, Any]) -> Method:
        """The range from the calibrated rows; what `options` names stays."""
        observed = _range(node, stats)
        if observed is None:
            return cls(**options)
        margin = options.get("margin", cls.margin)
        low = min(max(observed[0] / margin, LOWEST), HIGHEST / 2)
        high = min(max(observed[1] * margin, low * 1.5), HIGHEST)
        method = cls(**{"low": low, "high": high, **options})
        return method.sized() if cls.size not in options else method

    def sized(self) -> CalibratedNorm:
        """This method with the least size that reaches `enough`, or the largest."""
        for size in range(1, self.largest + 1):
            method = dataclasses.replace(self, **{self.size: size})
            bound = method.bound()
            if bound is not None and bound.value <= self.enough:
                break
        return method

    def refuses(self, node: ir.Node) -> str | None:
        """An error that leaves nothing of the function, besides what `NormMethod` refuses."""
        bound = self.bound()
        if bound is not None and not bound.value < 0.5:
            return (
                f"may err by {min(bound.value, 1):.0%} over variances from {self.low:.2g} to {self.high:.2g}; "
                "choose a narrower range, or inverse-sqrt, which reduces it"
            )
        return super().refuses(node)

    def outside_node(self, node: ir.Node, stats: TensorStats) -> str | None:
        """Calibrated rows whose variance (mean square) and epsilon leave the range."""
        observed = _range(node, stats)
        if observed is not None and not self.low <= observed[0] <= observed[1] <= self.high:
            return (
                f"variances reach from {observed[0]:.2g} to {observed[1]:.2g}, "
                f"and the range is {self.low:.2g} to {self.high:.2g}"
            )
        return self.outside(stats)


def _range(node: ir.Node, stats: TensorStats | None) -> tuple[float, float] | None:
    """The least and greatest v of the calibrated rows that are not constant (zero for RMSNormalization)."""
    if stats is None:
        return None
    rms = node.op_type == "RMSNormalization"
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    axis = node.attributes.get_int("axis", -1)
    found: list[float] = []
    for example in stats.examples:
        x = example.astype(np.float64)
        axes = tuple(range(axis % x.ndim, x.ndim))
        with np.errstate(invalid="ignore", over="ignore"):
            centred = x if rms else x - x.mean(axis=axes, keepdims=True)
            v = (centred * centred).mean(axis=axes)
        v = v[np.isfinite(v) & (v > 0)]
        found += [float(v.min()), float(v.max())] if v.size else []
        # Over the last axis the variances of all rows are known, not those of the examples alone.
        if not rms and axes == (x.ndim - 1,):
            found += [v for v in stats.row_variance if 0 < v < np.inf]
    return (min(found) + epsilon, max(found) + epsilon) if found else None
