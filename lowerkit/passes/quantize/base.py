"""What the methods for linear layers share: MatMul by a constant matrix, and Conv by constant filters."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.channels import drop_unused
from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.linear import is_linear
from lowerkit.graph.weights import initializer
from lowerkit.passes.base import Contract, Method
from lowerkit.passes.quantize.windows import convolve

FAMILY = "linear"
#: Steps of an activation, and of a weight on either side of 0.
ACTIVATION_STEPS, WEIGHT_STEPS = 255, 127
#: Products of a sum, below which narrow operands of a Conv gain less than it takes to make them.
_FEW = 32
#: The least step: a normal float32, by which hardware that flushes others to 0 can divide too.
SMALLEST = 2.0**-126


@dataclass(frozen=True)
class LinearMethod(Method):
    """A method for MatMul by a constant matrix [K, N], or Conv by constant filters [O, I / group, kh, kw].

    Biases are Adds behind (`lowerkit.graph.linear` takes them out), and the operator's output is that of the product
    alone. Asked for the whole family, a method leaves out what gains nothing: convolutions by channel, and those whose
    sums are of fewer than 32 products, such as a first one over three colours.
    """

    family: ClassVar[str] = FAMILY
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    on_request: ClassVar[bool] = True
    #: Whether options are fitted to what the samples give.
    calibrated: ClassVar[bool] = False

    @abstractmethod
    def stored(self, node: ir.Node, weight: np.ndarray) -> dict[str, np.ndarray]:
        """What the operator takes after X, by name and in its order, for `weight` in float64."""

    @classmethod
    def concerns(cls, node: ir.Node) -> bool:
        """Whether the node is a product that linear methods speak of."""
        return is_linear(node)

    def spares(self, node: ir.Node) -> str | None:
        """Operators that the method has nothing for, and convolutions of few products to a sum."""
        if node.op_type not in self.functions:
            return f"replaces {', '.join(sorted(self.functions))}, not {node.op_type}"
        if node.op_type != "Conv":
            return None
        _, channels, *kernel = weight_of(node).shape
        depth = channels * math.prod(kernel)
        if depth < _FEW or (channels == 1 and node.attributes.get_int("group", 1) > 1):
            return f"gains nothing where a sum is one of {depth} products"
        return None

    def refuses(self, node: ir.Node) -> str | None:
        """Weights that are not finite."""
        weight = weight_of(node)
        if not np.isfinite(weight).all():
            return f"needs finite weights, and {np.count_nonzero(~np.isfinite(weight))} are NaN or infinite"
        return None

    def inputs(self, model: ir.Model, node: ir.Node) -> list[ir.Value | None]:
        """X, and what is stored of the weight: under the weight's name, so that nodes that share it share that."""
        source = node.inputs[1]
        assert source is not None
        made = [
            initializer(model.graph, f"{source.name}/{self.name}.{key}", array)
            for key, array in self.stored(node, weight_of(node)).items()
        ]
        return [node.inputs[0], *made]

    def attributes(self, node: ir.Node) -> dict[str, Any]:
        """Those of a Conv, spelled out; none for a MatMul."""
        return window(node) if node.op_type == "Conv" else {}

    def rewrite(self, model: ir.Model, node: ir.Node) -> ir.Node:
        """Put the operator in the node's place; a weight that nothing else reads goes."""
        weight = [value for value in node.inputs[1:2] if value is not None]
        new = super().rewrite(model, node)
        drop_unused(weight)
        return new


@dataclass(frozen=True)
class IntegerLinear(LinearMethod):
    """A linear method whose weights are integers with one scale per output channel."""

    def integers(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(integers, their float32 scale) of each output channel of `weight`, which is float64."""
        return symmetric(weight)

    def steps(self, x: np.ndarray, axes: int) -> tuple[np.ndarray, np.ndarray | float]:
        """(what the integers are multiplied with, its step) of x, whose last `axes` axes are one product's.

        By default whole steps of 8 bits, quantised as they come.
        """
        return dynamic_steps(x, axes)

    def stored(self, node: ir.Node, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Integers and their scale per output channel."""
        integers, scale = self.integers(weight)
        return {"w": integers, "w_scale": scale}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`: x times `weight`, or convolved with it, with a Conv's attributes."""
        weight = np.asarray(attributes["weight"], np.float64)
        integers, scale = self.integers(weight)
        steps, step = self.steps(x, 3 if weight.ndim == 4 else 1)
        sums = product(steps, integers.astype(np.float64), attributes)
        result: np.ndarray = sums * step * by_output(scale, weight)
        return result


def weight_of(node: ir.Node) -> np.ndarray:
    """The weight of a linear node in float64."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight.astype(np.float64)


def window(node: ir.Node) -> dict[str, Any]:
    """Attributes of a Conv over two axes, defaults spelled out."""
    return {
        "pads": list(node.attributes.get_ints("pads", (0, 0, 0, 0))),
        "strides": list(node.attributes.get_ints("strides", (1, 1))),
        "dilations": list(node.attributes.get_ints("dilations", (1, 1))),
        "group": node.attributes.get_int("group", 1),
    }


def outputs_last(weight: np.ndarray) -> np.ndarray:
    """A weight as [K, outputs]: a matrix as it is, filters [O, ...] flat and transposed."""
    return weight if weight.ndim == 2 else weight.reshape(len(weight), -1).T


def symmetric(weight: np.ndarray, steps: int = WEIGHT_STEPS) -> tuple[np.ndarray, np.ndarray]:
    """(integers from -steps to steps, their scale) of each output channel of `weight`; the scale is float32.

    A matrix has its channels along the last axis, filters have theirs along the first. The largest magnitude of a
    channel becomes `steps`; a channel of zeros has the scale 1.
    """
    rows = outputs_last(weight)
    largest = np.abs(rows).max(axis=0, initial=0.0)
    scale = np.where(largest > 0, np.maximum(largest / steps, SMALLEST), 1.0).astype(np.float32)
    by_channel = (
        scale.astype(np.float64) if weight.ndim == 2 else scale.astype(np.float64)[:, None, None, None]
    )
    return np.clip(np.rint(weight / by_channel), -steps, steps).astype(np.int8), scale


def dynamic_steps(x: np.ndarray, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """(q - z, s) of x, in float64, with one s for each place before the last `axes` axes; s keeps those as 1."""
    x = np.asarray(x, np.float64)
    over = tuple(range(-axes, 0))
    low = np.minimum(x.min(axis=over, keepdims=True), 0)
    high = np.maximum(x.max(axis=over, keepdims=True), 0)
    step = (high - low) / ACTIVATION_STEPS
    step = np.where(step == 0, 1.0, step)
    zero = np.clip(np.rint(-low / step), 0, ACTIVATION_STEPS)
    return np.clip(np.rint(x / step) + zero, 0, ACTIVATION_STEPS) - zero, step


def product(x: np.ndarray, weight: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    """x times a matrix, or convolved with filters, in float64."""
    if weight.ndim == 2:
        result: np.ndarray = np.asarray(x, np.float64) @ weight
        return result
    return convolve(x, weight, **{key: attributes[key] for key in attributes if key in _WINDOW})


def by_output(scale: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A number per output channel, so that it broadcasts over the product with `weight`."""
    return np.asarray(scale, np.float64).reshape((-1,) if weight.ndim == 2 else (-1, 1, 1))


_WINDOW = frozenset({"pads", "strides", "dilations", "group"})
