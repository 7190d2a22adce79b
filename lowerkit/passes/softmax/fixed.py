"""Softmax in integers, as programmable logic computes it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.base import SoftmaxMethod


@script(LOWERKIT, default_opset=op)
def FixedSoftmax(  # type: ignore[no-untyped-def]
    X,
    exponentials,
    reciprocals,
    axis: int = -1,
    steps: float = 256.0,
    ones: float = 32768.0,
    shift: float = 0.5,
):
    """Two table reads and a shift; every intermediate is an integer, which float64 holds exactly."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    x = op.Cast(X, to=11)
    q = op.Round(x * op.CastLike(op.Constant(value_float=steps), x))
    d = op.ReduceMax(q, axes) - q
    bad = op.IsNaN(d)
    zero = op.CastLike(0.0, x)
    last = op.CastLike(op.Size(exponentials) - 1, x)
    # The maximum of a row with NaN may be anything in onnxruntime, -inf too, and d negative.
    near = op.Max(op.Min(op.Where(bad, zero, d), last), zero)
    e = op.Cast(op.Gather(exponentials, op.Cast(near, to=7)), to=11)
    total = op.ReduceSum(e, axes)
    one = op.CastLike(1.0, total)
    two = one + one
    guess = op.Pow(two, op.Floor(op.Log(total) * 1.4426950408889634))
    # The logarithm's rounding may put it one power of two off.
    power = op.Where(total < guess, guess / two, op.Where(total >= guess * two, guess * two, guess))
    count = op.CastLike(op.Size(reciprocals), total)
    r = op.Cast(op.Gather(reciprocals, op.Cast(op.Floor((total / power - one) * count), to=7)), to=11)
    full = op.CastLike(op.Constant(value_float=ones), total)
    y = op.Floor(e * r / power * op.CastLike(op.Constant(value_float=shift), total) + one / two)
    # Maxima need not pass NaN on.
    nan = op.ReduceSum(op.Where(bad, d, zero), axes)
    return op.CastLike(op.Min(y, full) / full + nan, X)


@dataclass(frozen=True)
class Fixed(SoftmaxMethod):
    """Softmax in fixed point: an exponential by table, an exact sum, a reciprocal by table, a shift.

    Logits are rounded to `input_bits` fractional bits. The difference d >= 0 from the largest, an integer, is the
    index into a table of exp(-d) with `table_bits` fractional bits, which ends where its entries are 0. (A single
    pass with a running maximum and a rescaled sum arrives at the same integers' sum up to the roundings of the
    rescaling; here there are none.) The sum S = m 2^k, 1 <= m < 2, is normalised by a shift, the leading
    `reciprocal_bits` bits of m - 1 index a table of 1 / m in the middle of each interval, rounded to 16 bits, and
    the product is shifted by k and rounded to `output_bits` fractional bits.

    Error, in a row of n <= `longest` elements whose largest exponential is 1 and S >= 1:

    - rounded logits are off by h <= 2^-(input_bits + 1); along the segment between both, the derivative of p_i is
      at most p_i (1 - p_i) 2 h <= h / 2: in all 2^-(input_bits + 2);
    - entries are off by u <= 2^-(table_bits + 1), so p_i by at most (u + p_i n u) / S <= (1 + n) u;
    - the reciprocal is off by 2^-(reciprocal_bits + 1) for the interval's width, and 2^-16 for rounding, both
      relative, of a value up to 1;
    - the result by 2^-(output_bits + 1).

    Weights are non-negative multiples of 2^-output_bits, at most 1, keep the order of the logits, and the method is
    invariant to shifts by multiples of 2^-input_bits. As S is exact, a row of n sums to 1 within the reciprocal's
    error and n 2^-(output_bits + 1). Elements further below the largest than
    (table_bits + 1) ln 2 give 0, and so does -inf; rows of -inf alone, with NaN or with +inf give NaN, as Softmax
    does.
    """

    input_bits: int = 8
    table_bits: int = 20
    reciprocal_bits: int = 10
    output_bits: int = 15
    longest: int = 1024

    name: ClassVar[str] = "fixed"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Sarkar et al., Edge-MoE (ICCAD 2023), section IV: single-pass softmax in fixed point"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "two table reads and a product per element in float64: for reference, not for speed",
        "gpu": "as on a cpu",
        "fpga": "one table of (table_bits + 1) ln 2 2^input_bits words, one of 2^reciprocal_bits, one multiplier, II 1",
        "he": "not applicable: needs comparisons",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": FixedSoftmax}

    def __post_init__(self) -> None:
        for key, least, most in (
            ("input_bits", 1, 12),
            ("table_bits", 4, 24),
            ("reciprocal_bits", 1, 14),
            ("output_bits", 4, 24),
            ("longest", 1, 1 << 24),
        ):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{key} must be an integer from {least} to {most}, not {value!r}")

    def bound(self) -> Bound:
        """The sum of the four errors; see the class."""
        value = (
            2.0 ** -(self.input_bits + 2)
            + (1 + self.longest) * 2.0 ** -(self.table_bits + 1)
            + 2.0 ** -(self.reciprocal_bits + 1)
            + 2.0**-RECIPROCAL
            + 2.0 ** -(self.output_bits + 1)
        )
        domain = f"finite rows of up to {self.longest} elements, and -inf elements"
        return Bound(value, "absolute", domain, Evidence.PROVED)

    def refuses(self, node: ir.Node) -> str | None:
        """Rows longer than the bound allows for."""
        axis, shape = self.attributes(node)["axis"], node.inputs[0].shape if node.inputs[0] else None
        length = shape[int(axis)] if shape is not None else None
        if isinstance(length, int) and length > self.longest:
            return f"has rows of {length} elements to sum, more than longest = {self.longest}"
        return None

    def constants(self, node: ir.Node) -> dict[str, np.ndarray]:
        """Both tables: integers as float32."""
        exponentials, reciprocals = self.tables()
        return {
            "exponentials": exponentials.astype(np.float32),
            "reciprocals": reciprocals.astype(np.float32),
        }

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """exp(-d) and 1 / m as integers in float64, in units of 2^-table_bits and 2^-16."""
        return _tables(self.input_bits, self.table_bits, self.reciprocal_bits)

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, and the powers of two by which numbers are shifted."""
        return {
            **super().attributes(node),
            "steps": 2.0**self.input_bits,
            "ones": 2.0**self.output_bits,
            "shift": 2.0 ** (self.output_bits - RECIPROCAL),
        }

    def evaluate(self, x: np.ndarray, **attributes: Any) -> np.ndarray:
        """See `Method.evaluate`."""
        d, e = self.exponentials(x)
        result: np.ndarray = self.divide(e) + np.where(np.isnan(d), d, 0).sum(axis=-1, keepdims=True)
        return result

    def exponentials(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The differences d from the largest, which tell of NaN, and their exponentials, integers both."""
        table, _ = self.tables()
        # Logits arrive in float32.
        x = np.asarray(np.asarray(x, np.float32), np.float64)
        with np.errstate(invalid="ignore"):
            q = np.round(x * 2.0**self.input_bits)
            d = q.max(axis=-1, keepdims=True) - q
        return d, table[np.minimum(np.where(np.isnan(d), 0, d), len(table) - 1).astype(np.int64)]

    def divide(self, e: np.ndarray, total: np.ndarray | None = None) -> np.ndarray:
        """Integers `e` over their sum (or `total`), by the reciprocal's table."""
        _, reciprocals = self.tables()
        mantissa, exponent = np.frexp(e.sum(axis=-1, keepdims=True) if total is None else total)
        r = reciprocals[np.floor((2 * mantissa - 1) * len(reciprocals)).astype(np.int64)]
        y = np.floor(np.ldexp(e * r, self.output_bits - RECIPROCAL - (exponent - 1)) + 0.5)
        ones = 2.0**self.output_bits
        result: np.ndarray = np.minimum(y, ones) / ones
        return result


#: Fractional bits of the reciprocal.
RECIPROCAL = 16


@functools.cache
def _tables(input_bits: int, table_bits: int, reciprocal_bits: int) -> tuple[np.ndarray, np.ndarray]:
    last = math.ceil((table_bits + 1) * math.log(2) * 2**input_bits)
    exponentials = np.round(np.exp(-np.arange(last + 1) / 2.0**input_bits) * 2.0**table_bits)
    exponentials[-1] = 0  # half a unit or less
    return exponentials, reciprocal_table(reciprocal_bits)


def reciprocal_table(bits: int) -> np.ndarray:
    """1 / m in the middle of each of 2^bits intervals of [1, 2), in units of 2^-16, in float64."""
    middles = 1 + (np.arange(2**bits) + 0.5) / 2**bits
    table: np.ndarray = np.round(2.0**RECIPROCAL / middles)
    return table
