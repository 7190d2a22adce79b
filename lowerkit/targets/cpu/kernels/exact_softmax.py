"""lowerkit::OnlineSoftmax and lowerkit::TwoPassSoftmax as kernels that read a row twice.

The first pass keeps, for each lane of a vector, a pair that stands for the sum of exponentials so far; pairs of
lanes are joined at the end by the same rule. The second pass writes the quotients. The exponential is a
polynomial of degree 7, whose relative error (2^-28.9) is a sixteenth of float32's rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
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
#: Partial results of a row, at most: as many as there are accumulators in registers, and more for rows so long
#: that one sum would show its rounding errors.
_PARTIALS, _LONG, _PARTIALS_OF_LONG = 64, 1 << 14, 1024

Pair = tuple[tvm.ir.Expr, tvm.ir.Expr]
Join = Callable[[Pair, Pair], Pair]


def online_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr:
    """Softmax of float32 `inputs[0]` over `axis`; pairs are (maximum, sum of exponentials below it)."""
    p = _polynomial()

    def join(a: Pair, b: Pair) -> Pair:
        largest = tirx.max(a[0], b[0])
        return largest, a[1] * exponential(a[0] - largest, p) + b[1] * exponential(b[0] - largest, p)

    def softmax(data: te.Tensor) -> te.Tensor:
        largest, total = _reduce(data, lambda x: (x, f32(1)), join, (_NOTHING, 0))
        return te.compute(
            data.shape, lambda i, j: exponential(data[i, j] - largest[i], p) / total[i], name="softmax"
        )

    return by_rows(bb, softmax, inputs[0], attributes, "online_softmax")


def two_pass_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr:
    """Softmax of float32 `inputs[0]` over `axis`; pairs are (mantissa, exponent of two)."""
    coefficients = [f32(float(c)) for c in _polynomial().array()]

    def join(a: Pair, b: Pair) -> Pair:
        top = tirx.max(a[1], b[1])
        return a[0] * power_of_two(a[1] - top) + b[0] * power_of_two(b[1] - top), top

    def pair(x: tvm.ir.Expr) -> Pair:
        """(e^r, n) of e^x = e^r 2^n; far from 0, where the product would overflow, n only has to grow with x."""
        near = tirx.all(x < f32(_FAR), x > f32(-_FAR))
        n = exponent_of(x)
        far = x * f32(0.5) + tirx.Select(x > f32(0), f32(_FAR), f32(-_FAR))
        rest = tirx.Select(near, reduced(x, n), tirx.Select(tirx.isnan(x), x, f32(0)))
        return horner(coefficients, rest), tirx.Select(near, n, far)

    def softmax(data: te.Tensor) -> te.Tensor:
        total, top = _reduce(data, pair, join, (0, _NOTHING))

        def quotient(i: tvm.ir.Expr, j: tvm.ir.Expr) -> tvm.ir.Expr:
            mantissa, n = pair(data[i, j])
            return mantissa * power_of_two(n - top[i]) / total[i]

        return te.compute(data.shape, quotient, name="softmax")

    return by_rows(bb, softmax, inputs[0], attributes, "two_pass_softmax")


def _reduce(
    data: te.Tensor, pair: Callable[[tvm.ir.Expr], Pair], join: Join, nothing: tuple[float, float]
) -> tuple[te.Tensor, te.Tensor]:
    """Every row's elements as pairs, joined: first within lanes that are so many elements apart, then those."""
    rows, width = (int(dim) for dim in data.shape)
    lanes = math.gcd(width, _PARTIALS_OF_LONG if width >= _LONG else _PARTIALS)
    reducer = te.comm_reducer(join, lambda *_: tuple(map(f32, nothing)), name="join")
    k, lane = te.reduce_axis((0, width // lanes), "k"), te.reduce_axis((0, lanes), "lane")
    parts = te.compute(
        (rows, lanes), lambda i, j: reducer(pair(data[i, k * lanes + j]), axis=k), name="partial"
    )
    return te.compute(
        (rows,), lambda i: reducer((parts[0][i, lane], parts[1][i, lane]), axis=lane), name="normaliser"
    )


@functools.cache
def _polynomial() -> Polynomial:
    return PolyExp(degree=7).polynomial()
