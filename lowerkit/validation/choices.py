"""Choice by choice: what each method of the plan costs alone, on the float model's own values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from lowerkit.numerics.metrics import ErrorStats
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.base import Method
from lowerkit.passes.lower import apply_plan
from lowerkit.passes.registry import KEEP
from lowerkit.plan import Choice, Plan
from lowerkit.reference import Reference
from lowerkit.validation.layers import TAP_BYTES, by_bytes, value_bytes
from lowerkit.validation.results import ChoiceResult


@dataclass
class _Trial:
    """A planned node of a graph, and the operator that replaced it as a model of its own.

    `output` is the value of the graph whose place the operator's took.
    """

    method: Method
    before: ir.Node
    output: ir.Value
    after: Reference
    error: ErrorStats = field(default_factory=ErrorStats)
    stats: TensorStats = field(default_factory=TensorStats)

    @property
    def taps(self) -> list[str]:
        """Values to take from a run of the graph."""
        inputs = [value for value in self.before.inputs if value is not None and value.producer() is not None]
        return [value.name or "" for value in [*inputs, self.output]]

    def update(self, values: Mapping[str, np.ndarray]) -> None:
        """Add one sample, given the values of a run of the graph, inputs among them."""
        output, source = self.output.name or "", self.before.inputs[0]
        inputs = [value.name or "" for value in _fed(self.before.inputs)]
        result = self.after({name: values[name] for name in inputs})[output]
        self.error.update(values[output], self.method.restored(result))
        if source is not None and (name := source.name or "") in values:
            self.stats.update(values[name])


def compare_choices(
    graphs: Sequence[ir.Model],
    samples: Sequence[Mapping[str, np.ndarray]],
    plan: Plan,
    advance: Callable[[], None] = lambda: None,
) -> tuple[ChoiceResult, ...]:
    """The local error of each method in the plan, with its bound, in the plan's order.

    The method gets the inputs that the graph before it, in float, gives the original operator, and its output
    (onnxruntime, float32) is compared with that operator's. Nodes inside subgraphs are not measured.

    Args:
        graphs: those that the plan speaks of, in turn: each has the choices of the ones before behind it.
    """
    methods = {choice.node: _method(choice) for choice in plan.choices}
    trials: dict[str, _Trial] = {}
    for graph in graphs if samples else ():
        found = _trials(graph, plan, {name: m for name, m in methods.items() if m and name not in trials})
        trials |= found
        sizes = [sum(value_bytes(v) for v in (*t.before.inputs, t.output) if v) for t in found.values()]
        for group in by_bytes(list(found.values()), sizes, TAP_BYTES):
            reference = Reference(graph, list(dict.fromkeys(tap for trial in group for tap in trial.taps)))
            for sample in samples:
                values = {**sample, **reference(sample)}
                for trial in group:
                    trial.update(values)
                advance()
    return tuple(_result(choice, methods[choice.node], trials.get(choice.node)) for choice in plan.choices)


def _trials(graph: ir.Model, plan: Plan, methods: Mapping[str, Method]) -> dict[str, _Trial]:
    """Those nodes of the graph that are planned, each with its method alone in its place."""
    nodes = {node.name or "": node for node in graph.graph if node.name in methods}
    rewritten = graph.clone()
    apply_plan(rewritten, replace(plan, choices=tuple(c for c in plan.choices if c.node in nodes)))
    after = {node.name: node for node in rewritten.graph}
    found = {}
    for name, node in nodes.items():
        if name in after:
            output = methods[name].replaced(node).outputs[0]
            found[name] = _Trial(methods[name], node, output, _alone(rewritten, after[name], output))
    return found


def _method(choice: Choice) -> Method | None:
    family = registry.family_of(choice.op)
    if choice.method == KEEP or family is None:
        return None
    return registry.make(family, choice.method, choice.options)


def _result(choice: Choice, method: Method | None, trial: _Trial | None) -> ChoiceResult:
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
    functions = [function.clone() for function in model.functions.values()]
    return Reference(ir.Model(graph, ir_version=model.ir_version, functions=functions))
