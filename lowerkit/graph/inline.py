"""Bodies of method operators in their place, for targets that replace what is in them by further methods."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from lowerkit.calibrate import calibrate
from lowerkit.graph.canonicalise import Clean, FoldConstants, FoldShapeArithmetic
from lowerkit.graph.domain import CANONICAL, DOMAIN
from lowerkit.graph.no_ops import RemoveNoOps
from lowerkit.graph.weights import initializer

#: What inlined nodes are told by, until they are named after the node that they come from.
_WITHIN = "lowerkit.within"
#: A comparison is decided where even numbers so many times as large, or as small, as calibrated ones decide it.
FAR = 10.0
_COMPARISONS = {
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Equal": np.equal,
}


def inline(model: ir.Model, native: frozenset[str]) -> bool:
    """Put the bodies of the domain's operators in their place, in `model` itself, but for `native` and canonical ones.

    Nodes of a body are named `node/operator`, or `node/operator.1`, ... where a body has several; what a body computes
    of constants alone is folded. Returns whether there was anything to inline.
    """

    def foreign(function: ir.Function) -> bool:
        return function.domain == DOMAIN and function.name not in native | CANONICAL

    for node in model.graph:
        function = model.functions.get(node.op_identifier())
        if function is not None and foreign(function):
            node.metadata_props[_WITHIN] = node.name or ""
    outputs = {value.name for node in model.graph for value in node.outputs}
    if not common.InlinePass(foreign)(model).modified:
        return False
    _name(model, outputs)
    Clean()(model)
    FoldShapeArithmetic()(model)
    FoldConstants()(model)
    Clean()(model)
    return True


def _name(model: ir.Model, kept: set[str | None]) -> None:
    """Name inlined nodes, and their values but for `kept`, after the node that they come from."""
    taken = {node.name for node in model.graph if _WITHIN not in node.metadata_props}
    for node in model.graph:
        within = node.metadata_props.pop(_WITHIN, None)
        if within is None:
            continue
        stem = f"{within}/{node.op_type.lower()}"
        names = itertools.chain([stem], (f"{stem}.{count}" for count in itertools.count(1)))
        node.name = next(name for name in names if name not in taken)
        taken.add(node.name)
        for index, value in enumerate(node.outputs):
            if value.name not in kept:
                value.name = f"{node.name}:{index}"


def settle(model: ir.Model, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Drop guards that never act, in `model` itself: methods' masks of -inf, of overflow and of empty rows.

    A comparison with a constant is decided where calibrated values are so far on one side of it that numbers `FAR`
    times as large in magnitude, or as small, are there too; IsInf and IsNaN are false where all values are finite.
    |x|^n becomes x^n for even n.
    """
    compared = {node: value for node in model.graph if (value := _compared(node)) is not None}
    seen = calibrate(model, samples, [value.name or "" for value in compared.values()]) if compared else None
    for node, value in compared.items():
        stats = seen.get(value) if seen is not None else None
        if stats is None or stats.nonfinite or not stats.count:
            continue
        low = stats.minimum * FAR if stats.minimum < 0 else stats.minimum / FAR
        high = stats.maximum / FAR if stats.maximum < 0 else stats.maximum * FAR
        if (verdict := _verdict(node, value, low, high)) is not None:
            _become(model, node.outputs[0], np.array(verdict))
    FoldConstants()(model)
    for node in list(model.graph):
        if node.op_type == "Where":
            _choose_constant(model, node)
        elif node.op_type == "Pow":
            _drop_sign(node)
    FoldConstants()(model)
    RemoveNoOps()(model)
    Clean()(model)


def _compared(node: ir.Node) -> ir.Value | None:
    """The value that a node compares with a constant, or with infinity; None for other nodes."""
    if node.op_type not in {*_COMPARISONS, "IsInf", "IsNaN"}:
        return None
    variable = [value for value in node.inputs if value is not None and value.const_value is None]
    return variable[0] if len(variable) == 1 else None


def _verdict(node: ir.Node, value: ir.Value, low: float, high: float) -> bool | None:
    """What the comparison is for all numbers from `low` to `high`; None where it differs."""
    if node.op_type not in _COMPARISONS:
        return False
    constant = next(v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None)
    if node.op_type == "Equal":
        return None if bool(((low <= constant) & (constant <= high)).any()) else False
    compare = _COMPARISONS[node.op_type]
    found = [
        compare(end, constant) if node.inputs[0] is value else compare(constant, end) for end in (low, high)
    ]
    if all(np.all(each) for each in found):
        return True
    return None if any(np.any(each) for each in found) else False


def _choose_constant(model: ir.Model, node: ir.Node) -> None:
    """The constant that a Where takes everywhere, if it does, in its place. What is not constant is a no-op then."""
    condition = node.inputs[0]
    if condition is None or condition.const_value is None:
        return
    chosen = np.unique(condition.const_value.numpy())
    taken = node.inputs[1 if chosen[0] else 2]
    if len(chosen) == 1 and taken is not None and taken.const_value is not None:
        _become(model, node.outputs[0], taken.const_value.numpy())


def _drop_sign(node: ir.Node) -> None:
    base, exponent = node.inputs
    producer = base.producer() if base is not None else None
    if producer is None or producer.op_type != "Abs" or exponent is None or exponent.const_value is None:
        return
    if np.all(exponent.const_value.numpy() % 2 == 0):
        node.replace_input_with(0, producer.inputs[0])


def _become(model: ir.Model, value: ir.Value, array: np.ndarray) -> None:
    assert value.shape is not None
    whole = np.ascontiguousarray(np.broadcast_to(array, value.shape.numpy()))
    constant = initializer(model.graph, f"{value.name}.value", whole)
    ir.convenience.replace_all_uses_with(value, constant)
