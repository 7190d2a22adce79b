"""What the softmax kernels share: rows on the last axis, and exponentials in registers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.vectors import f32, fuses_products

_LOG2E = 1.4426950408889634
#: ln 2 in two parts, the first short enough that its product with an exponent is exact.
_LN2_HIGH, _LN2_REST = 0.693359375, 2.12194440054690583e-4
#: Of exponent -127 the bits are 0, and so is what they stand for.
_LEAST = -127
#: 1.5 2^23, to which whole numbers are added without rounding, and the bias of a float32's exponent.
_ROUNDING = 12582912.0 + 127


def by_rows(
    bb: relax.BlockBuilder,
    compute: Callable[[relax.Expr], relax.Expr],
    x: relax.Expr,
    attributes: dict[str, Any],
) -> relax.Expr:
    """`compute` on `x` as [rows, width], the attribute `axis` last and all others flattened; and back."""
    shape = [int(dim) for dim in x.ty.shape]
    axis = int(attributes.get("axis", -1)) % len(shape)
    return from_rows(bb, compute(to_rows(bb, x, axis)), shape, axis)


def to_rows(bb: relax.BlockBuilder, x: relax.Expr, axis: int) -> relax.Expr:
    """`x` as [rows, width], with `axis`, not negative, last and all others flattened."""
    shape = [int(dim) for dim in x.ty.shape]
    order = [*(i for i in range(len(shape)) if i != axis), axis]
    if order == [0, 1]:  # a reshape would be a copy
        return x
    moved = x if axis == len(shape) - 1 else bb.normalize(relax.op.permute_dims(x, order))
    rows = math.prod(shape) // max(shape[axis], 1)
    return bb.normalize(relax.op.reshape(moved, (rows, shape[axis])))


def from_rows(bb: relax.BlockBuilder, y: relax.Expr, shape: Sequence[int], axis: int) -> relax.Expr:
    """`to_rows` undone: `y` in the shape `shape`."""
    order = [*(i for i in range(len(shape)) if i != axis), axis]
    if order == [0, 1]:
        return y
    y = bb.normalize(relax.op.reshape(y, [shape[i] for i in order]))
    if axis == len(shape) - 1:
        return y
    return bb.normalize(relax.op.permute_dims(y, [order.index(i) for i in range(len(shape))]))


def exponent_of(z: Expr) -> Expr:
    """n of e^z = e^r 2^n: a whole number in float32."""
    return tirx.nearbyint(z * f32(_LOG2E))


def reduced(z: Expr, n: Expr) -> Expr:
    """r of e^z = e^r 2^n, within half of ln 2."""
    return z - n * f32(_LN2_HIGH) + n * f32(_LN2_REST)


def power_of_two(n: Expr) -> Expr:
    """2^n for n <= 127, 0 below 2^-126: the bits of a float, so that it runs on vectors."""
    # Clamped also so that the conversion of a NaN is defined.
    exponent = tirx.max(n, f32(_LEAST)).astype("int32")
    return tirx.reinterpret("float32", (exponent + 127) << 23)


def horner(coefficients: Sequence[Expr], r: Expr) -> Expr:
    """The polynomial with `coefficients`, highest power first."""
    p = coefficients[0]
    for coefficient in coefficients[1:]:
        p = p * r + coefficient
    return p


def exponential(z: Expr, coefficients: Sequence[Expr]) -> Expr:
    """e^z for z <= 0, a number or a vector; 0 below 2^-126.5; NaN stays.

    z = n ln 2 + r, and `coefficients`, highest power first, are of the polynomial for e^r. n is rounded by adding
    a number so large that n is left in the last bits of the sum, and a shift makes an exponent of those.
    """
    # With the constant on the left a NaN stays one: max keeps its right argument then.
    bounded = tirx.max(f32(-88.0), z)
    shifted = bounded * f32(_LOG2E) + f32(_ROUNDING)
    dtype = str(shifted.ty.dtype)
    bits = tirx.reinterpret(dtype.replace("float", "int"), shifted)
    power = tirx.reinterpret(dtype, bits << tirx.const(23, "int32"))
    # As bits and back: TVM would take the sum and the difference for nothing.
    n = tirx.reinterpret(dtype, bits) - f32(_ROUNDING)
    # Where products are fused with sums, one part of ln 2 leaves 127 2^-29.
    r = bounded - n * f32(math.log(2)) if fuses_products() else reduced(bounded, n)
    if not (isinstance(coefficients[-1], tirx.FloatImm) and float(coefficients[-1].value) == 1):
        return horner(coefficients, r) * power
    # The last product and sum the other way round: a sum of such terms then needs no product of its own.
    return horner(coefficients[:-1], r) * (r * power) + power
