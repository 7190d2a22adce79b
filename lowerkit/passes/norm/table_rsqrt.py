"""LayerNorm and RMSNorm with a table for the inverse square root."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.tables import Table, uniform_table
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.norm.base import LARGEST, RowNorm


@script(LOWERKIT, default_opset=op)
def TableRsqrtLayerNorm(X, Scale, Bias, table, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """(x - mean) y scale + bias; y = table(m) 2^(-e) with v = m 4^e, the table linear over [1, 4]."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    deviation = X - op.ReduceMean(X, axes)
    v = op.ReduceMean(deviation * deviation, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    near = op.Floor(op.Log(v) * 0.7213475204444817)
    rough = v * op.Pow(op.CastLike(4.0, X), op.Neg(near))
    # The logarithm is rounded: the exponent may be one off beside powers of four.
    off = op.Where(
        rough < 1.0, op.CastLike(-1.0, X), op.Where(rough < 4.0, op.CastLike(0.0, X), op.CastLike(1.0, X))
    )
    m = rough * op.Pow(op.CastLike(4.0, X), op.Neg(off))
    segments = op.Shape(table) - 1
    position = (m - 1.0) * (op.CastLike(segments, X) / 3.0)
    index = op.Max(op.Min(op.Cast(op.Floor(position), to=7), segments - 1), 0)
    left = op.Gather(table, index)
    y = left + (position - op.CastLike(index, X)) * (op.Gather(table, index + 1) - left)
    root = op.Where(
        v > 3.4028234663852886e38, op.CastLike(0.0, X), y * op.Pow(op.CastLike(2.0, X), op.Neg(near + off))
    )
    return deviation * root * Scale + Bias


@script(LOWERKIT, default_opset=op)
def TableRsqrtRMSNorm(X, Scale, table, axis: int = -1, epsilon: float = 1e-5):  # type: ignore[no-untyped-def]
    """x y scale; y = table(m) 2^(-e) with v = m 4^e, the table linear over [1, 4]."""
    axes = op.Range(op.Constant(value_int=axis), 0, 1)
    v = op.ReduceMean(X * X, axes) + op.CastLike(op.Constant(value_float=epsilon), X)
    near = op.Floor(op.Log(v) * 0.7213475204444817)
    rough = v * op.Pow(op.CastLike(4.0, X), op.Neg(near))
    off = op.Where(
        rough < 1.0, op.CastLike(-1.0, X), op.Where(rough < 4.0, op.CastLike(0.0, X), op.CastLike(1.0, X))
    )
    m = rough * op.Pow(op.CastLike(4.0, X), op.Neg(off))
    segments = op.Shape(table) - 1
    position = (m - 1.0) * (op.CastLike(segments, X) / 3.0)
    index = op.Max(op.Min(op.Cast(op.Floor(position), to=7), segments - 1), 0)
    left = op.Gather(table, index)
    y = left + (position - op.CastLike(index, X)) * (op.Gather(table, index + 1) - left)
    root = op.Where(
        v > 3.4028234663852886e38, op.CastLike(0.0, X), y * op.Pow(op.CastLike(2.0, X), op.Neg(near + off))
    )
    return X * root * Scale


@dataclass(frozen=True)
class TableRsqrt(RowNorm):
    """v^(-1/2) by range reduction and a table with linear interpolation.

    v = variance + epsilon = m 4^e with m in [1, 4), so that v^(-1/2) = m^(-1/2) 2^(-e): on hardware a
    leading-zero count and two shifts. The table has `segments` equal steps h = 3 / segments over [1, 4].

    m^(-1/2) is convex and falls, and so does its second derivative, 3/4 m^(-5/2). Over a step from m to
    m + h interpolation lies above it by at most h^2/8 3/4 m^(-5/2), and relative to its least value there by
    at most 3/32 h^2 m^(-5/2) (m + h)^(1/2); this falls with m too, since m^5 / (m + h) grows, so that the
    first step has the greatest. Entries rounded to float32 add their largest rounding, relative to 1/2.

    epsilon must be at least 2^-126, so that v is a normal number also for a constant row, whose result is
    the bias. Where v overflows float32 the inverse square root is 0, as it is in the standard operators;
    NaN and infinite elements give NaN as there, and rows so large that their sum overflows may too.
    """

    segments: int = 256

    name: ClassVar[str] = "table-rsqrt"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Muller, Elementary Functions (3rd ed.), section 6.2, tables with linear interpolation; range "
        "reduction of roots: section 10.6"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "per row: an exponent shift, two table reads and a multiply-add",
        "gpu": "no gain: the hardware has an inverse square root",
        "fpga": "per row: a leading-zero count, two shifters, one block RAM of `segments` words, a multiplier",
        "he": "not applicable: needs shifts and comparisons",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {
        "LayerNormalization": TableRsqrtLayerNorm,
        "RMSNormalization": TableRsqrtRMSNorm,
    }

    def __post_init__(self) -> None:
        if not isinstance(self.segments, int) or not 2 <= self.segments <= 1 << 16:
            raise ValueError(f"segments must be an integer from 2 to 65536, not {self.segments!r}")

    def table(self) -> Table:
        """m^(-1/2) over [1, 4]."""
        return _table(self.segments)

    def bound(self) -> Bound:
        """The first step's error, and that of the entries; see the class."""
        h = 3 / self.segments
        value = 3 / 32 * h * h * (1 + h) ** 0.5 + 2 * 2.0**-25
        domain = "rows whose sum of squares is below 2^128; relative to the result without bias"
        return Bound(value, "relative", domain, Evidence.PROVED)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """The table: float32, `segments` + 1 entries."""
        return {"table": self.table().array()}

    def inverse_root(self, v: np.ndarray) -> np.ndarray:
        """See `RowNorm.inverse_root`."""
        mantissa, exponent = np.frexp(v)
        odd = (exponent - 1) % 2
        m, e = np.ldexp(mantissa, 1 + odd), (exponent - 1 - odd) // 2
        with np.errstate(over="ignore"):
            result: np.ndarray = np.where(v > LARGEST, 0.0, np.ldexp(self.table()(m), -e))
        return result


@functools.cache
def _table(segments: int) -> Table:
    return uniform_table(lambda m: m**-0.5, 1.0, 4.0, segments, curvature=0.75)
