"""lowerkit::PolySoftmax as one kernel: the row's maximum, the exponentials, their sum, the quotients.

Same arithmetic as the operator's body, except that 2^n is made by writing n into the exponent's bits, and
that it becomes 0 below 2^-126.5 instead of 2^-126. There is no branch, so that it runs on vectors.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, te, tirx

from lowerkit.targets.cpu.kernels.softmax_rows import by_rows, exponent_of, f32, horner, power_of_two, reduced


def poly_softmax(bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]) -> relax.Expr:
    """Softmax of float32 `inputs[0]` over `axis`; `inputs[1]` is the polynomial, highest power first."""
    x, coefficients = inputs
    terms = int(coefficients.ty.shape[0])

    def softmax(data: te.Tensor, c: te.Tensor) -> te.Tensor:
        rows, width = data.shape
        k, m = te.reduce_axis((0, width), "k"), te.reduce_axis((0, width), "m")
        largest = te.compute((rows,), lambda i: te.max(data[i, k], axis=k), name="largest")

        def exponential(i: tvm.ir.Expr, j: tvm.ir.Expr) -> tvm.ir.Expr:
            # With the constant on the left a NaN stays one; max keeps its right argument then. At -88 n is
            # -127, of which the exponent's bits are 0.
            z = tirx.max(f32(-88.0), data[i, j] - largest[i])
            n = exponent_of(z)
            return horner([c[power] for power in range(terms)], reduced(z, n)) * power_of_two(n)

        e = te.compute((rows, width), exponential, name="exponential")
        total = te.compute((rows,), lambda i: te.sum(e[i, m], axis=m), name="total")
        return te.compute((rows, width), lambda i, j: e[i, j] / total[i], name="softmax")

    def rows_of(data: relax.Expr) -> relax.Expr:
        return bb.emit_te(softmax, data, coefficients, primfunc_name_hint="poly_softmax")

    return by_rows(bb, rows_of, x, attributes)
