"""Softmax in integers with an integer running maximum, so that one pass rescales by shifts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OnnxFunction, script

from lowerkit.graph.domain import LOWERKIT, op
from lowerkit.passes.base import Bound, Contract, Evidence
from lowerkit.passes.softmax.fixed import RECIPROCAL, Fixed, reciprocal_table

#: log2(e) in two float32 numbers, whose products with a float32 are exact in float64.
HIGH = 1.4426950216293335
LOW = 1.925963033500011e-08


@script(LOWERKIT, default_opset=op)
def ShiftSoftmax(  # type: ignore[no-untyped-def]
    X,
    exponentials,
    reciprocals,
    axis: int = -1,
    steps: float = 256.0,
    last: float = 6144.0,
    ones: float = 32768.0,
    shift: float = 0.5,
):
    """FixedSoftmax in base 2 below an integer maximum; every intermediate is an integer, exact in float64."""
    axes = op.Unsqueeze(op.Constant(value_int=axis), op.Constant(value_ints=[0]))
    x = op.Cast(X, to=11)
    unit = op.CastLike(op.Constant(value_float=steps), x)
    q = op.Round((x * 1.4426950216293335 + x * 1.925963033500011e-08) * unit)
    d = op.Ceil(op.ReduceMax(q, axes) / unit) * unit - q
    bad = op.IsNaN(d)
    zero = op.CastLike(0.0, x)
    # The maximum of a row with NaN may be anything in onnxruntime, -inf too, and d negative.
    near = op.Max(op.Min(op.Where(bad, zero, d), op.CastLike(op.Constant(value_float=last), x)), zero)
    whole = op.Floor(near / unit)
    one = op.CastLike(1.0, x)
    two = one + one
    entry = op.Cast(op.Gather(exponentials, op.Cast(near - whole * unit, to=7)), to=11)
    e = op.Floor(entry / op.Pow(two, whole) + one / two)
    total = op.ReduceSum(e, axes)
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
class Shift(Fixed):
    """Softmax in fixed point and base 2, with an integer for the maximum: every rescaling is a shift.

    Logits are scaled by log2(e), a constant that folds into the scale before them, and rounded to b = `input_bits`
    fractional bits: u. With M = ceil(max u), an integer, M - u = s + f splits into s, its integer part, and f, its
    fraction of b bits, the index into a table of the 2^b values T = 2^-f, rounded to B = `table_bits` bits. The
    element's exponential is e = T 2^-s, shifted and rounded (halves up) to the same B bits. The sum S of these
    integers is exact; it is divided by as in `fixed`: normalised by a shift, a table of reciprocals, a product, a
    shift. Ceil and not floor, so that nothing exceeds 1 and S needs B + log2(n) bits: 32 at the defaults. The
    element that is largest has e >= 1/2, since M - u < 1 there, so that S >= 1/2.

    Error, in a row of n <= `longest` elements, with w = 2^(u - M) what e stands for, W its sum, and p = w / W:

    - rounded logits are off by h <= 2^-(b + 1) octaves, h ln 2 in units of e; as in `fixed` that changes
      p by at most h ln(2) / 2: in all 2^-(b + 2) ln 2;
    - entries are off by 2^-(B + 1), halved by the first shift, which adds 2^-(B + 1) of its own: |e - w| <= v =
      (3/4) 2^-B, beyond the last shift (s > B + 1, e = 0) too. And e_i / S - p_i is the sum over j of
      (e_j - w_j)(delta_ij - p_i), over S: at most v max(1 - p_i + p_i (n - 1)) / S <= 2 v max(1, n - 1);
    - the reciprocal is off by 2^-(reciprocal_bits + 1) for the interval's width, and 2^-16 for rounding, both
      relative, of a value up to 1;
    - the result by 2^-(output_bits + 1).

    To these 2^-24 is added for the logits' scaling in float64. It is off by half a unit of the last place,
    2^-24 octaves, up to 2^29 in size; float32 logits beyond that are equal or 32 apart, and then e = 0 is right.

    One pass. With the maximum m so far, S starts at 0 and takes an element as

        m' = max(m, ceil(u));  S = (S >> (m' - m)) + e(m' - u);

    the shift rounds halves up, as that of the entries does. An element's part of S is then its entry rounded
    after the shift that the maximum of its time called for, v off at most (scaled by later shifts), and a shift of S
    is off by half a unit, itself halved by every later one: less than 1 unit in all. `evaluate` takes the last
    maximum for all, which no order of the elements changes. The two sums differ by less than 3 (n - 1) / 4 + 1
    units of 2^-B: an entry rounded after part of a shift and scaled by the rest, and after all of it, differ by at
    most 1/4 + 1/2 units, and not at all where the maximum stayed; and S >= 1/2 for both. The single pass has the
    error above with 2 (v (n + 1) + 2^-B) in the place of 2 v max(1, n - 1), `streaming_bound`: from
    e_i / S - p_i = (e_i - w_i - p_i (S - W)) / S. For n > 1 that is 5 units of 2^-B more.

    Weights are non-negative multiples of 2^-output_bits, at most 1, and keep the order of the logits. A row sums to
    1 within the reciprocal's error and n 2^-(output_bits + 1), because S is the sum of just these integers. Unlike
    `fixed`, a shift of all logits may change the fractions, and results within the bound; shifts of u by integers
    change nothing. -inf gives 0; rows of -inf alone, with NaN or with +inf give NaN, as Softmax does.
    """

    table_bits: int = 22

    name: ClassVar[str] = "shift"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    source: ClassVar[str] = (
        "Stevens et al., Softermax (DAC 2021): base 2 with an integer running maximum; the single pass in fixed "
        "point also in Sarkar et al., Edge-MoE (ICCAD 2023), there in base e with multiplications"
    )
    cost: ClassVar[Mapping[str, str]] = {
        "cpu": "two table reads, a power of two and a product per element in float64: for reference, not for speed",
        "gpu": "as on a cpu",
        "fpga": "one pass, II 1: a table of 2^input_bits words, two shifters, one adder; then one multiplier to divide",
        "he": "not applicable: needs comparisons",
    }
    functions: ClassVar[Mapping[str, OnnxFunction]] = {"Softmax": ShiftSoftmax}

    def bound(self) -> Bound:
        """The sum of the errors; see the class."""
        domain = f"finite rows of up to {self.longest} elements, and -inf elements"
        return Bound(self._error(1.5 * max(1, self.longest - 1)), "absolute", domain, Evidence.PROVED)

    def streaming_bound(self) -> float:
        """`bound` for the single pass; see the class."""
        return self._error(1.5 * (self.longest + 1) + 2)

    def _error(self, units: float) -> float:
        return (
            2.0 ** -(self.input_bits + 2) * float(np.log(2))
            + units * 2.0**-self.table_bits
            + 2.0 ** -(self.reciprocal_bits + 1)
            + 2.0**-RECIPROCAL
            + 2.0 ** -(self.output_bits + 1)
            + 2.0**-24
        )

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """2^-f and 1 / m as integers in float64, in units of 2^-table_bits and 2^-16."""
        return _tables(self.input_bits, self.table_bits, self.reciprocal_bits)

    @property
    def last(self) -> float:
        """A difference, in steps, from which on exponentials are 0."""
        return (self.table_bits + 2) * 2.0**self.input_bits

    def attributes(self, node: ir.Node) -> dict[str, int | float]:
        """`axis`, `last`, and the powers of two by which numbers are shifted."""
        return {**super().attributes(node), "last": self.last}

    def logits(self, x: np.ndarray) -> np.ndarray:
        """u, in steps of 2^-input_bits: integers in float64."""
        # Logits arrive in float32.
        x = np.asarray(np.asarray(x, np.float32), np.float64)
        return np.round((x * HIGH + x * LOW) * 2.0**self.input_bits)

    def exponentials(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Fixed.exponentials`; d is from the integer maximum."""
        table, _ = self.tables()
        steps = 2.0**self.input_bits
        q = self.logits(x)
        with np.errstate(invalid="ignore"):
            d = np.ceil(q.max(axis=-1, keepdims=True) / steps) * steps - q
        near = np.minimum(np.where(np.isnan(d), 0, d), self.last).astype(np.int64)
        return d, np.floor(np.ldexp(table[near % len(table)], -(near // len(table))) + 0.5)


@functools.cache
def _tables(input_bits: int, table_bits: int, reciprocal_bits: int) -> tuple[np.ndarray, np.ndarray]:
    fractions = np.arange(2**input_bits) / 2.0**input_bits
    return np.round(np.exp2(-fractions) * 2.0**table_bits), reciprocal_table(reciprocal_bits)
