"""plan -> rewrite: choose a method for every plannable node, then put the methods in place."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lowerkit.calibrate import Calibration
from lowerkit.errors import PlanError
from lowerkit.graph.domain import describe_node
from lowerkit.graph.edit import uses_further_outputs
from lowerkit.passes import registry
from lowerkit.passes.base import Contract, Method
from lowerkit.passes.registry import KEEP
from lowerkit.plan import Choice, Plan, options_of
from lowerkit.targets.base import Target


def default_plan(
    model: ir.Model,
    target: Target,
    calibration: Calibration,
    families: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
    taken: frozenset[str] = frozenset(),
) -> Plan:
    """The target's choice for every plannable node; `families` (family -> method, with options) overrides it.

    Nodes named in `taken` are left out: they have been planned.

    A default method that refuses a node gives way to `keep`; one the user asked for raises PlanError.
    """
    asked = dict(families or {})
    if unknown := sorted(set(asked) - set(registry.families())):
        hint = f"known: {', '.join(registry.families())}"
        raise PlanError(f"no family of methods is called '{unknown[0]}'", hint=hint)
    choices = []
    for node in model.graph.all_nodes():
        family = planned_family(node, target, asked)
        if family is None or _name(node) in taken:
            continue
        name, given = registry.parse_choice(asked.get(family, target.defaults.get(family, KEEP)))
        if name == KEEP:
            choices.append(Choice(_name(node), node.op_type, KEEP))
            continue
        cls = registry.method_class(family, name)
        spared = registry.make(family, name, given).spares(node) if cls.on_request else None
        if spared is not None:
            choices.append(Choice(_name(node), node.op_type, KEEP, reason=f"{name} {spared}"))
            continue
        reason = _refusal(cls, node)
        if reason is None:
            method = registry.fit(family, name, node, calibration.get(node.inputs[0]), given)
            reason = method.refuses(node)
        if reason is None:
            choices.append(Choice(_name(node), node.op_type, name, options_of(method)))
        elif family in asked:
            raise PlanError(
                f"{family} method '{name}' {reason}",
                node=describe_node(node),
                hint=f"choose '{KEEP}' for this node in a plan file",
            )
        else:
            choices.append(Choice(_name(node), node.op_type, KEEP))
    return Plan(target.name, tuple(choices), {**target.options, **(options or {})})


def planned_family(node: ir.Node, target: Target, asked: Mapping[str, str]) -> str | None:
    """The family that a plan by `asked` and the target's defaults speaks of `node` for, or None."""
    family = registry.family_of_node(node)
    if family is None or family in asked or not registry.on_request(family):
        return family
    return family if target.defaults.get(family, KEEP) != KEEP else None


def check_domains(model: ir.Model, plan: Plan, calibration: Calibration) -> None:
    """Refuse an approximation whose bound does not hold for the calibrated values. Raises PlanError.

    Values made up for want of calibration data prove nothing, and are left to the report.
    """
    if calibration.synthetic:
        return
    nodes = {_name(node): node for node in model.graph.all_nodes()}
    for choice in plan.choices:
        node = nodes.get(choice.node)
        family = registry.family_of(choice.op)
        stats = calibration.get(node.inputs[0]) if node is not None else None
        if choice.method == KEEP or node is None or family is None or stats is None:
            continue
        method = registry.make(family, choice.method, choice.options)
        reason = method.outside_node(node, stats)
        if reason is not None and method.contract is Contract.APPROXIMATE:
            raise PlanError(
                f"the calibration data leaves the domain of {family} method '{choice.method}': {reason}",
                node=describe_node(node),
                hint="choose options that cover it, or another method",
            )


def apply_plan(model: ir.Model, plan: Plan) -> None:
    """Rewrite `model` in place as `plan` says. Raises PlanError when the two do not fit."""
    nodes = {_name(node): node for node in model.graph.all_nodes()}
    for choice in plan.choices:
        node = nodes.get(choice.node)
        if node is not None and node.graph is None:  # an earlier method has written it anew, under its name
            nodes = {_name(each): each for each in model.graph.all_nodes()}
            node = nodes.get(choice.node)
        if node is None or node.op_type != choice.op or registry.family_of_node(node) is None:
            found = "it is not there" if node is None else f"it is a {node.op_type}"
            raise PlanError(
                f"the plan speaks of node '{choice.node}' ({choice.op}), but {found}",
                hint="write a plan for this model with `lowerkit plan`",
            )
        if choice.method == KEEP:
            continue
        family = registry.family_of(choice.op)
        if family is None:
            raise PlanError(f"no method replaces {choice.op}", node=describe_node(node))
        method = registry.make(family, choice.method, choice.options)
        reason = _refusal(type(method), node) or method.refuses(node)
        if reason is not None:
            raise PlanError(f"{family} method '{choice.method}' {reason}", node=describe_node(node))
        method.rewrite(model, node)


def _refusal(cls: type[Method], node: ir.Node) -> str | None:
    if node.op_type not in cls.functions:
        return f"replaces {', '.join(sorted(cls.functions))}, not {node.op_type}"
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    if dtype != ir.DataType.FLOAT:
        return f"works in float32, not {dtype.name.lower() if dtype is not None else 'an unknown type'}"
    if uses_further_outputs(node):
        return "computes the first output alone, and the graph uses another"
    return None


def _name(node: ir.Node) -> str:
    return node.name or ""
