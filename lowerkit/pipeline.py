"""The way of the data, stage by stage; each stage takes a graph and returns a graph that onnxruntime runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lowerkit.artifact import save_model, specs
from lowerkit.calibrate import Calibration, calibrate
from lowerkit.errors import LowerkitWarning, UnsupportedError
from lowerkit.graph.canonicalise import canonicalise
from lowerkit.graph.domain import DOMAIN, describe_node
from lowerkit.graph.expand import expand
from lowerkit.graph.inline import inline, settle
from lowerkit.graph.linear import separate_biases
from lowerkit.graph.load import upgrade
from lowerkit.passes import registry
from lowerkit.passes.lower import apply_plan, check_domains, default_plan, planned_family
from lowerkit.passes.quantize.base import FAMILY as LINEAR
from lowerkit.passes.quantize.mixed import Mixed, resolved
from lowerkit.passes.quantize.qdq import use_integers
from lowerkit.passes.registry import KEEP
from lowerkit.plan import Choice, Plan
from lowerkit.targets.base import Progress, Target
from lowerkit.validation.distil import distilled_samples
from lowerkit.validation.samples import read_samples, synthetic_samples

#: Samples drawn when the user gives none.
SYNTHETIC_SAMPLES = 8


@dataclass
class Stages:
    """Announces stages, and writes each stage's graph to `directory` when there is one."""

    progress: Progress | None = None
    directory: Path | None = None
    names: Sequence[str] = ("load", "canonicalise", "calibrate", "plan", "rewrite", "emit", "validate")
    _dumped: int = field(default=0, init=False)

    def start(self, name: str) -> None:
        """Announce that stage `name` begins."""
        if self.progress is not None:
            self.progress(name, self.names.index(name), len(self.names))

    def dump(self, name: str, model: ir.Model) -> None:
        """Write `model` as `NN-name.onnx`, numbered in the order of the stages."""
        if self.directory is None:
            return
        self.directory.mkdir(exist_ok=True)
        save_model(model, self.directory / f"{self._dumped:02d}-{name}.onnx")
        self._dumped += 1


def canonical_graph(
    original: ir.Model,
    target: Target | None,
    stages: Stages,
    plan: Plan | None = None,
    methods: Mapping[str, str] | None = None,
) -> ir.Model:
    """The graph that plans speak of: opset upgraded, canonical, and expanded as `target` wants it.

    A node that `plan` names, or for whose family `methods` has a method, stays whole for that method. Linear layers
    that either speaks of have their biases apart.
    """
    stages.start("canonicalise")
    stages.dump("original", original)
    model = original.clone()
    upgrade(model)
    model = canonicalise(model, dump=stages.dump)
    named = {choice.node for choice in plan.choices} if plan is not None else set()
    separate_biases(model, lambda node: LINEAR in (methods or {}) or node.name in named)
    if target is not None and target.expands:
        asked = {family for family, name in (methods or {}).items() if name != KEEP}
        expand(model, target.expands, lambda n: n.name in named or registry.family_of_node(n) in asked)
        stages.dump("expanded", model)
    return model


def check_target(model: ir.Model, target: Target, *, lowered: bool) -> None:
    """Refuse the first node that `target` cannot run. Raises UnsupportedError."""
    for node in model.graph.all_nodes():
        if node.op_type in target.must_lower and node.domain == "":
            if not lowered:
                continue
            reason: str | None = "the target cannot compute it, and the plan keeps it"
            family = registry.family_of_node(node)
            known = ", ".join(registry.names_of(family))
            hint = f"choose a method for it, by --method {family}=NAME or in the plan: {known}"
        elif node.domain == DOMAIN or (node.op_type in target.expands and not lowered):
            continue
        else:
            reason, hint = target.blocker(node), "see `lowerkit inspect MODEL --target T`"
        if reason is not None:
            raise UnsupportedError(f"target '{target.name}': {reason}", node=describe_node(node), hint=hint)


def gather_samples(
    model: ir.Model, path: Path | None, trained: ir.Model | None = None
) -> tuple[list[Mapping[str, np.ndarray]], bool]:
    """The user's calibration samples, or synthetic ones with a warning; and whether they are synthetic.

    Synthetic ones are like the data that `trained` holds statistics of, where it is given and holds any.
    """
    if path is not None:
        return list(read_samples(path, specs(list(model.graph.inputs)))), False
    distilled = distilled_samples(trained, SYNTHETIC_SAMPLES, seed=0) if trained is not None else None
    made_up = "synthetic inputs" if distilled is None else "inputs made up to fit its BatchNormalization"
    warnings.warn(
        f"no calibration data: ranges and errors come from {made_up}; pass --calibration D.npz",
        LowerkitWarning,
        stacklevel=3,
    )
    return distilled or list(synthetic_samples(model, SYNTHETIC_SAMPLES, seed=0)), True


def calibrate_plannable(
    model: ir.Model,
    samples: Sequence[Mapping[str, np.ndarray]],
    speaks_of: Callable[[ir.Node], object] = registry.family_of_node,
    *,
    synthetic: bool,
) -> Calibration:
    """Statistics of the first input of every node that the plan `speaks_of`: by default, that some method replaces."""
    values = [
        node.inputs[0].name or "" for node in model.graph if speaks_of(node) and node.inputs[0] is not None
    ]
    calibration = calibrate(model, samples, values)
    calibration.synthetic = synthetic
    return calibration


@dataclass(frozen=True)
class Lowering:
    """What became of a canonical graph.

    Attributes:
        graphs: those that the plan speaks of, in turn: the canonical one and, where the target plans the bodies of
            methods, the graphs with bodies inlined, until nothing is left to plan.
        model: the lowered graph.
        plan: the choices for all of them.
    """

    graphs: tuple[ir.Model, ...]
    model: ir.Model
    plan: Plan


def lower(
    canonical: ir.Model,
    target: Target,
    samples: Sequence[Mapping[str, np.ndarray]],
    plan: Plan | None = None,
    *,
    synthetic: bool = False,
    methods: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    check: bool = True,
    stages: Stages | None = None,
) -> Lowering:
    """Plan and rewrite the canonical graph, which stays as it is.

    Where `target` plans bodies, methods that it has no operator for go first, and their bodies are put in their place;
    the others are then fitted to what they get in such a graph.

    Args:
        samples: calibration samples; without them a given plan is followed as it is, guards in bodies included.
        plan: the choices; where it is None the target's defaults, overridden by `methods`, with `options`.
        check: refuse approximations whose domain the samples leave.

    Raises PlanError.
    """
    stages = stages or Stages()
    graphs: list[ir.Model] = []
    choices: list[Choice] = []
    made = plan or Plan(target.name, (), options or {})
    model = canonical
    mixed = Mixed.asked(methods)
    choosing = {choice.node for choice in made.choices if choice.method != KEEP}

    def speaks_of(node: ir.Node) -> bool:
        return node.name in choosing or planned_family(node, target, methods or {}) is not None

    while True:
        taken = frozenset(choice.node for choice in choices)
        named = {node.name for node in model.graph.all_nodes()}
        stages.start("calibrate")
        observed = calibrate_plannable(model, samples, speaks_of, synthetic=synthetic)
        stages.start("plan")
        if plan is None:
            done = taken | _within_bodies(model, canonical)
            made = default_plan(model, target, observed, resolved(methods, mixed), options, done)
            made = mixed.refine(model, made, observed, samples) if mixed is not None else made
        else:
            made = replace(plan, choices=tuple(c for c in plan.choices if c.node in named - taken))
        if graphs and not made.choices:
            break
        if target.plans_bodies:
            made = _bodies_first(model, target, made)
        if check:
            check_domains(model, made, observed)
        stages.start("rewrite")
        graphs.append(model)
        choices += made.choices
        model = model.clone()
        apply_plan(model, made)
        expand(model, target.expands)
        if not target.plans_bodies:
            break
        if inline(model, target.native) and samples:
            settle(model, samples)
        expand(model, target.expands)
        stages.dump("inlined", model)
    if plan is not None:
        apply_plan(model, replace(plan, choices=tuple(c for c in plan.choices if c not in choices)))
    use_integers(model, target.native)
    return Lowering(tuple(graphs), model, replace(made, choices=tuple(choices)))


def _within_bodies(model: ir.Model, canonical: ir.Model) -> frozenset[str]:
    """Nodes of families planned on request that bodies brought in: their methods' bodies hold such nodes themselves."""
    before = {node.name for node in canonical.graph.all_nodes()}
    found = set()
    for node in model.graph.all_nodes():
        family = registry.family_of_node(node)
        if family is not None and registry.on_request(family) and node.name not in before:
            found.add(node.name or "")
    return frozenset(found)


def _bodies_first(model: ir.Model, target: Target, plan: Plan) -> Plan:
    """The choices of methods whose operators `target` has not, if there are any; all of them if there are none."""
    nodes = {node.name: node for node in model.graph.all_nodes()}

    def foreign(choice: Choice) -> bool:
        family = registry.family_of(choice.op)
        if choice.method == KEEP or family is None or nodes[choice.node].op_type != choice.op:
            return False
        method = registry.make(family, choice.method, choice.options)
        return choice.op in method.functions and method.function(nodes[choice.node]).name not in target.native

    first = tuple(choice for choice in plan.choices if foreign(choice))
    return replace(plan, choices=first) if first else plan
