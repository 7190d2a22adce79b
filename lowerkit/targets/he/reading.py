"""From a lowered graph to the tensor program.

What linear operators do, with all their attributes, onnxruntime knows: the matrix of any of them is found by
running it on the unit vectors. Numbers pass through exactly, as each output of a unit vector is one weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.polynomial import chebyshev
from numpy.polynomial import polynomial as powers
from scipy import sparse

from lowerkit.errors import UnsupportedError
from lowerkit.graph.domain import DOMAIN, describe_node
from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.reference import Reference
from lowerkit.targets.he.program import Affine, Input, Polynomial, Product, Program, Step
from lowerkit.targets.he.simplify import simplified

#: Affine in all of their inputs together.
JOINTLY_AFFINE = frozenset({"Add", "Concat", "Identity", "Neg", "Sub", "Sum", "Mean"})
#: Affine in the inputs at these places, all others being constant.
AFFINE: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("MatMul", "Mul"), (0, 1)),
    "Gemm": (0, 1, 2),
    **dict.fromkeys(
        (
            "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "CumSum", "DepthToSpace", "Div",
            "Expand", "Flatten", "Gather", "GlobalAveragePool", "Pad", "ReduceMean", "ReduceSum", "Reshape", "Slice",
            "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
        ),
        (0,),
    ),
}  # fmt: skip
#: Constant inputs that are added; for jointly affine operators, all are.
ADDED: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (2, 3),
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "Pad": (2,),
}
#: Operators of two encrypted values.
PRODUCTS = frozenset({"MatMul", "Mul"})
#: Prefix of the operators of `passes.activation.interval_poly`.
POLYNOMIAL = "IntervalPoly"
#: Prefix of those of `passes.activation.composite`, and how far beyond its largest value the inner polynomial may be.
COMPOSITE, SLACK = "Composite", 1.01
#: Unit vectors that one affine operator is run on, at most.
MOST_COLUMNS = 1 << 17


def reason(node: ir.Node) -> str | None:
    """Why an encrypted value cannot go through `node`, or None."""
    variable = [i for i, value in enumerate(node.inputs) if value is not None and value.const_value is None]
    op = node.op_type
    if (
        not variable
        or op in JOINTLY_AFFINE
        or (node.domain == DOMAIN and op.startswith((POLYNOMIAL, COMPOSITE)))
    ):
        return None
    if op == "Pow":
        exponent = node.inputs[1]
        whole = _scalar(exponent)
        if variable == [0] and whole is not None and whole == round(whole) and 1 <= whole <= 31:
            return None
        return "its exponent is no constant whole number from 1 to 31, so it is no polynomial"
    if op in PRODUCTS and len(variable) == 2:
        return None
    if op in AFFINE:
        if len(variable) == 1 and variable[0] in AFFINE[op]:
            return None
        return "it combines encrypted values in a way that has no packing yet"
    if op == "MaxPool":
        return "MaxPool is no polynomial; --method pool=average takes averages, which are another function"
    return f"{op} is no polynomial, and encrypted values know only sums and products"


def read(model: ir.Model) -> Program:
    """The tensor program of a lowered graph, simplified (`simplify.py`).

    Raises UnsupportedError for a node that is not polynomial.
    """
    steps: dict[str, Step] = {}
    for value in model.graph.inputs:
        steps[_name(value)] = Input(_name(value), _shape(value))
    for node in model.graph:
        if all(v is None or v.const_value is not None for v in node.inputs):
            continue
        why = reason(node)
        if why is None and len(node.outputs) > 1 and node.op_type != "Split":
            why = "it has several outputs"
        if why is not None:
            raise UnsupportedError(
                f"target 'he': {why}",
                node=describe_node(node),
                hint="replace it by a method that is polynomial: see `lowerkit passes` and docs/he.md",
            )
        for step in _steps(model, node):
            steps[step.name] = step
    return simplified(Program(tuple(steps.values()), tuple(_name(v) for v in model.graph.outputs)))


def _steps(model: ir.Model, node: ir.Node) -> list[Step]:
    out = node.outputs[0]
    variable = [v for v in node.inputs if v is not None and v.const_value is None]
    label = node.name or _name(out)
    if node.op_type in PRODUCTS and len(variable) == 2:
        return _products(node, label)
    if node.op_type == "Pow":
        return _power(_name(out), _shape(out), label, _name(variable[0]), int(_scalar(node.inputs[1]) or 1))
    if node.domain == DOMAIN and node.op_type.startswith(POLYNOMIAL):
        return [_polynomial(node)]
    if node.domain == DOMAIN and node.op_type.startswith(COMPOSITE):
        return list(_composite(node))
    return [
        Affine(_name(value), _shape(value), label, *_affine(model, node, index, variable))
        for index, value in enumerate(node.outputs)
    ]


def _products(node: ir.Node, label: str) -> list[Step]:
    """Element-wise products with their factors' elements repeated as needed; sums of them for matrices."""
    left, right = node.inputs
    assert left is not None
    assert right is not None
    out, name = _shape(node.outputs[0]), _name(node.outputs[0])
    index = [np.arange(math.prod(_shape(value))).reshape(_shape(value)) for value in (left, right)]
    if node.op_type == "Mul":
        one, two = (np.broadcast_to(places, out).ravel() for places in index)
        return [Product(name, out, label, _name(left), _name(right), _unless_whole(one), _unless_whole(two))]
    first = index[0].reshape(1, -1) if index[0].ndim == 1 else index[0]
    second = index[1].reshape(-1, 1) if index[1].ndim == 1 else index[1]
    whole = np.broadcast_arrays(first[..., :, None, :], second[..., None, :, :].swapaxes(-1, -2))
    *batch, rows, columns, summed = whole[0].shape
    axes = (math.prod(batch), rows, columns, summed)
    one, two = (places.ravel() for places in whole)
    product = Product(f"{name}.products", (len(one),), label, _name(left), _name(right), one, two, axes=axes)
    size = len(one) // summed
    ends = summed * np.arange(size + 1)
    sums = sparse.csr_array((np.ones(len(one)), np.arange(len(one)), ends), shape=(size, len(one)))
    return [product, Affine(name, out, label, {product.name: sums}, np.zeros(size))]


def _unless_whole(index: np.ndarray) -> np.ndarray | None:
    return None if np.array_equal(index, np.arange(len(index))) else index


def _power(name: str, shape: tuple[int, ...], label: str, value: str, exponent: int) -> list[Step]:
    """x^n = x^half x^(n - half), half the largest power of two below n."""
    if exponent == 1:
        size = int(np.prod(shape))
        return [Affine(name, shape, label, {value: sparse.csr_array(sparse.eye_array(size))}, np.zeros(size))]
    names, steps = {1: value, exponent: name}, dict[int, Step]()

    def emit(n: int) -> str:
        if n > 1 and n not in steps:
            half = 1 << (n - 1).bit_length() - 1
            left, right = emit(half), emit(n - half)
            names.setdefault(n, f"{name}.{n}")
            steps[n] = Product(names[n], shape, label, left, right)
        return names[n]

    emit(exponent)
    return list(steps.values())


def _polynomial(node: ir.Node) -> Polynomial:
    value, array = node.inputs
    assert value is not None
    assert array is not None
    assert array.const_value is not None
    numbers = np.trim_zeros(array.const_value.numpy().astype(np.float64), "b")
    low, high = (float(node.attributes[key].as_float()) for key in ("low", "high"))
    out = node.outputs[0]
    return Polynomial(
        _name(out), _shape(out), node.name or _name(out), _name(value), tuple(numbers.tolist()), low, high
    )


def _composite(node: ir.Node) -> tuple[Polynomial, Polynomial]:
    """offset + outer(inner(x / limit)); the inner polynomial is scaled to [-1, 1], where the outer one begins."""
    value, *arrays = node.inputs
    assert value is not None
    odd = [np.asarray(a.const_value.numpy(), np.float64) for a in arrays if a is not None and a.const_value]
    # Coefficients of x^15, x^13, ..., x.
    rising = (np.ravel(np.stack([np.zeros_like(c), c[::-1]], axis=1)) for c in odd)
    inner, outer = (np.trim_zeros(c, "b") for c in rising)
    offset = next(a.offset for a in ACTIVATIONS if node.op_type == f"{COMPOSITE}{a.op}")
    reach = SLACK * np.abs(powers.polyval(np.linspace(-1, 1, 4001), inner)).max()
    first = chebyshev.poly2cheb(inner / reach)
    second = chebyshev.poly2cheb(outer * reach ** np.arange(len(outer)))
    second[0] += offset
    out, limit = node.outputs[0], float(node.attributes["limit"].as_float())
    label, shape, between = node.name or _name(out), _shape(out), f"{_name(out)}.inner"
    return (
        Polynomial(between, shape, label, _name(value), tuple(first.tolist()), -limit, limit),
        Polynomial(_name(out), shape, label, between, tuple(second.tolist()), -1.0, 1.0),
    )


def _affine(
    model: ir.Model, node: ir.Node, output: int, variable: Sequence[ir.Value]
) -> tuple[dict[str, sparse.csr_array], np.ndarray]:
    """Matrices by input name, and the value at 0."""
    inputs = list(dict.fromkeys(variable))
    columns = sum(int(np.prod(_shape(value))) for value in inputs)
    if columns > MOST_COLUMNS:
        raise UnsupportedError(
            f"target 'he': it reads {columns} numbers, and at most {MOST_COLUMNS} fit",
            node=describe_node(node),
            hint="compile for a smaller --shape",
        )
    linear, whole = (_Alone(model, node, output, inputs, linear=part) for part in (True, False))
    zeros = {_name(value): np.zeros(_shape(value), np.float32) for value in inputs}
    bias = whole(zeros).astype(np.float64).ravel()
    if not np.isfinite(bias).all():
        raise UnsupportedError(
            "target 'he': it adds numbers that are not finite, as masks of attention do",
            node=describe_node(node),
            hint="compile for a --shape that needs no mask, or drop what is masked",
        )
    terms = {}
    for value in inputs:
        name, size = _name(value), zeros[_name(value)].size
        places, numbers, ends = [], [], [0]
        unit = np.zeros(size, np.float32)
        for column in range(size):
            unit[column] = 1
            found = linear({**zeros, name: unit.reshape(_shape(value))}).ravel().astype(np.float64)
            unit[column] = 0
            rows = np.flatnonzero(found)
            places.append(rows)
            numbers.append(found[rows])
            ends.append(ends[-1] + len(rows))
        shape = (bias.size, size)
        stored = (np.concatenate(numbers), np.concatenate(places), np.array(ends))
        terms[name] = sparse.csr_array(sparse.csc_array(stored, shape=shape))
    return terms, bias


class _Alone:
    """One node as a model of its own; if `linear`, without what it adds, so that unit vectors give columns exactly."""

    def __init__(
        self, model: ir.Model, node: ir.Node, output: int, inputs: Sequence[ir.Value], *, linear: bool
    ) -> None:
        names = {
            value.name: ir.Value(name=value.name, shape=value.shape, type=value.type) for value in inputs
        }
        constants = {}
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None:
                continue
            added = node.op_type in JOINTLY_AFFINE or index in ADDED.get(node.op_type, ())
            numbers = value.const_value
            if linear and added:
                numbers = ir.tensor(np.zeros_like(numbers.numpy()), name=value.name)
            constants[value.name] = ir.Value(
                name=value.name, shape=value.shape, type=value.type, const_value=numbers
            )
        given = [None if v is None else names.get(v.name) or constants[v.name] for v in node.inputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            given,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name="alone",
        )
        for made, old in zip(copy.outputs, node.outputs, strict=True):
            made.name, made.type, made.shape = old.name, old.type, old.shape
        graph = ir.Graph(
            list(names.values()),
            [copy.outputs[output]],
            nodes=[copy],
            initializers=list(constants.values()),
            opset_imports=dict(model.opset_imports),
            name="alone",
        )
        functions = list(model.functions.values())
        self._run = Reference(ir.Model(graph, ir_version=model.ir_version, functions=functions))
        self._output = _name(node.outputs[output])

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._run(inputs)[self._output]


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


def _name(value: ir.Value) -> str:
    return value.name or ""


def _shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not value.shape.is_static():
        raise UnsupportedError(f"target 'he': value '{value.name}' has no static shape", hint="pass --shape")
    return tuple(int(n) for n in value.shape.numpy())
