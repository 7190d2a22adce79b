"""Which operators TVM's ONNX front end lacks or gets wrong: the table is read from top to bottom.

What `decompose.py` expresses in other operators is not listed. tests/conformance holds the evidence.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from lowerkit.targets.cpu import resize
from lowerkit.targets.cpu.decompose import is_decomposed

_T = ir.DataType
_DTYPES = frozenset(
    {_T.BOOL, _T.FLOAT16, _T.FLOAT, _T.DOUBLE}
    | {_T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64}
)
#: Operators of the standard domain that TVM takes.
_TAKEN_NAMES = """
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Concat Constant
ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout
DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu
Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LayerNormalization
LeakyRelu Less LessOrEqual Log LogSoftmax LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool Mean
MeanVarianceNormalization Min Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization
Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare Relu Reshape Resize RoiAlign Round ScatterElements ScatterND Selu Shape Shrink
Sigmoid Sign Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
_TAKEN = frozenset(_TAKEN_NAMES.split())

_DATA_DEPENDENT = "the shape of its result depends on the data"
_RANDOM = "it draws random numbers"
_STEPS = "it is a loop, which the target does not unroll"
#: Reasons better than "TVM has no such operator".
_LACKING: dict[str, str] = {
    "Bernoulli": _RANDOM,
    "Compress": _DATA_DEPENDENT,
    "GRU": _STEPS,
    "LSTM": _STEPS,
    "Loop": _STEPS,
    "Multinomial": _RANDOM,
    "NonMaxSuppression": _DATA_DEPENDENT,
    "NonZero": _DATA_DEPENDENT,
    "RNN": _STEPS,
    "RandomNormal": _RANDOM,
    "RandomNormalLike": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomUniformLike": _RANDOM,
    "Scan": _STEPS,
    "Unique": _DATA_DEPENDENT,
}


def reason(node: ir.Node) -> str | None:
    """Why the target cannot run `node`, or None. Its values have static shapes and dtypes."""
    if node.domain not in ("", "ai.onnx"):
        return f"operators of domain '{node.domain}' are not known"
    if node.op_type in _LACKING:
        return _LACKING[node.op_type]
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype is None or _is_narrowed(node, value):
            continue
        if value.dtype not in _DTYPES:
            return (
                f"value '{value.name}' is of type {value.dtype.name}, which the target has no arithmetic for"
            )
    for applies, why in _CONDITIONS.get(node.op_type, ()):
        if applies(node):
            return why
    if node.op_type not in _TAKEN and not is_decomposed(node):
        return "TVM's ONNX front end has no such operator"
    return None


def _is_narrowed(node: ir.Node, value: ir.Value) -> bool:
    """`value` is a float rounded to bfloat16 between two Casts."""
    outside = value.is_graph_input() or value.is_graph_output()
    return node.op_type == "Cast" and value.dtype == _T.BFLOAT16 and not outside


# Conditions on a node.


def _is(name: str, *values: str) -> Callable[[ir.Node], bool]:
    """Attribute `name` is one of the strings `values`."""
    return lambda node: node.attributes.get_string(name, "") in values


def _set(name: str) -> Callable[[ir.Node], bool]:
    """Integer attribute `name` is given and not 0."""
    return lambda node: node.attributes.get_int(name, 0) != 0


def _given(name: str) -> Callable[[ir.Node], bool]:
    """Attribute `name` is given."""
    return lambda node: name in node.attributes


def _trains(node: ir.Node) -> bool:
    """Dropout whose training mode is not known to be off."""
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is None:
        return False
    known = ir.convenience.get_const_tensor(mode)
    return known is None or bool(known.numpy())


def _has_outputs(count: int) -> Callable[[ir.Node], bool]:
    """An output beyond the first `count` is used."""
    return lambda node: any(
        output.name and (output.uses() or output.is_graph_output()) for output in node.outputs[count:]
    )


def _is_varying(index: int) -> Callable[[ir.Node], bool]:
    """Input `index` is given and no constant."""

    def applies(node: ir.Node) -> bool:
        value = node.inputs[index] if index < len(node.inputs) else None
        return value is not None and ir.convenience.get_const_tensor(value) is None

    return applies


def _interpolates(applies: Callable[[ir.Node], bool]) -> Callable[[ir.Node], bool]:
    """A condition on Resize that is of no concern where it takes the nearest element."""
    return lambda node: not resize.is_nearest(node) and applies(node)


def _has_other_rank(node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is None or x.shape is None or len(x.shape) not in (3, 4, 5)


_CONDITIONS: dict[str, tuple[tuple[Callable[[ir.Node], bool], str], ...]] = {
    **{
        name: ((_is_varying(0), _DATA_DEPENDENT),)
        for name in ("BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow")
    },
    "BatchNormalization": ((_set("training_mode"), "it is in training mode"),),
    "Constant": ((_given("sparse_value"), "its value is sparse"),),
    "ConvTranspose": ((_given("output_shape"), "TVM ignores its output_shape: give pads instead"),),
    "CumSum": ((_is_varying(1), "its axis is not a constant"),),
    "Dropout": ((_trains, "it is in training mode, or may be"),),
    "MaxPool": ((_has_outputs(1), "TVM does not compute the indices of the largest"),),
    "Pad": ((_is_varying(2), "its padding value is not a constant"),),
    "Range": (
        (_is_varying(0), _DATA_DEPENDENT),
        (_is_varying(1), _DATA_DEPENDENT),
        (_is_varying(2), _DATA_DEPENDENT),
    ),
    "Resize": (
        (_interpolates(_set("antialias")), "TVM ignores antialias"),
        (resize.is_varying_crop, "its region of interest is not a constant"),
        (
            _interpolates(_is("coordinate_transformation_mode", "half_pixel_symmetric")),
            "TVM lacks half_pixel_symmetric",
        ),
        (_interpolates(_has_other_rank), "TVM resizes tensors of 3 to 5 axes"),
        (
            _interpolates(resize.scales_inexactly),
            "a scale times the size is not a whole number, which TVM rounds first",
        ),
    ),
}
