"""lowerkit::PolySoftmax as one kernel: the row's maximum, the exponentials, their sum, the quotients.

Same arithmetic as the operator's body, except that 2^n is made by writing n into the exponent's bits, and
that it becomes 0 below 2^-126.5 instead of 2^-126. There is no branch, so that it runs on vectors.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax, te, tirx

_LOG2E = 1.4426950408889634
#: ln 2 in two parts, the first short enough that its product with an exponent is exact.
_LN2_HIGH, _LN2_REST = 0.693359375, 2.12194440054690583e-4
#: Here n is -127, of which the exponent's bits are 0: the exponential of this and of all below is 0.
_FLOOR = -88.0


def poly_softmax(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr:
    """Softmax of float32 `inputs[0]` over `axis`; `inputs[1]` is the polynomial, highest power first."""
    x, coefficients = inputs
    shape = [int(dim) for dim in x.ty.shape]
    degree = int(coefficients.ty.shape[0]) - 1
    axis = int(attributes.get("axis", -1)) % len(shape)
    order = [*(i for i in range(len(shape)) if i != axis), axis]
    moved = x if axis == len(shape) - 1 else bb.normalize(relax.op.permute_dims(x, order))
    rows, width = math.prod(shape) // max(shape[axis], 1), shape[axis]

    def f32(value: float) -> tvm.ir.Expr:
        return tirx.const(value, "float32")

    def softmax(data: te.Tensor, c: te.Tensor) -> te.Tensor:
        k, m = te.reduce_axis((0, width), "k"), te.reduce_axis((0, width), "m")
        largest = te.compute((rows,), lambda i: te.max(data[i, k], axis=k), name="largest")

        def exponential(i: tvm.ir.Expr, j: tvm.ir.Expr) -> tvm.ir.Expr:
            # With the constant on the left a NaN stays one; max keeps its right argument then.
            z = tirx.max(f32(_FLOOR), data[i, j] - largest[i])
            n = tirx.nearbyint(z * f32(_LOG2E))
            r = z - n * f32(_LN2_HIGH) + n * f32(_LN2_REST)
            p = c[0]
            for power in range(1, degree + 1):
                p = p * r + c[power]
            # n is clamped only so that the conversion of a NaN is defined; p is NaN then.
            exponent = tirx.max(n, f32(-127)).astype("int32")
            return p * tirx.reinterpret("float32", (exponent + 127) << 23)

        e = te.compute((rows, width), exponential, name="exponential")
        total = te.compute((rows,), lambda i: te.sum(e[i, m], axis=m), name="total")
        return te.compute((rows, width), lambda i, j: e[i, j] / total[i], name="softmax")

    flat = bb.normalize(relax.op.reshape(moved, (rows, width)))
    y = bb.emit_te(softmax, flat, coefficients, primfunc_name_hint="poly_softmax")
    y = bb.normalize(relax.op.reshape(y, [shape[i] for i in order]))
    if axis == len(shape) - 1:
        return y
    return relax.op.permute_dims(y, [order.index(i) for i in range(len(shape))])
