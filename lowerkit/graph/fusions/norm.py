"""LayerNormalization and RMSNormalization spelled out in means, squares and roots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.fusions.algebra import Formula, close, constant, shape_of
from lowerkit.graph.fusions.base import Found, Fusion
from lowerkit.graph.fusions.softmax import reduced_axes
from lowerkit.graph.weights import initializer


@dataclass(frozen=True)
class FuseLayerNorm(Fusion):
    """(x - mean) (var + eps)^(-1/2) [scale] is LayerNormalization over the last axes.

    In any order of factors, with the root as Sqrt and Div, Reciprocal or Pow, and the square as Pow or Mul.
    Without a scale the operator gets one of ones.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    roots: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        x = root.outputs[0]
        coefficient, powers = formula.product(x)
        variance = [value for value, power in powers.items() if power == -0.5]
        factors = [value for value, power in powers.items() if power == 1]
        if coefficient != 1 or len(variance) != 1 or len(factors) != len(powers) - 1:
            return None
        for deviation in factors:
            trial = Formula(dict(formula.nodes))
            centred = centred_input(trial, deviation)
            scale = [value for value in factors if value is not deviation]
            if centred is None or len(scale) > 1:
                continue
            x, axes = centred
            squared = _deviation_in(trial, variance[0])  # x - mean may be there twice
            if squared is None or centred_input(trial, squared) != centred:
                continue
            epsilon = mean_square_epsilon(trial, variance[0], squared, axes)
            weight = scale_input(x, axes, scale[0] if scale else None)
            if epsilon is not None and weight is not None:
                formula.nodes.update(trial.nodes)
                return Found("LayerNormalization", [x, weight], {"axis": axes[0], "epsilon": epsilon})
        return None


@dataclass(frozen=True)
class FuseRmsNorm(Fusion):
    """x (mean(x^2) + eps)^(-1/2) [scale] is RMSNormalization over the last axes."""

    name: ClassVar[str] = "fuse-rms-norm"
    roots: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        coefficient, powers = formula.product(root.outputs[0])
        square = [value for value, power in powers.items() if power == -0.5]
        factors = [value for value, power in powers.items() if power == 1]
        if coefficient != 1 or len(square) != 1 or len(factors) != len(powers) - 1:
            return None
        for x in factors:
            trial = Formula(dict(formula.nodes))
            scale = [value for value in factors if value is not x]
            shape = shape_of(x)
            if len(scale) > 1 or shape is None or shape != shape_of(root.outputs[0]):
                continue
            for count in range(1, len(shape) + 1):
                axes = tuple(range(-count, 0))
                epsilon = mean_square_epsilon(trial, square[0], x, axes)
                weight = scale_input(x, axes, scale[0] if scale else None)
                if epsilon is not None and weight is not None:
                    formula.nodes.update(trial.nodes)
                    return Found("RMSNormalization", [x, weight], {"axis": axes[0], "epsilon": epsilon})
        return None


@dataclass(frozen=True)
class FuseNormScale(Fusion):
    """A normalisation without a scale of its own, times a scale, is one with that scale."""

    name: ClassVar[str] = "fuse-norm-scale"
    roots: ClassVar[frozenset[str]] = frozenset({"Mul"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        for normed, scale in (root.inputs, reversed(root.inputs)):
            trial = Formula(dict(formula.nodes))
            norm = trial.node(normed, "LayerNormalization", "RMSNormalization")
            if norm is None or len(norm.inputs) != 2 or scale is None or norm.inputs[0] is None:
                continue
            old = constant(norm.inputs[1])
            axis = norm.attributes.get_int("axis", -1)
            weight = scale_input(norm.inputs[0], tuple(range(axis, 0)), scale) if axis < 0 else None
            if old is not None and (old == 1).all() and weight is not None:
                formula.nodes.update(trial.nodes)
                return Found(norm.op_type, [norm.inputs[0], weight], norm.attributes)
        return None


@dataclass(frozen=True)
class FuseLayerNormBias(Fusion):
    """LayerNormalization plus a bias of the normalised shape is LayerNormalization with that bias."""

    name: ClassVar[str] = "fuse-layer-norm-bias"
    roots: ClassVar[frozenset[str]] = frozenset({"Add"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        for normed, bias in (root.inputs, reversed(root.inputs)):
            trial = Formula(dict(formula.nodes))
            norm = trial.node(normed, "LayerNormalization")
            if norm is None or len(norm.inputs) != 2 or constant(bias) is None:
                continue
            x, scale = norm.inputs
            axis = norm.attributes.get_int("axis", -1)
            if x is None or axis >= 0:
                continue
            weight = scale_input(x, tuple(range(axis, 0)), bias)
            if weight is not None:
                formula.nodes.update(trial.nodes)
                return Found("LayerNormalization", [x, scale, weight], norm.attributes)
        return None


@dataclass(frozen=True)
class FuseAffineLayerNorm(Fusion):
    """x s + (bias - mean s), with s = (var + eps)^(-1/2) scale, is LayerNormalization: TensorFlow's form."""

    name: ClassVar[str] = "fuse-affine-layer-norm"
    roots: ClassVar[frozenset[str]] = frozenset({"Add"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        offset, weights = formula.weighted_sum(root.outputs[0])
        bias = [value for value in weights if constant(value) is not None]
        scaled = [value for value in weights if constant(value) is None]
        if offset != 0 or len(scaled) != 2 or len(bias) > 1 or any(weights[b] != 1 for b in bias):
            return None
        products = [(weights[value] * c, p) for value in scaled for c, p in [formula.product(value)]]
        (c1, p1), (c2, p2) = sorted(products, key=lambda product: -product[0])
        shared = {value: power for value, power in p1.items() if p2.get(value) == power}
        only_x = {value: power for value, power in p1.items() if value not in shared}
        only_mean = {value: power for value, power in p2.items() if value not in shared}
        if list(shared.values()) == [1.0]:  # (var + eps)^(-1/2) scale, computed once
            factor, shared = formula.product(next(iter(shared)))
            c1, c2 = c1 * factor, c2 * factor
        if (c1, c2) != (1, -1) or list(only_x.values()) != [1] or list(only_mean.values()) != [1]:
            return None
        (x,), (mean,) = only_x, only_mean
        reduction = formula.node(mean, "ReduceMean")
        axes = last_axes(reduction) if reduction is not None and reduction.inputs[0] is x else None
        variance = [value for value, power in shared.items() if power == -0.5]
        scale = [value for value, power in shared.items() if power == 1]
        if axes is None or len(variance) != 1 or len(scale) > 1 or len(shared) != 1 + len(scale):
            return None
        deviation = _deviation_in(formula, variance[0])
        if deviation is None or centred_input(formula, deviation) != (x, axes):
            return None
        epsilon = mean_square_epsilon(formula, variance[0], deviation, axes)
        weight = scale_input(x, axes, scale[0] if scale else None)
        shift = scale_input(x, axes, bias[0]) if bias else None
        if epsilon is None or weight is None or (bias and shift is None):
            return None
        inputs = [x, weight, *([shift] if shift is not None else [])]
        return Found("LayerNormalization", inputs, {"axis": axes[0], "epsilon": epsilon})


def last_axes(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a reduction when they are the last ones, negative and ascending; else None."""
    axes = reduced_axes(node)
    return axes if axes and axes == tuple(range(-len(axes), 0)) else None


def centred_input(formula: Formula, value: ir.Value) -> tuple[ir.Value, tuple[int, ...]] | None:
    """(x, axes) when `value` is x - mean(x) over the last axes, else None."""
    difference = formula.node(value, "Sub")
    if difference is None:
        return None
    x, mean = difference.inputs
    reduction = formula.node(mean, "ReduceMean")
    axes = last_axes(reduction) if reduction is not None and reduction.inputs[0] is x else None
    return (x, axes) if x is not None and axes is not None else None


def mean_square_epsilon(
    formula: Formula, value: ir.Value, base: ir.Value, axes: tuple[int, ...]
) -> float | None:
    """epsilon when `value` is mean(base^2) + epsilon over `axes`, else None."""
    epsilon, weights = formula.weighted_sum(value)
    if len(weights) != 1 or not close(next(iter(weights.values())), 1) or epsilon < 0:
        return None
    mean = formula.node(next(iter(weights)), "ReduceMean")
    if mean is None or last_axes(mean) != axes or mean.inputs[0] is None:
        return None
    coefficient, powers = formula.product(mean.inputs[0])
    return epsilon if coefficient == 1 and powers == {base: 2} else None


def _deviation_in(formula: Formula, variance: ir.Value) -> ir.Value | None:
    """The value whose mean square `variance` adds epsilon to."""
    _, weights = formula.weighted_sum(variance)
    mean = formula.node(next(iter(weights), None), "ReduceMean")
    if mean is None or mean.inputs[0] is None:
        return None
    _, powers = formula.product(mean.inputs[0])
    return next(iter(powers), None)


def scale_input(x: ir.Value, axes: tuple[int, ...], scale: ir.Value | None) -> ir.Value | None:
    """`scale` as an input of a normalisation of `x` over `axes`; ones for None; None when it does not fit.

    It must be a constant that broadcasts over the normalised shape alone.
    """
    shape = shape_of(x)
    if shape is None or x.dtype is None or (graph := _graph_of(x)) is None:
        return None
    normalised = shape[axes[0] :]
    if scale is None:
        array = np.ones(normalised, x.dtype.numpy())
        return initializer(graph, f"{x.name}.ones", array)
    found = constant(scale)
    if found is None:
        return None
    while found.ndim > len(normalised) and found.shape[0] == 1:
        found = found[0]
    if found.ndim > len(normalised) or np.broadcast_shapes(found.shape, normalised) != normalised:
        return None
    if found.shape == normalised and shape_of(scale) == normalised:
        return scale
    return initializer(graph, f"{scale.name}.reshaped", np.broadcast_to(found, normalised).copy())


def _graph_of(value: ir.Value) -> ir.Graph | None:
    producer = value.producer()
    graph = producer.graph if producer is not None else value.graph
    return graph if isinstance(graph, ir.Graph) else None
