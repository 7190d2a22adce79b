"""Activations by table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.graph.domain import Function
from lowerkit.numerics.tables import Table, uniform_table
from lowerkit.passes.activation.base import Activation, CoreMethod, body, for_each
from lowerkit.passes.activation.bodies import LINEAR_TABLE, NEAREST_TABLE, Body

_SIZES = tuple(1 << k for k in range(1, 17))


@dataclass(frozen=True)
class TableActivation(CoreMethod):
    """The function's core read from a table of equal steps, with linear interpolation or without.

    Of GELU, SiLU and softplus the core is the even bump by which ReLU exceeds them: f(x) = max(x, 0) - g(|x|), so
    that half a table is enough and the error is the same on both sides. Of sigmoid, tanh and erf it is the rise
    over x >= 0, whose sign x gives. Mish is read on [-limit, limit]. Of exp, 1/x and x^(-1/2) it is the function
    on one octave (two for the root), the powers of two being shifts.

    The table has `segments` steps of h = width / segments. Interpolation errs by at most h^2/8 max|f''| on each,
    and the nearest entry by at most the change of f over half a step; entries rounded to float32 add at most the
    largest of their roundings. Beyond `limit` the last entry holds, which errs by at most how far the function is
    from its end there.

    Where the core is 0 at 0 the table is exact there, so that f(0) is. NaN gives NaN, infinities what the function
    gives, but for GELU, SiLU and Mish at -inf, where their formulas have -inf * 0 = NaN, and the table what it
    gives below -limit: a number near 0. With interpolation an ascending core stays ascending.
    """

    segments: int = 256
    interpolate: bool = True

    name: ClassVar[str] = "table"
    source: ClassVar[str] = (
        "ReLU less a table of |x|: Sarkar et al., Edge-MoE (ICCAD 2023), section IV; tables with linear "
        "interpolation: Muller, Elementary Functions (3rd ed. 2016), section 6.2"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "two table reads and a multiply-add per element; a gather where there are no vector tables",
        "gpu": "two reads of shared memory and a multiply-add per element",
        "fpga": "one dual-ported block RAM of `segments` words, one multiplier, II 1; no multiplier for the nearest",
        "he": "not applicable: needs comparisons",
    }

    def __post_init__(self) -> None:
        if not isinstance(self.interpolate, bool):
            raise ValueError(f"interpolate must be true or false, not {self.interpolate!r}")
        self.check("segments", _SIZES)

    @classmethod
    def body_for(cls, activation: Activation) -> Body:
        """The operator with interpolation."""
        return body("Table", activation, ("table",), LINEAR_TABLE)

    def function(self, node: ir.Node) -> Function:
        """The operator with or without interpolation."""
        if self.interpolate:
            return super().function(node)
        return body("NearestTable", self.of, ("table",), NEAREST_TABLE)

    def fitted(self, variant: int) -> Table:
        """The table of one of the function's forms."""
        return _table(self.of, variant, self.reach, self.segments, self.interpolate)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """The table of the node's form: float32, `segments` + 1 entries."""
        return {"table": self.fitted(self.variant(node)).array()}


@functools.cache
def _table(of: Activation, variant: int, limit: float, segments: int, interpolate: bool) -> Table:
    core, (low, high) = of.cores[variant], of.form.interval(limit)
    return uniform_table(
        core.value,
        low,
        high,
        segments,
        curvature=core.curvature,
        relative=of.form.relative,
        interpolate=interpolate,
    )


METHODS = for_each(TableActivation)
