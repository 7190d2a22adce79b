"""Reading arithmetic off a graph: the same formula comes in many spellings, and few as algebra.

Exporters write products and sums in any order, divide by a constant or multiply by its inverse, spell a
square as `Pow(x, 2)` or `Mul(x, x)`, an inverse root as `Reciprocal(Sqrt(v))`, `Pow(v, -0.5)` or a
division. Read as a product of powers, a weighted sum, or a polynomial, those spellings are one. The
functions here read; nothing is rewritten. A `Formula` remembers which nodes it has read through, which is
how the original was spelled.

Products and sums are read down to values that are used more than once: x in x * sigmoid(x), or in
x - mean(x), is one value however it was computed itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

#: Relative distance at which a float32 constant is still the rounding of the number it stands for. Exporters
#: round once or twice, each time by at most 2**-24.
ROUNDING = 2.0**-22


def close(found: float, expected: float) -> bool:
    """Whether `found` is `expected` up to float32 rounding."""
    return math.isclose(found, expected, rel_tol=ROUNDING)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The value of an initializer or Constant node, or None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None


def scalar(value: ir.Value | None) -> float | None:
    """The one element of a constant, or None."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape of `value`, or None."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


@dataclass
class Formula:
    """Reads formulas off values, and collects the nodes read through in `nodes`."""

    nodes: dict[ir.Node, None] = field(default_factory=dict)

    def node(self, value: ir.Value | None, *op_types: str) -> ir.Node | None:
        """The node that computes `value`, when it is a standard operator of one of `op_types`."""
        producer = value.producer() if value is not None else None
        if producer is None or producer.domain != "" or producer.op_type not in op_types:
            return None
        self.nodes[producer] = None
        return producer

    def argument(self, value: ir.Value | None, op_type: str) -> ir.Value | None:
        """The first input of the node that computes `value`, when that is an `op_type`."""
        node = self.node(value, op_type)
        return node.inputs[0] if node is not None else None

    def product(self, value: ir.Value) -> tuple[float, dict[ir.Value, float]]:
        """`value` as c * v1**e1 * v2**e2 ...: the coefficient, and exponents by value.

        What is under a root is read no further: the root of a square is not its base.
        """
        powers: dict[ir.Value, float] = {}
        coefficient = self._product(value, 1, powers, root=True)
        return coefficient, {v: e for v, e in powers.items() if e != 0}

    def _product(
        self, value: ir.Value, sign: int, powers: dict[ir.Value, float], root: bool = False
    ) -> float:
        number = scalar(value)
        if number is not None and number != 0:
            return number**sign
        node, op = _inner(value, root)
        if node is not None and op in ("Mul", "Div", "Neg", "Reciprocal"):
            self.nodes[node] = None
            a, b = node.inputs[0], node.inputs[-1]
            assert a is not None
            assert b is not None
            if op == "Mul":
                return self._product(a, sign, powers) * self._product(b, sign, powers)
            if op == "Div":
                return self._product(a, sign, powers) * self._product(b, -sign, powers)
            return -self._product(a, sign, powers) if op == "Neg" else self._product(a, -sign, powers)
        base, exponent = value, 1.0
        power = 0.5 if op == "Sqrt" else scalar(node.inputs[1]) if node is not None and op == "Pow" else None
        if node is not None and power is not None:
            self.nodes[node] = None
            assert node.inputs[0] is not None
            base, exponent = node.inputs[0], power
        powers[base] = powers.get(base, 0.0) + sign * exponent
        return 1.0

    def weighted_sum(self, value: ir.Value) -> tuple[float, dict[ir.Value, float]]:
        """`value` as c + w1 * v1 + w2 * v2 ...: the constant term, and weights by value."""
        weights: dict[ir.Value, float] = {}
        offset = self._weighted_sum(value, 1.0, weights, root=True)
        return offset, {v: w for v, w in weights.items() if w != 0}

    def _weighted_sum(
        self, value: ir.Value, weight: float, weights: dict[ir.Value, float], root: bool = False
    ) -> float:
        number = scalar(value)
        if number is not None:
            return weight * number
        node, op = _inner(value, root)
        if node is not None and op in ("Add", "Sub", "Neg"):
            self.nodes[node] = None
            a, b = node.inputs[0], node.inputs[-1]
            assert a is not None
            assert b is not None
            if op == "Neg":
                return self._weighted_sum(a, -weight, weights)
            other = weight if op == "Add" else -weight
            return self._weighted_sum(a, weight, weights) + self._weighted_sum(b, other, weights)
        if node is not None and op in ("Mul", "Div"):
            a, b = node.inputs
            assert a is not None
            assert b is not None
            left, right = scalar(a), scalar(b)
            if right is not None and right != 0:
                self.nodes[node] = None
                return self._weighted_sum(a, weight * right if op == "Mul" else weight / right, weights)
            if left is not None and op == "Mul":
                self.nodes[node] = None
                return self._weighted_sum(b, weight * left, weights)
        weights[value] = weights.get(value, 0.0) + weight
        return 0.0

    def polynomial(self, value: ir.Value, x: ir.Value, depth: int = 8) -> dict[int, float] | None:
        """`value` as a polynomial in `x`, coefficients by power, or None when it is not one."""
        if value is x:
            return {1: 1.0}
        number = scalar(value)
        if number is not None:
            return {0: number} if number else {}
        node = value.producer()
        if depth == 0 or node is None or node.domain != "":
            return None
        inputs = [v for v in node.inputs if v is not None]
        parts = [self.polynomial(v, x, depth - 1) for v in inputs]
        if node.op_type not in ("Add", "Sub", "Mul", "Neg", "Div", "Pow") or None in parts:
            return None
        first, last = parts[0], parts[-1]
        assert first is not None
        assert last is not None
        self.nodes[node] = None
        match node.op_type:
            case "Add":
                return _add(first, last, 1.0)
            case "Sub":
                return _add(first, last, -1.0)
            case "Neg":
                return _add({}, first, -1.0)
            case "Mul":
                return _multiply(first, last)
            case "Div" if set(last) == {0}:
                return {power: c / last[0] for power, c in first.items()}
            case "Pow" if set(last) == {0} and last[0] in (1, 2, 3, 4):
                result = {0: 1.0}
                for _ in range(int(last[0])):
                    result = _multiply(result, first)
                return result
        return None

    def scaled(self, value: ir.Value, x: ir.Value) -> float | None:
        """The factor c when `value` is c * x, else None."""
        if value is x:
            return 1.0
        coefficient, powers = self.product(value)
        return coefficient if powers == {x: 1} else None


def _inner(value: ir.Value, root: bool) -> tuple[ir.Node | None, str]:
    """The node to read through and its operator, or "" where `value` is to be read as it is."""
    node = value.producer()
    if node is None or node.domain != "" or (len(value.uses()) > 1 and not root):
        return None, ""
    return node, node.op_type


def _add(a: Mapping[int, float], b: Mapping[int, float], weight: float) -> dict[int, float]:
    powers = sorted({*a, *b})
    return {power: a.get(power, 0.0) + weight * b.get(power, 0.0) for power in powers}


def _multiply(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    result: dict[int, float] = {}
    for i, x in a.items():
        for j, y in b.items():
            result[i + j] = result.get(i + j, 0.0) + x * y
    return result
