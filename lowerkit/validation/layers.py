"""Layer by layer: values that the original and the lowered graph share by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.domain import DOMAIN
from lowerkit.numerics.metrics import ErrorStats
from lowerkit.plan import Plan
from lowerkit.reference import Reference
from lowerkit.targets.base import Runner
from lowerkit.validation.results import Arrows, LayerResult

#: Layers measured at most. Planned nodes come first; what room they leave goes to the others.
MAX_LAYERS = 64
#: Bytes of intermediate values of one graph held at a time; more taps are measured in several runs.
TAP_BYTES = 1 << 28

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

_Item = TypeVar("_Item")

#: Makes a runner of the artifact's code that also returns the values named.
Probe = Callable[[Sequence[str]], Runner]


@dataclass
class _Layer:
    value: str
    size: int  # bytes
    node: ir.Node
    planned: bool
    method: ErrorStats = field(default_factory=ErrorStats)
    arithmetic: ErrorStats = field(default_factory=ErrorStats)
    total: ErrorStats = field(default_factory=ErrorStats)
    #: Whether the artifact has the value; targets may compute it within another.
    probed: bool = False

    def result(self) -> LayerResult:
        operator = f"{DOMAIN}::{self.node.op_type}" if self.node.domain == DOMAIN else self.node.op_type
        arrows = Arrows(
            self.method.result(),
            self.arithmetic.result() if self.probed else None,
            self.total.result() if self.probed else None,
        )
        method = self.node.metadata_props.get("lowerkit.method")
        return LayerResult(self.value, self.node.name or "", operator, method, arrows)


def compare_layers(
    original: ir.Model,
    canonical: ir.Model,
    lowered: ir.Model,
    samples: Sequence[Mapping[str, np.ndarray]],
    probe: Probe | None,
    plan: Plan,
    advance: Callable[[], None] = lambda: None,
) -> tuple[tuple[LayerResult, ...], int]:
    """The errors of up to MAX_LAYERS layers, in graph order, and how many more there are.

    A layer is a float value of the lowered graph, computed by a planned node or one of LAYER_OPS, that
    the original has by the same name and shape; where canonicalisation introduced the value, the
    canonical graph stands in for the original.

    Args:
        advance: called after each sample, once per group of taps.
    """
    if not samples:
        return (), 0
    planned = frozenset(choice.node for choice in plan.choices)
    layers, left_out = _choose(original, canonical, lowered, planned)
    in_original = _float_values(original)
    for group in by_bytes(layers, [layer.size for layer in layers], TAP_BYTES):
        names = [layer.value for layer in group]
        from_original = [name for name in names if name in in_original]
        from_canonical = [name for name in names if name not in in_original]
        references = [Reference(original, from_original)] if from_original else []
        references += [Reference(canonical, from_canonical)] if from_canonical else []
        low, artifact = Reference(lowered, names), probe(names) if probe is not None else None
        for sample in samples:
            expected: dict[str, np.ndarray] = {}
            for reference in reversed(references):
                expected.update(reference(sample))
            after = low(sample)
            got = artifact(sample) if artifact is not None else None
            for layer in group:
                _update(layer, expected[layer.value], after[layer.value], (got or {}).get(layer.value))
            advance()
    return tuple(layer.result() for layer in layers), left_out


def _update(layer: _Layer, original: np.ndarray, lowered: np.ndarray, artifact: np.ndarray | None) -> None:
    layer.method.update(original, lowered)
    if artifact is not None:
        layer.probed = True
        layer.arithmetic.update(lowered, artifact)
        layer.total.update(original, artifact)


def _choose(
    original: ir.Model, canonical: ir.Model, lowered: ir.Model, planned: frozenset[str]
) -> tuple[list[_Layer], int]:
    before = {**_float_values(canonical), **_float_values(original)}
    candidates = []
    for value in _float_values(lowered).values():
        node = value.producer()
        if node is None or not ((node.name or "") in planned or node.op_type in LAYER_OPS):
            continue
        value = _whole(value)
        name = value.name or ""
        if name in before and _dims(before[name]) == _dims(value):
            candidates.append(_Layer(name, value_bytes(value), node, (node.name or "") in planned))
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


def by_bytes(items: Sequence[_Item], sizes: Sequence[int], limit: int) -> Iterator[list[_Item]]:
    """Consecutive groups of `items`, each of at most `limit` bytes in all, or of one item."""
    group: list[_Item] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group
