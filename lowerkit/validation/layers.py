"""Layer by layer: values that the original and the lowered graph share by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lowerkit.graph.domain import DOMAIN
from lowerkit.numerics.metrics import ErrorStats
from lowerkit.plan import Plan
from lowerkit.targets.base import Runner
from lowerkit.validation.measure import LOWERED, ORIGINAL, PROBE, Values, graph_source
from lowerkit.validation.results import Arrows, LayerResult

#: Layers measured at most. Planned nodes come first; what room they leave goes to the others.
MAX_LAYERS = 64

#: Operators whose outputs are worth a line: they do the arithmetic, or choose between methods.
LAYER_OPS = frozenset(
    {
        "Attention",
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Gelu",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LogSoftmax",
        "LSTM",
        "GRU",
        "MatMul",
        "RMSNormalization",
        "Softmax",
    }
)

#: Makes a runner of the artifact's code that also returns the values named.
Probe = Callable[[Sequence[str]], Runner]


@dataclass
class LayerMeter:
    """Compares a value that graphs have by the same name.

    Attributes:
        reference: the source that has it before the plan.
        probe: whether to ask the artifact's code for it.
        probed: whether that has it; targets may compute it within another.
    """

    value: str
    size: int  # bytes
    node: ir.Node
    planned: bool
    reference: str
    probe: bool
    method: ErrorStats = field(default_factory=ErrorStats)
    arithmetic: ErrorStats = field(default_factory=ErrorStats)
    total: ErrorStats = field(default_factory=ErrorStats)
    probed: bool = False

    @property
    def reads(self) -> Mapping[str, Sequence[str]]:
        """The value, of each source."""
        sources = [self.reference, LOWERED, *([PROBE] if self.probe else [])]
        return {source: [self.value] for source in sources}

    def update(self, values: Mapping[str, Values]) -> None:
        """Add one sample."""
        original, lowered = values[self.reference][self.value], values[LOWERED][self.value]
        self.method.update(original, lowered)
        artifact = values[PROBE].get(self.value) if self.probe else None
        if artifact is not None:
            self.probed = True
            self.arithmetic.update(lowered, artifact)
            self.total.update(original, artifact)

    def result(self) -> LayerResult:
        """What has been measured so far."""
        operator = f"{DOMAIN}::{self.node.op_type}" if self.node.domain == DOMAIN else self.node.op_type
        arrows = Arrows(
            self.method.result(),
            self.arithmetic.result() if self.probed else None,
            self.total.result() if self.probed else None,
        )
        method = self.node.metadata_props.get("lowerkit.method")
        return LayerResult(self.value, self.node.name or "", operator, method, arrows)


def layer_meters(
    original: ir.Model, canonical: ir.Model, lowered: ir.Model, plan: Plan, *, probe: bool
) -> tuple[list[LayerMeter], int]:
    """Meters for up to MAX_LAYERS layers, in graph order, and how many more there are.

    A layer is a float value of the lowered graph, computed by a planned node or one of LAYER_OPS, that
    the original has by the same name and shape; where canonicalisation introduced the value, the
    canonical graph stands in for the original.

    Args:
        probe: measure the artifact's value too.
    """
    planned = {choice.node for choice in plan.choices}
    in_original, in_canonical = _float_values(original), _float_values(canonical)
    before = {**in_canonical, **in_original}
    candidates = []
    for value in _float_values(lowered).values():
        node = value.producer()
        if node is None or not ((node.name or "") in planned or node.op_type in LAYER_OPS):
            continue
        value = _whole(value)
        name = value.name or ""
        if name in before and _dims(before[name]) == _dims(value):
            reference = ORIGINAL if name in in_original else graph_source(0)
            is_planned = (node.name or "") in planned
            candidates.append(LayerMeter(name, value_bytes(value), node, is_planned, reference, probe))
    first = [i for i, layer in enumerate(candidates) if layer.planned]
    rest = [i for i, layer in enumerate(candidates) if not layer.planned]
    chosen = spread(first, MAX_LAYERS)
    chosen += spread(rest, MAX_LAYERS - len(chosen))
    return [candidates[i] for i in sorted(chosen)], len(candidates) - len(chosen)


def _whole(value: ir.Value) -> ir.Value:
    """A layer's value with its bias and its Relu, which targets compute as one, where nothing else reads it."""
    value = _biased(value)
    uses = list(value.uses())
    alone = len(uses) == 1 and not value.is_graph_output()
    return uses[0].node.outputs[0] if alone and uses[0].node.op_type == "Relu" else value


def _biased(value: ir.Value) -> ir.Value:
    """The sum with a constant that alone reads a value."""
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or uses[0].node.op_type != "Add":
        return value
    other = uses[0].node.inputs[1 - uses[0].idx]
    is_constant = other is not None and ir.convenience.get_const_tensor(other) is not None
    return uses[0].node.outputs[0] if is_constant else value


def _float_values(model: ir.Model) -> dict[str, ir.Value]:
    """Float values computed by the nodes of the main graph, by name, in graph order."""
    return {
        value.name: value
        for node in model.graph
        for value in node.outputs
        if value.name and value.dtype is not None and value.dtype.is_floating_point()
    }


def _dims(value: ir.Value) -> tuple[int | str | None, ...] | None:
    return (
        tuple(d if isinstance(d, int) else d.value for d in value.shape) if value.shape is not None else None
    )


def value_bytes(value: ir.Value) -> int:
    """Size in memory of a static value at four bytes an element."""
    dims = _dims(value) or ()
    return 4 * math.prod(dim if isinstance(dim, int) else 1 for dim in dims)


def spread(items: Sequence[int], count: int) -> list[int]:
    """`count` of `items`, evenly spaced, the first and last among them; all when there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]
