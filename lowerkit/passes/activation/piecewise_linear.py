"""Activations as lines between chosen breakpoints."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.numerics.piecewise_linear import PiecewiseLinear, fit_piecewise_linear
from lowerkit.passes.activation.base import Activation, CoreMethod, body, for_each
from lowerkit.passes.activation.bodies import PIECEWISE_LINEAR, Body

#: What `max_error` may choose; `segments` itself may be anything between.
_SIZES = (*range(2, 33), 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class PiecewiseLinearActivation(CoreMethod):
    """The function's core (see `table`) as `segments` lines, short where the core bends and long where it does not.

    A line over a segment of length h errs by about h^2/16 |f''|, so that all segments err alike when each holds
    the same part of the integral of |f''|^(1/2): the breakpoints are set so. The values at them are those with the
    least largest error, by linear programming. With the same error a table of equal steps, whose step the most
    bent place decides, needs three to eight times the entries here.

    The bound is computed for the rounded lines: on 4096 cells of each segment the error is at most that at the
    cell's ends and h^2/8 max|f''|. Lines meet up to float32's rounding of their coefficients. Beyond `limit` the
    last value holds. NaN and infinities are as with `table`.
    """

    segments: int = 16

    name: ClassVar[str] = "piecewise-linear"
    source: ClassVar[str] = (
        "breakpoints: de Boor, A Practical Guide to Splines (1978), chapter XII; minimax values by linear "
        "programming, certified here"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "`segments` comparisons, two table reads and a multiply-add per element",
        "gpu": "as on a cpu, tables in registers",
        "fpga": "`segments` comparators with constants, two tables in LUTs, one multiplier, II 1; no block RAM",
        "he": "not applicable: needs comparisons",
    }

    def __post_init__(self) -> None:
        self.check("segments", _SIZES)

    @classmethod
    def body_for(cls, activation: Activation) -> Body:
        """The operator of one of the functions."""
        return body("PiecewiseLinear", activation, ("breakpoints", "slopes", "intercepts"), PIECEWISE_LINEAR)

    def fitted(self, variant: int) -> PiecewiseLinear:
        """The lines for one of the function's forms."""
        return _lines(self.of, variant, self.reach, self.segments)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """`segments` - 1 breakpoints, and `segments` slopes and intercepts; float32."""
        fitted = self.fitted(self.variant(node))
        arrays = {"breakpoints": fitted.breakpoints, "slopes": fitted.slopes, "intercepts": fitted.intercepts}
        return {key: np.array(values, np.float32) for key, values in arrays.items()}


@functools.cache
def _lines(of: Activation, variant: int, limit: float, segments: int) -> PiecewiseLinear:
    low, high = of.form.interval(limit)
    return fit_piecewise_linear(of.cores[variant], low, high, segments, relative=of.form.relative)


METHODS = for_each(PiecewiseLinearActivation)
