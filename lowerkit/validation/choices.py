"""Choice by choice: what each method of the plan costs alone, on the float model's own values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from lowerkit.numerics.metrics import ErrorStats
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.base import Method
from lowerkit.passes.lower import apply_plan
from lowerkit.passes.registry import KEEP
from lowerkit.plan import Choice, Plan
from lowerkit.reference import Reference
from lowerkit.validation.layers import value_bytes
from lowerkit.validation.measure import SAMPLES, Values, graph_source
from lowerkit.validation.results import ChoiceResult


@dataclass
class Trial:
    """A planned node of a graph, and the operator that replaced it as a model of its own.

    The method gets the inputs that the graph before it, in float, gives the original operator, and its output
    (onnxruntime, float32) is compared with that operator's.

    Attributes:
        output: the value of the graph whose place the operator's took.
        graph: the source that is the graph.
    """

    method: Method
    before: ir.Node
    output: ir.Value
    after: Reference
    graph: str
    error: ErrorStats = field(default_factory=ErrorStats)
    stats: TensorStats = field(default_factory=TensorStats)

    @property
    def reads(self) -> Mapping[str, Sequence[str]]:
        """The inputs and the output of the node in the graph."""
        inputs = [value for value in self.before.inputs if value is not None and value.producer() is not None]
        return {self.graph: [value.name or "" for value in [*inputs, self.output]]}

    @property
    def size(self) -> int:
        """Bytes of these."""
        return sum(value_bytes(value) for value in (*self.before.inputs, self.output) if value is not None)

    def update(self, values: Mapping[str, Values]) -> None:
        """Add one sample."""
        found = {**values[SAMPLES], **values[self.graph]}
        output, source = self.output.name or "", self.before.inputs[0]
        result = self.after({value.name or "": found[value.name or ""] for value in _fed(self.before.inputs)})
        self.error.update(found[output], self.method.restored(result[output]))
        if source is not None and (name := source.name or "") in found:
            self.stats.update(found[name])


def trials(graphs: Sequence[ir.Model], plan: Plan) -> dict[str, Trial]:
    """A trial for each node that a method replaces, by its name. Nodes inside subgraphs have none.

    Args:
        graphs: those that the plan speaks of, in turn: each has the choices of the ones before behind it.
    """
    methods = {choice.node: made for choice in plan.choices if (made := _method(choice)) is not None}
    found: dict[str, Trial] = {}
    for index, graph in enumerate(graphs):
        left = {name: method for name, method in methods.items() if name not in found}
        found |= _trials(graph, graph_source(index), plan, left)
    return found


def choice_results(plan: Plan, tried: Mapping[str, Trial]) -> tuple[ChoiceResult, ...]:
    """The local error of each method in the plan, with its bound, in the plan's order."""
    return tuple(_result(choice, _method(choice), tried.get(choice.node)) for choice in plan.choices)


def _trials(graph: ir.Model, source: str, plan: Plan, methods: Mapping[str, Method]) -> dict[str, Trial]:
    """Those nodes of the graph that are planned, each with its method alone in its place."""
    nodes = {node.name or "": node for node in graph.graph if node.name in methods}
    rewritten = graph.clone()
    apply_plan(rewritten, replace(plan, choices=tuple(c for c in plan.choices if c.node in nodes)))
    after = {node.name: node for node in rewritten.graph}
    found = {}
    for name, node in nodes.items():
        if name in after:
            output = methods[name].replaced(node).outputs[0]
            alone = _alone(rewritten, after[name], output)
            found[name] = Trial(methods[name], node, output, alone, source)
    return found


def _method(choice: Choice) -> Method | None:
    family = registry.family_of(choice.op)
    if choice.method == KEEP or family is None:
        return None
    return registry.make(family, choice.method, choice.options)


def _result(choice: Choice, method: Method | None, trial: Trial | None) -> ChoiceResult:
    if method is None:
        return ChoiceResult(choice.node, choice.op, choice.method, dict(choice.options))
    bound = method.bound()
    stats = trial.stats if trial is not None and trial.stats.count else None
    return ChoiceResult(
        node=choice.node,
        op=choice.op,
        method=choice.method,
        options=dict(choice.options),
        contract=method.contract.value,
        bound=bound.value if bound else None,
        bound_kind=bound.kind if bound else None,
        bound_domain=bound.domain if bound else None,
        evidence=bound.evidence.value if bound else None,
        local=trial.error.result() if trial is not None else None,
        outside=method.outside_node(trial.before, stats) if trial is not None and stats is not None else None,
        low=stats.minimum if stats is not None else None,
        high=stats.maximum if stats is not None else None,
    )


def _fed(inputs: Sequence[ir.Value | None]) -> list[ir.Value]:
    """The inputs of a node that come from data: neither absent nor constant, each once."""
    return list(dict.fromkeys(value for value in inputs if value is not None and value.const_value is None))


def _alone(model: ir.Model, node: ir.Node, result: ir.Value) -> Reference:
    """`node` of `model` as a model that takes what it is fed there, and gives its first output as `result`."""
    copies: dict[ir.Value, ir.Value] = {}
    for value in node.inputs:
        if value is not None:
            copies[value] = ir.Value(
                name=value.name, shape=value.shape, type=value.type, const_value=value.const_value
            )
    inputs = [None if value is None else copies[value] for value in node.inputs]
    old = node.outputs[0]
    output = ir.Value(name=result.name, shape=old.shape, type=old.type)
    others = [ir.Value(name=f"{result.name}.{index}") for index in range(1, len(node.outputs))]
    copy = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        [attribute for attribute in node.attributes.values() if isinstance(attribute, ir.Attr)],
        outputs=[output, *others],
        name=node.name,
    )
    graph = ir.Graph(
        [copies[value] for value in _fed(node.inputs)],
        [output],
        nodes=[copy],
        initializers=[c for value, c in copies.items() if value.const_value is not None],
        opset_imports=dict(model.opset_imports),
        name="alone",
    )
    alone = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    RemoveUnusedFunctionsPass()(alone)  # type: ignore[no-untyped-call]
    return Reference(alone)
