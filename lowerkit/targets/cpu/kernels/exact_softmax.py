"""lowerkit::OnlineSoftmax and lowerkit::TwoPassSoftmax as kernels that read a row twice.

The first pass keeps, for each lane of a vector, a pair that stands for the sum of exponentials so far; pairs of
lanes are joined at the end by the same rule. The second pass writes the quotients. The exponential is a
polynomial of degree 7, whose relative error (2^-28.9) is a sixteenth of float32's rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import tvm
from tvm import relax, te, tirx

from lowerkit.numerics.polynomial import Polynomial
from lowerkit.passes.softmax.poly_exp import PolyExp
from lowerkit.targets.cpu.kernels.softmax_rows import (
    by_rows,
    exponent_of,
    exponential,
    f32,
    horner,
    power_of_two,
    reduced,
)

#: The lowest number, and finite: differences with it are no NaN.
_NOTHING = -3.4028234663852886e38
#: From here on float32 numbers are further apart than the exponential reaches.
_FAR = 2.0**100


def online_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr:
    """Softmax of float32 `inputs[0]` over `axis`; pairs are (maximum, sum of exponentials below it)."""
    p = _polynomial()

    def joined(a: tuple[tvm.ir.Expr, ...], b: tuple[tvm.ir.Expr, ...]) -> tuple[tvm.ir.Expr, ...]:
        largest = tirx.max(a[0], b[0])
        return largest, a[1] * exponential(a[0] - largest, p) + b[1] * exponential(b[0] - largest, p)

    def softmax(data: te.Tensor) -> te.Tensor:
        rows, width = data.shape
        k = te.reduce_axis((0, width), "k")
        join = te.comm_reducer(joined, lambda *_: (f32(_NOTHING), f32(0)), name="join")
        largest, total = te.compute((rows,), lambda i: join((data[i, k], f32(1)), axis=k), name="normaliser")
        return te.compute(
            (rows, width), lambda i, j: exponential(data[i, j] - largest[i], p) / total[i], name="softmax"
        )

    return by_rows(bb, softmax, inputs[0], attributes, "online_softmax")


def two_pass_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr:
    """Softmax of float32 `inputs[0]` over `axis`; pairs are (mantissa, exponent of two)."""
    coefficients = [f32(float(c)) for c in _polynomial().array()]

    def joined(a: tuple[tvm.ir.Expr, ...], b: tuple[tvm.ir.Expr, ...]) -> tuple[tvm.ir.Expr, ...]:
        top = tirx.max(a[1], b[1])
        return a[0] * power_of_two(a[1] - top) + b[0] * power_of_two(b[1] - top), top

    def pair(x: tvm.ir.Expr) -> tuple[tvm.ir.Expr, tvm.ir.Expr]:
        """(e^r, n) of e^x = e^r 2^n; far from 0, where the product would overflow, n only has to grow with x."""
        near = tirx.all(x < f32(_FAR), x > f32(-_FAR))
        n = exponent_of(x)
        far = x * f32(0.5) + tirx.Select(x > f32(0), f32(_FAR), f32(-_FAR))
        rest = tirx.Select(near, reduced(x, n), tirx.Select(tirx.isnan(x), x, f32(0)))
        return horner(coefficients, rest), tirx.Select(near, n, far)

    def softmax(data: te.Tensor) -> te.Tensor:
        rows, width = data.shape
        k = te.reduce_axis((0, width), "k")
        join = te.comm_reducer(joined, lambda *_: (f32(0), f32(_NOTHING)), name="join")
        total, top = te.compute((rows,), lambda i: join(pair(data[i, k]), axis=k), name="normaliser")

        def quotient(i: tvm.ir.Expr, j: tvm.ir.Expr) -> tvm.ir.Expr:
            mantissa, n = pair(data[i, j])
            return mantissa * power_of_two(n - top[i]) / total[i]

        return te.compute((rows, width), quotient, name="softmax")

    return by_rows(bb, softmax, inputs[0], attributes, "two_pass_softmax")


@functools.cache
def _polynomial() -> Polynomial:
    return PolyExp(degree=7).polynomial()
