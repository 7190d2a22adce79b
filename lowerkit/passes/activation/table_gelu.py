"""GELU as ReLU minus a table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.numerics.tables import Table, uniform_table
from lowerkit.passes.activation.base import BUMP_CURVATURE, GeluMethod, bump, is_tanh
from lowerkit.passes.base import Bound, Contract, Evidence


@script(LOWERKIT, default_opset=op)
def TableGelu(X, table, limit: float = 6.0):  # type: ignore[no-untyped-def]
    """max(x, 0) - table(|x|), linear between entries over [0, limit], the last entry beyond."""
    segments = op.Shape(table) - 1
    end = op.CastLike(op.Constant(value_float=limit), X)
    position = op.Min(op.Abs(X), end) * (op.CastLike(segments, X) / end)
    index = op.Max(op.Min(op.Cast(op.Floor(position), to=7), segments - 1), 0)
    left = op.Gather(table, index)
    step = op.Gather(table, index + 1) - left
    # A maximum would lose NaN on hardware where max(NaN, 0) is 0.
    relu = op.Where(X < 0.0, op.CastLike(0.0, X), X)
    return relu - (left + (position - op.CastLike(index, X)) * step)


@dataclass(frozen=True)
class TableGeluMethod(GeluMethod):
    """GELU(x) = max(x, 0) - g(|x|) with g, a smooth bump, read from a table with linear interpolation.

    The table has `segments` equal steps h = limit / segments over [0, limit]; beyond it the last entry holds.
    Linear interpolation errs by at most h^2/8 max|g''| with |g''| <= 2 phi(0) = 0.798, and entries rounded to
    float32 add at most the largest of their roundings. Beyond the limit, where 0 <= g(|x|) <= g(limit), the
    last entry errs by at most g(limit) and its rounding. The error is the same on both sides of zero, and
    exactly 0 at 0.

    NaN gives NaN and +inf gives +inf. At -inf, where the formula of Gelu gives -inf * 0 = NaN, the result is
    that of any x below -limit: -g(limit), a number near 0.
    """

    segments: int = 256
    limit: float = 6.0

    name: ClassVar[str] = "table"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Sarkar et al., Edge-MoE (ICCAD 2023), section IV: GELU as ReLU minus a table of |x|"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "two table reads and a multiply-add per element; a gather where there are no vector tables",
        "gpu": "two reads of shared memory and a multiply-add per element",
        "fpga": "one dual-ported block RAM of `segments` words, one multiplier, II 1",
        "he": "not applicable: needs comparisons",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Gelu": TableGelu}

    def __post_init__(self) -> None:
        if not isinstance(self.segments, int) or not 2 <= self.segments <= 1 << 16:
            raise ValueError(f"segments must be an integer from 2 to 65536, not {self.segments!r}")
        if not isinstance(self.limit, (int, float)) or not 1 <= self.limit <= 64:
            raise ValueError(f"limit must be a number from 1 to 64, not {self.limit!r}")

    def table(self, tanh: bool = False) -> Table:
        """The table of g for one of the two forms."""
        return _table(self.segments, float(self.limit), tanh)

    def bound(self) -> Bound:
        """The larger of the two forms' bounds."""
        inside = max(self.table(tanh).error for tanh in (False, True))
        beyond = max(float(bump(np.array([self.limit]), tanh)[0]) for tanh in (False, True))
        return Bound(max(inside, beyond * (1 + 2.0**-24)), "absolute", "all finite x", Evidence.PROVED)

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """The table of the node's form: float32, `segments` + 1 entries."""
        return {"table": self.table(is_tanh(node)).array()}

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`limit`."""
        return {"limit": float(self.limit)}

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`; `tanh=True` for the tanh form."""
        x = np.asarray(x, np.float64)
        result: np.ndarray = np.maximum(x, 0) - self.table(bool(attributes.get("tanh")))(np.abs(x))
        return result


@functools.cache
def _table(segments: int, limit: float, tanh: bool) -> Table:
    return uniform_table(lambda a: bump(a, tanh), 0.0, limit, segments, curvature=BUMP_CURVATURE)
