"""What the operators of linear layers in few bits compute, as ONNX function bodies.

Values stay float32 between operators. Integer products are summed in int32 by MatMul; ONNX has no such Conv, whose
sums of integers are float32 and so exact up to 2^24.
"""

from __future__ import annotations

from lowerkit.passes.activation.bodies import Body, lines, number

#: Attributes of a Conv, spelled out.
WINDOW = "pads, strides, dilations, group"
#: The same, passed on to a Conv of a body.
_PASSED = "pads: ints = @pads, strides: ints = @strides, dilations: ints = @dilations, group: int = @group"

_LEVELS = lines(number("zero", 0.0), number("one", 1.0), number("most", 255.0))


def _dynamic(axes: str) -> str:
    """Step and zero point of the values of X along `axes`; the range contains 0, a step of 0 becomes 1, and that of
    values which are not all finite NaN."""
    return lines(
        _LEVELS,
        f"axes = Constant <value_ints = {axes}> ()",
        """
        lowest = ReduceMin <keepdims = 1> (X, axes)
        highest = ReduceMax <keepdims = 1> (X, axes)
        low = Min (lowest, zero)
        high = Max (highest, zero)
        width = Sub (high, low)
        step = Div (width, most)
        flat = Equal (step, zero)
        positive = Where (flat, one, step)
        nothing = Mul (X, zero)
        spoiled = ReduceSum <keepdims = 1> (nothing, axes)
        s = Add (positive, spoiled)
        below = Div (low, s)
        above = Neg (below)
        whole = Round (above)
        z = Clip (whole, zero, most)
        """,
    )


_STATIC = lines(_LEVELS, "s = Identity (x_scale)", "z = Cast <to = 1> (x_zero)")

#: X as whole steps from the zero point: from -z to 255 - z.
_STEPS = """
scaled = Div (X, s)
rounded = Round (scaled)
shifted = Add (rounded, z)
q = Clip (shifted, zero, most)
steps = Sub (q, z)
"""

_INT_MATMUL = """
steps_i = Cast <to = 6> (steps)
w_i = Cast <to = 6> (w)
sums_i = MatMul (steps_i, w_i)
sums = Cast <to = 1> (sums_i)
scaled_sums = Mul (sums, s)
Y = Mul (scaled_sums, w_scale)
"""

_INT_CONV = f"""
w_f = Cast <to = 1> (w)
sums = Conv <{_PASSED}> (steps, w_f)
scaled_sums = Mul (sums, s)
by_channel = Constant <value_ints = [1, -1, 1, 1]> ()
w_scales = Reshape (w_scale, by_channel)
Y = Mul (scaled_sums, w_scales)
"""

MATMUL_INT8 = Body("MatMulInt8", ("X", "w", "w_scale"), "", lines(_dynamic("[-1]"), _STEPS, _INT_MATMUL))
CONV_INT8 = Body("ConvInt8", ("X", "w", "w_scale"), WINDOW, lines(_dynamic("[1, 2, 3]"), _STEPS, _INT_CONV))
_STATIC_INPUTS = ("X", "x_scale", "x_zero", "w", "w_scale")
MATMUL_INT8_STATIC = Body("MatMulInt8Static", _STATIC_INPUTS, "", lines(_STATIC, _STEPS, _INT_MATMUL))
CONV_INT8_STATIC = Body("ConvInt8Static", _STATIC_INPUTS, WINDOW, lines(_STATIC, _STEPS, _INT_CONV))

_BF16 = """
x_b = Cast <to = 16> (X)
x_f = Cast <to = 1> (x_b)
w_f = Cast <to = 1> (w)
"""
MATMUL_BF16 = Body("MatMulBf16", ("X", "w"), "", lines(_BF16, "Y = MatMul (x_f, w_f)"))
CONV_BF16 = Body("ConvBf16", ("X", "w"), WINDOW, lines(_BF16, f"Y = Conv <{_PASSED}> (x_f, w_f)"))

MATMUL_WEIGHT_INT8 = Body(
    "MatMulWeightInt8",
    ("X", "w", "w_scale"),
    "",
    """
w_f = Cast <to = 1> (w)
products = MatMul (X, w_f)
Y = Mul (products, w_scale)
""",
)
MATMUL_WEIGHT_INT4 = Body(
    "MatMulWeightInt4",
    ("X", "w", "w_scale"),
    "",
    """
w_f = Cast <to = 1> (w)
groups = Shape <start = 0, end = 1> (w_scale)
columns = Shape <start = 1, end = 2> (w_scale)
left = Constant <value_ints = [-1]> ()
grouped = Concat <axis = 0> (groups, left, columns)
w_g = Reshape (w_f, grouped)
one = Constant <value_ints = [1]> ()
scales = Unsqueeze (w_scale, one)
scaled = Mul (w_g, scales)
shape = Concat <axis = 0> (left, columns)
weight = Reshape (scaled, shape)
Y = MatMul (X, weight)
""",
)
