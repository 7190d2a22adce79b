"""Operators that TVM's front end lacks, or computes less well, in terms of others.

Two sources: ONNX's own function bodies, for operators that it defines in terms of others, and the formulas
below. What neither covers is for `support.py` to refuse.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass
from onnx_ir.tape import Tape

from lowerkit.graph.edit import take_place
from lowerkit.graph.shapes import infer_shapes
from lowerkit.targets.cpu import resize

_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})
#: Bodies contain operators that have bodies; no chain of them is this long.
_ROUNDS = 8

#: Writes the nodes that compute a node's first output on a tape, and returns that output.
Formula = Callable[[Tape, ir.Node], ir.Value]


def decompose(model: ir.Model) -> None:
    """Replace, in place, what `is_decomposed` says. Valid before: a graph with static shapes; after: too."""
    for _ in range(_ROUNDS):
        nodes = [node for node in model.graph.all_nodes() if is_decomposed(node)]
        if not nodes:
            return
        for node in nodes:
            formula = _formula(node)
            if formula is not None:
                _replace(node, formula)
            else:
                _call_body(model, node)
        InlinePass(lambda function: function.domain == _CALLS)(model)
        model.opset_imports.pop(_CALLS, None)
        infer_shapes(model)


def is_decomposed(node: ir.Node) -> bool:
    """Whether `decompose` replaces `node`."""
    return node.domain == "" and (_formula(node) is not None or _wants_body(node))


# ONNX's function bodies.

_CALLS = "lowerkit.bodies"
_BODIES = frozenset(
    {
        "BlackmanWindow",
        "Celu",
        "CenterCropPad",
        "HammingWindow",
        "HannWindow",
        "NegativeLogLikelihoodLoss",
        "RotaryEmbedding",
        "SoftmaxCrossEntropyLoss",
        "Swish",
    }
)


def _wants_body(node: ir.Node) -> bool:
    if node.op_type == "LayerNormalization":
        return any(output.name and (output.uses() or output.is_graph_output()) for output in node.outputs[1:])
    if node.op_type == "RMSNormalization":
        # TVM takes the scale for one axis alone.
        x = node.inputs[0]
        rank = len(x.shape) if x is not None and x.shape is not None else 0
        return node.attributes.get_int("axis", -1) not in (-1, rank - 1)
    return node.op_type in _BODIES


def _call_body(model: ir.Model, node: ir.Node) -> None:
    """Make `node` a call of ONNX's definition of it, as a function of its own in `model`."""
    opset = model.opset_imports[""]
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        if name not in node.attributes and default.type != onnx.AttributeProto.UNDEFINED:
            node.attributes[name] = ir.serde.deserialize_attribute(default)
    if schema.has_function:
        version = max(v for v in schema.function_opset_versions if v <= opset)
        body = schema.get_function_with_opset_version(version)
    else:
        version = max(v for v in schema.context_dependent_function_opset_versions if v <= opset)
        types = [_type(x).SerializeToString() for x in node.inputs]
        proto = ir.serde.serialize_node(node).SerializeToString()
        body = schema.get_context_dependent_function_with_opset_version(version, proto, types)
    proto = onnx.FunctionProto.FromString(body) if isinstance(body, bytes) else body
    made = {name for inner in proto.node for name in inner.output}
    while proto.output[-1] not in made:  # an optional output that the node does not ask for
        proto.output.pop()
    proto.domain, proto.name = _CALLS, f"{node.op_type}_{len(model.functions)}"
    function = ir.serde.deserialize_function(proto)
    function.opset_imports[""] = opset
    model.functions[function.identifier()] = function
    model.opset_imports[_CALLS] = 1
    node.domain, node.op_type = _CALLS, proto.name
    for inner in function:
        inner.name = f"{node.name}/{inner.name or inner.op_type}"


def _type(value: ir.Value | None) -> onnx.TypeProto:
    if value is None or value.dtype is None or value.shape is None:
        return onnx.TypeProto()
    return onnx.helper.make_tensor_type_proto(value.dtype.value, value.shape.numpy())


# Formulas.


def _mish(op: Tape, node: ir.Node) -> ir.Value:
    """x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2), without cancellation for x << 0."""
    x = _input(node, 0)
    e = op.op("Exp", [op.op("Min", [x, _like(op, x, 20)])])  # tanh is 1 from here on
    n = op.op("Mul", [e, op.op("Add", [e, _like(op, x, 2)])])
    return op.op("Mul", [x, op.op("Div", [n, op.op("Add", [n, _like(op, x, 2)])])])


def _cosh(op: Tape, node: ir.Node) -> ir.Value:
    """(e^x + e^-x) / 2."""
    x = _input(node, 0)
    both = op.op("Add", [op.op("Exp", [x]), op.op("Exp", [op.op("Neg", [x])])])
    return op.op("Mul", [both, _like(op, x, 0.5)])


def _sinh(op: Tape, node: ir.Node) -> ir.Value:
    """tanh(x) cosh(x), which loses nothing near 0."""
    return op.op("Mul", [op.op("Tanh", [_input(node, 0)]), _cosh(op, node)])


def _infinite(op: Tape, node: ir.Node) -> ir.Value:
    """IsInf of one sign: equality with that infinity."""
    x = _input(node, 0)
    negative, positive = (node.attributes.get_int(f"detect_{sign}", 1) for sign in ("negative", "positive"))
    if not (negative or positive):
        return op.op("Less", [x, x])
    return op.op("Equal", [x, _like(op, x, np.inf if positive else -np.inf)])


def _power(op: Tape, node: ir.Node) -> ir.Value:
    """A power of mixed types in the first's, one of integers in float64 (exact up to 2^53)."""
    x, y = _input(node, 0), _input(node, 1)
    dtype = x.dtype
    assert dtype is not None
    inner = dtype if dtype in _FLOATS else ir.DataType.DOUBLE
    power = op.op("Pow", [_cast(op, x, inner), _cast(op, y, inner)])
    return power if inner == dtype else _cast(op, power, dtype)


def _lp_normalization(op: Tape, node: ir.Node) -> ir.Value:
    """x over its 1- or 2-norm along an axis; 0 where that is 0."""
    x = _input(node, 0)
    axes = _constant(op, np.array([node.attributes.get_int("axis", -1)], np.int64))
    norm = op.op(f"ReduceL{node.attributes.get_int('p', 2)}", [x, axes], {"keepdims": 1})
    zero = _like(op, x, 0)
    return op.op("Where", [op.op("Equal", [norm, zero]), zero, op.op("Div", [x, norm])])


def _q_linear_matmul(op: Tape, node: ir.Node) -> ir.Value:
    """The product of the numbers that the integers stand for, quantised."""
    a = op.op("DequantizeLinear", [_input(node, 0), _input(node, 1), _input(node, 2)])
    b = op.op("DequantizeLinear", [_input(node, 3), _input(node, 4), _input(node, 5)])
    return op.op("QuantizeLinear", [op.op("MatMul", [a, b]), _input(node, 6), _input(node, 7)])


def _in_float32(op: Tape, node: ir.Node) -> ir.Value:
    """Sums of float16 in float32: TVM would round every partial sum."""
    inputs = [
        _cast(op, x, ir.DataType.FLOAT) if x is not None and x.dtype == ir.DataType.FLOAT16 else x
        for x in node.inputs
    ]
    return _cast(op, op.op(node.op_type, inputs, dict(node.attributes)), ir.DataType.FLOAT16)


def _in_int32(op: Tape, node: ir.Node) -> ir.Value:
    """The largest or smallest of booleans, which TVM knows for numbers."""
    inputs = [_cast(op, _input(node, 0), ir.DataType.INT32), *node.inputs[1:]]
    return _cast(op, op.op(node.op_type, inputs, dict(node.attributes)), ir.DataType.BOOL)


def _eye(op: Tape, node: ir.Node) -> ir.Value:
    """A constant, for the shape is static."""
    x = _input(node, 0)
    assert x.shape is not None
    assert x.dtype is not None
    rows, columns = x.shape.numpy()
    dtype = ir.DataType(node.attributes.get_int("dtype", x.dtype.value)).numpy()
    return _constant(op, np.eye(rows, columns, node.attributes.get_int("k", 0), dtype))


def _tensor_constant(op: Tape, node: ir.Node) -> ir.Value:
    """A constant given as a number or a list of numbers, as a tensor."""
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    assert tensor is not None
    return op.op("Constant", [], {"value": tensor})


_FORMULAS: dict[str, Formula] = {
    "Cosh": _cosh,
    "EyeLike": _eye,
    "LpNormalization": _lp_normalization,
    "Mish": _mish,
    "QLinearMatMul": _q_linear_matmul,
    "Sinh": _sinh,
}
_SUMS = frozenset(
    {
        "AveragePool",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "Gemm",
        "GlobalAveragePool",
        "LogSoftmax",
        "MatMul",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Softmax",
    }
)


def _formula(node: ir.Node) -> Formula | None:
    """The formula for `node`, or None."""
    x = node.inputs[0] if node.inputs else None
    dtype = x.dtype if x is not None else None
    if node.op_type == "Constant" and not {"value", "sparse_value"} & node.attributes.keys():
        return _tensor_constant
    if node.op_type in _SUMS and dtype == ir.DataType.FLOAT16:
        return _in_float32
    if node.op_type in ("ReduceMax", "ReduceMin") and dtype == ir.DataType.BOOL:
        return _in_int32
    if node.op_type == "IsInf" and 0 in (
        node.attributes.get_int("detect_negative", 1),
        node.attributes.get_int("detect_positive", 1),
    ):
        return _infinite
    if (
        node.op_type == "Pow"
        and dtype is not None
        and (dtype not in _FLOATS or _input(node, 1).dtype != dtype)
    ):
        return _power
    if node.op_type == "Resize" and resize.is_nearest(node):
        return resize.nearest
    if node.op_type == "Resize" and (len(node.inputs) < 4 or "axes" in node.attributes):
        shape = node.outputs[0].shape
        return resize.to_shape if shape is not None and shape.is_static() else None
    return _FORMULAS.get(node.op_type)


def _replace(node: ir.Node, formula: Formula) -> None:
    tape = Tape()
    result, old = formula(tape, node), node.outputs[0]
    for index, made in enumerate(tape.nodes):
        made.name = f"{node.name}/{made.op_type}_{index}"
        for output in made.outputs:
            output.name = f"{old.name}/{made.op_type}_{index}"
    take_place(node, list(tape.nodes), result)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _constant(op: Tape, array: np.ndarray) -> ir.Value:
    return op.op("Constant", [], {"value": ir.tensor(array)})


def _like(op: Tape, x: ir.Value, number: float) -> ir.Value:
    """The scalar `number` in the type of `x`."""
    assert x.dtype is not None
    return _constant(op, np.array(number, x.dtype.numpy()))


def _cast(op: Tape, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    return x if x.dtype == dtype else op.op("Cast", [x], {"to": dtype.value})
