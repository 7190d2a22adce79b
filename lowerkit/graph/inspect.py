"""What is in a model: operators, sizes, multiply-accumulates, non-linearities, and what blocks a target."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lowerkit.graph.domain import CANONICAL, DOMAIN
from lowerkit.graph.shapes import static_shape
from lowerkit.passes import registry
from lowerkit.passes.registry import KEEP
from lowerkit.targets.base import Target

#: Canonical operators that are not affine in their data: each is a candidate for an approximation.
#: Left out are comparisons, logic, rounding and indexing, and Mul of two activations.
NON_LINEARITIES = frozenset(
    {
        *(
            "Softmax",
            "LogSoftmax",
            "Hardmax",
            "Attention",
            "MaxPool",
            "GlobalMaxPool",
            "ReduceMax",
            "ReduceMin",
        ),
        *("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"),
        *("LpNormalization", "LRN", "MeanVarianceNormalization"),
        *(
            "Gelu",
            "Erf",
            "Sigmoid",
            "Tanh",
            "Swish",
            "Mish",
            "HardSwish",
            "HardSigmoid",
            "Softplus",
            "Softsign",
        ),
        *(
            "Relu",
            "LeakyRelu",
            "PRelu",
            "ThresholdedRelu",
            "Elu",
            "Selu",
            "Celu",
            "Clip",
            "Abs",
            "Max",
            "Min",
        ),
        *("Exp", "Log", "Sqrt", "Reciprocal", "Div", "Pow", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan"),
        *("Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "ReduceL2", "ReduceLogSumExp", "LSTM", "GRU", "RNN"),
    }
)


@dataclass(frozen=True)
class Tensor:
    """A graph input or output; `dtype` is a numpy name."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NonLinearity:
    """One non-linear node of the canonical graph.

    `shape` is its first output's, None where it depends on the data. `spelled` is how the author wrote
    it, e.g. "Div, Erf, Add, Mul, Mul". The last three are None, False and None without a target or where
    no method replaces the operator.
    """

    node: str
    op: str
    shape: tuple[int, ...] | None
    spelled: str
    must_lower: bool
    family: str | None
    default: str | None


@dataclass(frozen=True)
class Blocker:
    """A node that the target cannot run, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """The contents of a model. Histograms map operator -> count, the most frequent first.

    `macs` maps operator -> multiply-accumulates of one run. `parameters` and `parameter_bytes` count the
    floating-point and integer weights of the original.
    """

    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: int
    parameter_bytes: int
    original_ops: Mapping[str, int]
    canonical_ops: Mapping[str, int]
    macs: Mapping[str, int]
    total_macs: int
    nonlinearities: tuple[NonLinearity, ...]
    target: str | None
    blockers: tuple[Blocker, ...]


def inspect_model(original: ir.Model, canonical: ir.Model, target: Target | None) -> Inspection:
    """Describe a model from its graph as loaded and its canonical graph, and judge it for `target`."""
    nodes = list(canonical.graph.all_nodes())
    macs: Counter[str] = Counter()
    for node in nodes:
        if count := node_macs(node):
            macs[_op(node)] += count
    weights = _weights(original)
    return Inspection(
        opset=original.opset_imports[""],
        inputs=tuple(_tensor(value) for value in original.graph.inputs),
        outputs=tuple(_tensor(value) for value in original.graph.outputs),
        parameters=sum(tensor.size for tensor in weights),
        parameter_bytes=sum(tensor.nbytes for tensor in weights),
        original_ops=_histogram(original),
        canonical_ops=_histogram(canonical),
        macs=dict(sorted(macs.items(), key=lambda item: (-item[1], item[0]))),
        total_macs=sum(macs.values()),
        nonlinearities=tuple(_nonlinearity(node, target) for node in nodes if is_nonlinear(node)),
        target=target.name if target is not None else None,
        blockers=tuple(_blockers(nodes, target)) if target is not None else (),
    )


def is_nonlinear(node: ir.Node) -> bool:
    """Whether `node` is one of `NON_LINEARITIES`, its data not constant; Div by a constant is linear."""
    if node.domain == DOMAIN and node.op_type in CANONICAL:
        return True
    if node.domain != "" or node.op_type not in NON_LINEARITIES:
        return False
    if all(x is None or ir.convenience.get_const_tensor(x) is not None for x in node.inputs):
        return False
    if node.op_type == "Div" and node.inputs[1] is not None:
        return ir.convenience.get_const_tensor(node.inputs[1]) is None
    return True


def node_macs(node: ir.Node) -> int:
    """Multiply-accumulates of one run of `node`: of matrix products and convolutions; others count 0.

    0 as well where a shape is not static. A loop's body counts once.
    """
    count = _MACS.get(node.op_type) if node.domain == "" else None
    values = [value for value in (*node.inputs, node.outputs[0]) if value is not None]
    if count is None or any(static_shape(value) is None for value in values):
        return 0
    return count(node)


def _matmul(node: ir.Node) -> int:
    return math.prod(_shape(node.outputs[0])) * _shape(node.inputs[0])[-1]


def _gemm(node: ir.Node) -> int:
    inner = _shape(node.inputs[0])[0 if node.attributes.get_int("transA", 0) else 1]
    return math.prod(_shape(node.outputs[0])) * inner


def _conv(node: ir.Node) -> int:
    # The weight is [outputs, inputs / group, *kernel]; each output element takes one filter.
    return math.prod(_shape(node.outputs[0])) * math.prod(_shape(node.inputs[1])[1:])


def _conv_transpose(node: ir.Node) -> int:
    # The weight is [inputs, outputs / group, *kernel]; each input element spreads one filter.
    return math.prod(_shape(node.inputs[0])) * math.prod(_shape(node.inputs[1])[1:])


def _einsum(node: ir.Node) -> int:
    # One product of all operands for every point of the index space.
    equation = (node.attributes.get_string("equation") or "").replace(" ", "").split("->")[0]
    if "." in equation or len(node.inputs) < 2:
        return 0
    sizes: dict[str, int] = {}
    for letters, value in zip(equation.split(","), node.inputs, strict=True):
        for letter, size in zip(letters, _shape(value), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values()) * (len(node.inputs) - 1)


def _attention(node: ir.Node) -> int:
    """Q K^T and its product with V. Inputs are [batch, heads, length, size] or [batch, length, hidden]."""
    query, key, value = (_shape(x) for x in node.inputs[:3])
    keys = key[-2]
    past = static_shape(node.inputs[4]) if len(node.inputs) > 4 else None
    if past is not None:
        keys += past[-2]
    if len(query) == 4:
        return math.prod(query[:3]) * keys * (query[3] + value[3])
    q_heads, kv_heads = node.attributes.get_int("q_num_heads", 1), node.attributes.get_int("kv_num_heads", 1)
    return query[0] * query[1] * keys * (query[2] + value[2] // kv_heads * q_heads)


_MACS: Mapping[str, Callable[[ir.Node], int]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Attention": _attention,
}


def _nonlinearity(node: ir.Node, target: Target | None) -> NonLinearity:
    family = registry.family_of_node(node)
    return NonLinearity(
        node=node.name or "",
        op=node.op_type,
        shape=static_shape(node.outputs[0]),
        spelled=node.metadata_props.get("lowerkit.spelled", node.op_type),
        must_lower=target is not None and node.op_type in target.must_lower,
        family=family,
        default=target.defaults.get(family, KEEP) if target is not None and family is not None else None,
    )


def _blockers(nodes: list[ir.Node], target: Target) -> list[Blocker]:
    """What `target` cannot run and no method stands in for."""
    found = []
    for node in nodes:
        if node.domain == DOMAIN or (node.domain == "" and node.op_type in target.must_lower):
            if node.domain == "" and registry.family_of_node(node) is None:
                reason = "the target cannot compute it, and no method replaces it"
                found.append(Blocker(node.name or "", node.op_type, reason))
            continue
        reason_given = target.blocker(node)
        if reason_given is not None:
            found.append(Blocker(node.name or "", _op(node), reason_given))
    return found


def _weights(model: ir.Model) -> list[ir.TensorProtocol]:
    """The numbers stored in a model, as initializers or Constant nodes; a scalar or a shape counts too."""
    tensors: list[ir.TensorProtocol] = []
    for graph in model.graphs():
        tensors += [v.const_value for v in graph.initializers.values() if v.const_value is not None]
        for node in graph:
            tensor = ir.convenience.get_const_tensor(node.outputs[0]) if node.op_type == "Constant" else None
            if tensor is not None:
                tensors.append(tensor)
    return tensors


def _histogram(model: ir.Model) -> dict[str, int]:
    counts = Counter(_op(node) for node in model.graph.all_nodes())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _op(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _tensor(value: ir.Value) -> Tensor:
    assert value.dtype is not None
    return Tensor(value.name or "", str(value.dtype.numpy()), _shape(value))


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    shape = static_shape(value)
    assert shape is not None
    return shape
