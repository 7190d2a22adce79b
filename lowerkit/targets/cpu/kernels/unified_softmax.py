"""lowerkit::UnifiedMaxSoftmax as a kernel that needs no maximum, but where a guard asks for one.

Exponentials are relative to the preset center, so that rows and blocks of long rows are summed at once. The guard
is the sum itself: n terms whose sum is within [n e^-60, e^60] have their largest within [e^-60, e^60], which is the
method's reach. Blocks outside, NaN among them, find their maximum and are summed anew, while they are in cache;
sums relative to the center and to maxima are joined by the rule of online softmax. So the safe form is taken by
blocks rather than by rows, and nothing is lost where one block of a row is far below the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax, te, tirx
from tvm.ir import Expr

from lowerkit.passes.softmax.unified_max import REACH
from lowerkit.targets.cpu.kernels.exponential import exact_coefficients, polynomial_exponential
from lowerkit.targets.cpu.kernels.softmax_pairs import softmax_of_pairs
from lowerkit.targets.cpu.kernels.vectors import f32

#: e^88 fits float32. A sum with such a term is outside of the guard, whatever the term was.
_LARGEST = 88.0


def unified_max_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr:
    """Softmax of float32 `inputs[0]` over `axis`; the pairs are (`center` or maximum, sum relative to it)."""
    p, center = exact_coefficients(), f32(float(attributes.get("center", 0.0)))

    def term(x: Expr, top: Expr) -> Expr:
        return polynomial_exponential(x - top, p)

    def direct_term(x: Expr) -> Expr:
        # With the constant on the left a NaN stays one: min keeps its right argument then.
        return polynomial_exponential(tirx.min(f32(_LARGEST), x - center), p)

    def guarded(data: te.Tensor, e: Callable[[Expr, Expr], Expr]) -> tuple[te.Tensor, te.Tensor, te.Tensor]:
        """By rows: whether the center will do, else the maximum, and the sum relative to either."""
        rows, count = data.shape
        k, m, n = (te.reduce_axis((0, count), name) for name in "kmn")
        least = f32(int(count) * math.exp(-REACH))
        most = f32(math.exp(REACH))
        direct = te.compute((rows,), lambda i: te.sum(e(i, n), axis=n), name="direct")
        near = te.compute((rows,), lambda i: tirx.all(direct[i] >= least, direct[i] <= most), name="near")
        top = te.compute(
            (rows,), lambda i: te.max(tirx.if_then_else(near[i], center, data[i, k]), axis=k), name="top"
        )
        again = te.compute(
            (rows,),
            lambda i: te.sum(tirx.if_then_else(near[i], f32(0), term(data[i, m], top[i])), axis=m),
            name="again",
        )
        total = te.compute((rows,), lambda i: tirx.Select(near[i], direct[i], again[i]), name="total")
        return near, top, total

    def normaliser(data: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
        return guarded(data, lambda i, j: direct_term(data[i, j]))[1:]

    def at_once(data: te.Tensor) -> te.Tensor:
        e = te.compute(data.shape, lambda i, j: direct_term(data[i, j]), name="exponential")
        near, top, total = guarded(data, e)
        return te.compute(
            data.shape,
            lambda i, j: tirx.if_then_else(near[i], e[i, j], term(data[i, j], top[i])) / total[i],
            name="softmax",
        )

    return softmax_of_pairs(bb, inputs[0], attributes, normaliser, at_once, term, term)
