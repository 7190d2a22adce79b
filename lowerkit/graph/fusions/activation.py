"""Activations in the forms that exporters write them: GELU, SiLU, Mish, HardSwish, HardSigmoid, Softplus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnxscript import script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.graph.fusions.algebra import Formula, close, scalar, shape_of
from lowerkit.graph.fusions.base import Found, Fusion


@script(LOWERKIT, default_opset=op)
def Silu(X):  # type: ignore[no-untyped-def]
    """SiLU(x) = x sigmoid(x). Standard ONNX has it as Swish, from opset 24 on."""
    return op.Mul(X, op.Sigmoid(X))


@script(LOWERKIT, default_opset=op)
def Rsqrt(X):  # type: ignore[no-untyped-def]
    """1 / sqrt(x)."""
    return op.Reciprocal(op.Sqrt(X))


@dataclass(frozen=True)
class _Gate(Fusion):
    """x times a gate that is a function of x."""

    roots: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class: each of the two factors may be x."""
        coefficient, powers = formula.product(root.outputs[0])
        if len(powers) != 2 or set(powers.values()) != {1.0}:
            return None
        first, second = powers
        for x, gate in ((first, second), (second, first)):
            trial = Formula(dict(formula.nodes))
            if shape_of(x) != shape_of(root.outputs[0]):
                continue
            found = self.gate(x, gate, coefficient, trial)
            if found is not None:
                formula.nodes.update(trial.nodes)
                return found
        return None

    def gate(self, x: ir.Value, gate: ir.Value, coefficient: float, formula: Formula) -> Found | None:
        """What `coefficient * x * gate` is, or None."""
        raise NotImplementedError


@dataclass(frozen=True)
class FuseGelu(_Gate):
    """x (1 + erf(x / sqrt 2)) / 2 is Gelu; with tanh(sqrt(2/pi) (x + 0.044715 x^3)), its tanh form."""

    name: ClassVar[str] = "fuse-gelu"

    def gate(self, x: ir.Value, gate: ir.Value, coefficient: float, formula: Formula) -> Found | None:
        """The gate is a (1 + erf) or a (1 + tanh), the half anywhere in the product."""
        offset, weights = formula.weighted_sum(gate)
        if len(weights) != 1 or not close(coefficient * offset, 0.5):
            return None
        ((inner, weight),) = weights.items()
        if not close(coefficient * weight, 0.5):
            return None
        argument = formula.argument(inner, "Erf")
        if argument is not None:
            factor = formula.scaled(argument, x)
            exact = factor is not None and close(factor, math.sqrt(0.5))
            return Found("Gelu", [x], {"approximate": "none"}) if exact else None
        argument = formula.argument(inner, "Tanh")
        terms = formula.polynomial(argument, x) if argument is not None else None
        if terms is None or {power for power, c in terms.items() if c} != {1, 3}:
            return None
        root = math.sqrt(2 / math.pi)
        # Two constants are rounded here, and exporters write either or their product.
        if close(terms[1], root) and math.isclose(terms[3], 0.044715 * root, rel_tol=1e-6):
            return Found("Gelu", [x], {"approximate": "tanh"})
        return None


@dataclass(frozen=True)
class FuseSilu(_Gate):
    """x sigmoid(x), also as x / (1 + exp(-x)), is SiLU. x sigmoid(1.702 x), the quick GELU, is not."""

    name: ClassVar[str] = "fuse-silu"

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        trial = Formula(dict(formula.nodes))
        coefficient, powers = trial.product(root.outputs[0])
        if coefficient == 1 and sorted(powers.values()) == [-1.0, 1.0]:
            x, denominator = sorted(powers, key=lambda value: -powers[value])
            if _logistic_argument(trial, denominator) is x and shape_of(x) == shape_of(root.outputs[0]):
                formula.nodes.update(trial.nodes)
                return Found("Silu", [x], function=Silu)
        return super().match(root, formula)

    def gate(self, x: ir.Value, gate: ir.Value, coefficient: float, formula: Formula) -> Found | None:
        """The gate is Sigmoid of x itself."""
        argument = formula.argument(gate, "Sigmoid")
        if coefficient != 1 or argument is None or formula.scaled(argument, x) != 1:
            return None
        return Found("Silu", [x], function=Silu)


@dataclass(frozen=True)
class FuseMish(_Gate):
    """x tanh(softplus(x)) is Mish."""

    name: ClassVar[str] = "fuse-mish"

    def gate(self, x: ir.Value, gate: ir.Value, coefficient: float, formula: Formula) -> Found | None:
        """The gate is Tanh of Softplus of x."""
        softplus = formula.argument(gate, "Tanh")
        if coefficient != 1 or formula.argument(softplus, "Softplus") is not x:
            return None
        return Found("Mish", [x])


@dataclass(frozen=True)
class FuseHardSwish(_Gate):
    """x clip(x + 3, 0, 6) / 6 is HardSwish; so is x HardSigmoid(x) with slope 1/6 and offset 1/2."""

    name: ClassVar[str] = "fuse-hard-swish"

    def gate(self, x: ir.Value, gate: ir.Value, coefficient: float, formula: Formula) -> Found | None:
        """The gate is HardSigmoid, or its Clip."""
        hard = formula.node(gate, "HardSigmoid")
        if hard is not None:
            alpha, beta = hard.attributes.get_float("alpha", 0.2), hard.attributes.get_float("beta", 0.5)
            same = hard.inputs[0] is x and coefficient == 1 and _is_sixth(alpha) and close(beta, 0.5)
            return Found("HardSwish", [x]) if same else None
        shifted = clipped_to_six(formula, gate)
        if shifted is None or formula.weighted_sum(shifted) != (3.0, {x: 1.0}):
            return None
        return Found("HardSwish", [x]) if _is_sixth(coefficient) else None


@dataclass(frozen=True)
class FuseHardSigmoid(Fusion):
    """clip(x + 3, 0, 6) / 6 is HardSigmoid with slope 1/6 and offset 1/2."""

    name: ClassVar[str] = "fuse-hard-sigmoid"
    roots: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        coefficient, powers = formula.product(root.outputs[0])
        if len(powers) != 1 or set(powers.values()) != {1.0} or not _is_sixth(coefficient):
            return None
        shifted = clipped_to_six(formula, next(iter(powers)))
        if shifted is None:
            return None
        offset, weights = formula.weighted_sum(shifted)
        if offset != 3.0 or list(weights.values()) != [1.0]:
            return None
        return Found("HardSigmoid", list(weights), {"alpha": 1 / 6, "beta": 0.5})


#: Above this, softplus(x) is x in float32: log(1 + e^-x) is below half the spacing of x.
_LINEAR_FROM = 17.0


@dataclass(frozen=True)
class FuseSoftplus(Fusion):
    """log(1 + exp(x)) is Softplus; the named operator does not overflow.

    So is what is written against the overflow: x itself above a threshold (torch),
    max(x, 0) + log(1 + exp(-|x|)) (jax), and a guard that passes NaN through.
    """

    name: ClassVar[str] = "fuse-softplus"
    roots: ClassVar[frozenset[str]] = frozenset({"Add", "Log", "Where"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        x = {"Add": _stable_softplus, "Log": _plain_softplus, "Where": _guarded_softplus}[root.op_type](
            root, formula
        )
        return Found("Softplus", [x]) if x is not None else None


def _plain_softplus(log: ir.Node, formula: Formula) -> ir.Value | None:
    assert log.inputs[0] is not None
    offset, weights = formula.weighted_sum(log.inputs[0])
    if offset != 1 or list(weights.values()) != [1.0]:
        return None
    return formula.argument(next(iter(weights)), "Exp")


def _stable_softplus(add: ir.Node, formula: Formula) -> ir.Value | None:
    for first, second in (add.inputs, reversed(add.inputs)):
        x = _bounded(formula, first, "Max", 0)
        negative = formula.argument(formula.argument(second, "Softplus"), "Neg")
        if x is not None and formula.argument(negative, "Abs") is x:
            return x
    return None


def _guarded_softplus(where: ir.Node, formula: Formula) -> ir.Value | None:
    condition, special, usual = where.inputs
    x = formula.argument(usual, "Softplus")
    if x is None or special is not x:
        return None
    threshold = formula.node(condition, "Greater", "GreaterOrEqual")
    if threshold is not None:
        number = scalar(threshold.inputs[1])
        return x if threshold.inputs[0] is x and number is not None and number >= _LINEAR_FROM else None
    equal = formula.node(formula.argument(condition, "Not"), "Equal")
    return x if equal is not None and list(equal.inputs) == [x, x] else None


@dataclass(frozen=True)
class FuseSigmoid(Fusion):
    """1 / (1 + exp(-x)) is Sigmoid."""

    name: ClassVar[str] = "fuse-sigmoid"
    roots: ClassVar[frozenset[str]] = frozenset({"Div", "Reciprocal"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        coefficient, powers = formula.product(root.outputs[0])
        if coefficient != 1 or list(powers.values()) != [-1.0]:
            return None
        x = _logistic_argument(formula, next(iter(powers)))
        return Found("Sigmoid", [x]) if x is not None else None


@dataclass(frozen=True)
class FuseRsqrt(Fusion):
    """1 / sqrt(x), also as a power of x, is Rsqrt."""

    name: ClassVar[str] = "fuse-rsqrt"
    roots: ClassVar[frozenset[str]] = frozenset({"Div", "Reciprocal", "Pow"})

    def match(self, root: ir.Node, formula: Formula) -> Found | None:
        """See the class."""
        coefficient, powers = formula.product(root.outputs[0])
        if coefficient != 1 or list(powers.values()) != [-0.5]:
            return None
        return Found("Rsqrt", list(powers), function=Rsqrt)


def _logistic_argument(formula: Formula, value: ir.Value) -> ir.Value | None:
    """x when `value` is 1 + exp(-x), else None."""
    offset, weights = formula.weighted_sum(value)
    if offset != 1 or list(weights.values()) != [1.0]:
        return None
    exponent = formula.argument(next(iter(weights)), "Exp")
    if exponent is None:
        return None
    factor, inner = formula.product(exponent)
    return next(iter(inner)) if factor == -1 and list(inner.values()) == [1.0] else None


def clipped_to_six(formula: Formula, value: ir.Value) -> ir.Value | None:
    """y when `value` is Clip(y, 0, 6), also as Min(Max(y, 0), 6) or Max(Min(y, 6), 0), else None."""
    for outer, inner, ends in (("Min", "Max", (6, 0)), ("Max", "Min", (0, 6))):
        middle = _bounded(formula, value, outer, ends[0])
        if middle is not None:
            return _bounded(formula, middle, inner, ends[1])
    clip = formula.node(value, "Clip")
    if clip is None or len(clip.inputs) != 3 or scalar(clip.inputs[1]) != 0 or scalar(clip.inputs[2]) != 6:
        return None
    return clip.inputs[0]


def _bounded(formula: Formula, value: ir.Value | None, op_type: str, bound: float) -> ir.Value | None:
    """y when `value` is `op_type` (Max or Min) of y and the number `bound`, else None."""
    node = formula.node(value, op_type)
    if node is None or len(node.inputs) != 2:
        return None
    for y, other in (node.inputs, reversed(node.inputs)):
        if scalar(other) == bound:
            return y
    return None


def _is_sixth(number: float) -> bool:
    return close(number, 1 / 6)
