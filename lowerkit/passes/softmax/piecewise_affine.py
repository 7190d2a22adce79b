"""Softmax by additions of bit patterns: neither exponential, nor multiplication, nor division."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.piecewise_affine import WORST, paexp2, palog2
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod


@script(LOWERKIT, default_opset=op)
def PiecewiseAffineSoftmax(X, axis: int = -1):  # type: ignore[no-untyped-def]
    """paexp2(u - palog2(sum paexp2(u))) with u = (x - max) log2 e and paexp2(u) = (1 + u - floor u) 2^(floor u)."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    zero = op.CastLike(0.0, X)
    one = op.CastLike(1.0, X)
    two = one + one
    u = (X - op.ReduceMax(X, axes)) * 1.4426950408889634
    # Powers that float32 does not have; -inf has no fraction. NaN is not less and stays.
    gone = u < -149.0
    v = op.Where(gone, zero, u)
    whole = op.Floor(v)
    e = op.Where(gone, zero, (one + (v - whole)) * op.Pow(two, whole))
    total = op.ReduceSum(e, axes)
    near = op.Floor(op.Log(total) * 1.4426950408889634)
    guess = op.Pow(two, near)
    # The logarithm's rounding may put it one power of two off.
    k = op.Where(total < guess, near - one, op.Where(total >= guess * two, near + one, near))
    z = u - (k + (total / op.Pow(two, k) - one))
    lost = z < -149.0
    w = op.Where(lost, zero, z)
    floor = op.Floor(w)
    return op.Where(lost, zero, (one + (w - floor)) * op.Pow(two, floor))


@dataclass(frozen=True)
class PiecewiseAffine(SoftmaxMethod):
    """Softmax with every exponential and the division replaced by additions of floating-point bit patterns.

    E(u) = (1 + u - floor u) 2^(floor u) is 2^u with chords between integers. A float m 2^k, 1 <= m < 2, has the bit
    pattern k + m - 1, but for a unit and a constant, which is L(m 2^k), E's inverse: E writes a fixed-point number
    into a float's bits, and L reads them. With u_i = (x_i - max) log2 e, whose constant folds into the logits' scale,

        S = sum_j E(u_j),   y_i = E(u_i - L(S)):

    one addition of integers makes the exponential, and the division is one subtraction of them.

    Error. With f = u - floor u, E(u) / 2^u = r(f) = (1 + f) 2^-f, which is 1 at both ends of [0, 1] and largest at
    1 + f = 1 / ln 2: c = 2 / (e ln 2) = 2^0.0861 = 1.0615. Let W = sum 2^u_j, p_i = 2^u_i / W. S = sum 2^u_j r_j is
    in [W, c W], and 2^-L(S) = r(L(S)) / S, hence

        y_i / p_i = r(u_i - L(S)) r(L(S)) W / S   is in [1 / c, c^2] = [0.942, 1.127].

    No smaller interval holds for all rows. Up: a row of integers u has W = S, whatever its mantissa; let its r be c,
    and u_i far below be such that the first factor is c. Down: many u_j at the worst fraction, one i and a sum at
    powers of two. In absolute terms, |y_i - p_i| <= 3/2 - sqrt 2 = 0.0858, again reached in the limit: where u_i = 0
    and S = 2^k (1 + a), y_i = (1 - a / 2) 2^-k and p_i >= 1 / S, a difference of at most 1 - a / 2 - 1 / (1 + a) for
    k = 0, largest at a = sqrt 2 - 1; all others have p_i <= 1/2 and an error of at most (c^2 - 1) / 2 = 0.0634; and
    below p_i nothing loses more than 1 - 1 / c = 0.0579.

    A row's sum is that of E(L(a_i) - L(S)), the a_i = E(u_i) summing to S: quotients by subtracted bit patterns,
    each in [1, 9/8] of the true one (Mitchell), so that the sum is in [1, 9/8], and 9/8 for u = (0, -1). Weights
    are in [0, 1], as L(S) >= 0; they keep the order of the logits, E being increasing; the method is invariant to
    shifts. A row of one is 1. Powers below those of float32 are 0, as an exponential's are, and so is -inf; rows of
    -inf alone, with NaN or with +inf give NaN, as Softmax does.
    """

    name: ClassVar[str] = "piecewise-affine"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Kosson and Jaggi, Multiplication-Free Transformer Training via Piecewise Affine Operations (NeurIPS 2023)"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "two integer additions, a conversion to fixed point and a float addition per element",
        "gpu": "as on a cpu; no special-function unit",
        "fpga": "no table, no multiplier and no divider: adders, and a shifter where sums are in fixed point",
        "he": "not applicable: needs exponents",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": PiecewiseAffineSoftmax}

    def bound(self) -> Bound:
        """c^2 - 1."""
        domain = "every finite row, and -inf elements"
        return Bound(WORST * WORST - 1, "relative", domain, Evidence.PROVED)

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore"):
            u = (x - x.max(axis=-1, keepdims=True)) * math.log2(math.e)
            return paexp2(u - palog2(paexp2(u).sum(axis=-1, keepdims=True)))
