"""LayerNorm and RMSNorm over rows, in integers.

Source: inverse square roots by range reduction and a table: Muller, Elementary Functions (3rd ed. 2016), sections 6.2
and 10.6.

With codes x_i of step u, n to a row, the mean never is divided out:

    LayerNorm   d_i = n x_i - sum x     Q = n sum x^2 - (sum x)^2      exactly n deviation and n^2 variance
    RMSNorm     d_i = x_i               Q = sum x^2                    exactly x and n mean square
    y_i = d_i (Q + E)^(-1/2) gamma_i + beta_i

with E = n^2 epsilon / u^2 for LayerNorm, and n epsilon / u^2 and a factor sqrt(n) in the table for RMSNorm. So the
first rounding is that of E, whose 2^-spare is small enough; then come the table's and those of the products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from lowerkit.numerics.functions import RSQRT
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.lookup import (
    FLOAT64,
    LARGEST_INDEX,
    Lookup,
    Piece,
    normalised,
    scaled,
    times,
)
from lowerkit.targets.fpga.lang.expr import Array, Expr, Range, Slice, clamp, round_shift
from lowerkit.targets.fpga.lang.program import Builder, Kernel

#: Fraction bits of the inverse root's mantissa, which is at most 1: an operand of a DSP block.
ROOT_BITS = 17
#: Bits behind the leading one that the inverse root sees.
ADDRESS_BITS = 16
#: Bits of the result before gamma beyond the output's.
GUARD = 3
#: Rounding epsilon is to change the root by less than 2^-20 of it.
EPSILON_BITS = 20


@dataclass(frozen=True)
class Normalised:
    """A kernel with input `x` and output `y`, rows along the last axis, and the bound of its error.

    With N(x) the normalised row in real numbers, without gamma and beta, and the result saturated to the output:
    |y - (N(x) gamma + beta)| <= slope |N(x)| + absolute. N is below sqrt(n), so that `worst` holds always.

    Attributes:
        root: the relative error of the inverse square root.
    """

    kernel: Kernel
    root: float
    slope: float
    absolute: float
    worst: float


@dataclass(frozen=True)
class _Sums:
    """Q 2^spare + E 2^spare, exact but for the rounding of E.

    Attributes:
        largest: of Q. With codes of |x| <= a over an interval of r: sum |x| <= n a and sum x^2 <= n a^2 by counting,
            and n^2 variance <= n^2 r^2 / 4 (Popoviciu).
        error: of E's rounding, relative to the root, for rows whose d is not all 0.
    """

    n: int
    largest: int
    spare: int
    epsilon: int
    error: float

    @classmethod
    def of(cls, n: int, source: Range, step: float, epsilon: float, rms: bool) -> _Sums:
        width = source.high - source.low
        size = max(abs(source.low), source.high)
        largest = n * size**2 if rms else n * n * width * width // 4
        wanted = (n if rms else n * n) * epsilon / step**2
        # The least Q of a row with any deviation: one code differs by one, n 1 - 1^2.
        least = 1 if rms else max(n - 1, 1)
        most = 60 - (2 * largest + math.ceil(wanted)).bit_length()
        if most < 0:
            raise ValueError(
                f"a row of {n} numbers from {source.low} to {source.high} needs too wide a sum of squares"
            )
        for spare in range(0, most + 1, 2):
            rounded = max(round(wanted * 2.0**spare), 1)
            error = (
                abs(rounded - wanted * 2.0**spare)
                / (min(rounded, wanted * 2.0**spare) + least * 2.0**spare)
                / 2
            )
            if error <= 2.0**-EPSILON_BITS:
                break
        return cls(n, largest, spare, rounded, error)


def normalise(
    name: str,
    shape: Sequence[int],
    source: Fixed,
    target: Fixed,
    *,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    rms: bool = False,
    epsilon: float = 1e-5,
    parameters: int = 16,
    index_bits: int = 8,
    interpolate: bool = True,
    guard: int = GUARD,
) -> Normalised:
    """LayerNorm, or RMSNorm, over the last axis.

    Args:
        shape: of input and output, without a batch axis.
        gamma, beta: [n], or None for ones and zeros; RMSNorm mostly has no beta.
        parameters: the width of their formats, whose fraction follows from their range.
        index_bits: the inverse square root has a table over [1, 4) of 2^index_bits words, half of them on [1, 2).
        guard: bits of products behind those of the output.

    A row without any deviation gives beta. The relative error of the root is the table's, 2^-(ROOT_BITS + 1) of its
    mantissa's rounding, half of what its address drops, and epsilon's; gamma and beta are rounded to half a step;
    products are rounded to 2^-(target.fraction + guard) and, at the end, to half an output step.
    """
    if not 2 <= index_bits <= LARGEST_INDEX:
        raise ValueError(f"index_bits must be from 2 to {LARGEST_INDEX}, not {index_bits}")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be above 0, not {epsilon!r}")
    n = shape[-1]
    sums = _Sums.of(n, source.range, source.step, epsilon, rms)
    scale = np.ones(n) if gamma is None else np.asarray(gamma, np.float64)
    shift = np.zeros(n) if beta is None else np.asarray(beta, np.float64)
    if scale.shape != (n,) or shift.shape != (n,):
        raise ValueError(f"gamma and beta must have {n} numbers, not {scale.shape} and {shift.shape}")
    finest = max(target.fraction, 0) + 12
    scales, shifts = _Parameters.of(scale, parameters, finest), _Parameters.of(shift, parameters, finest)
    table, rounding = _root_table(n, rms, index_bits, interpolate)
    root = (1 + table.error) * (1 + rounding) * (1 + sums.error) * (1 + 2.0 ** -(ADDRESS_BITS + 1)) - 1

    # What the product with gamma magnifies is rounded finer.
    size = float(np.abs(scale).max())
    fraction = max(target.fraction + guard + max(math.ceil(math.log2(size)) if size else 0, 0), 0)
    k = Builder(name, f"{'RMS' if rms else 'Layer'}Norm over rows of {n}, {source} to {target}.")
    x, y = k.input("x", shape, source.range), k.output("y", shape, target.range)
    gammas = k.constant(Array.constant(f"{name}_gamma", scales.codes)) if gamma is not None else None
    betas = k.constant(Array.constant(f"{name}_beta", shifts.codes)) if beta is not None else None
    with ExitStack() as loops:
        rows = tuple(loops.enter_context(k.loop(f"r{axis}", count)) for axis, count in enumerate(shape[:-1]))
        # Partial sums of n codes lie within n times a code's range (0 is in it), those of squares within n times
        # the square of the largest code.
        total = k.register("total", 0, Range(min(n * source.range.low, 0), n * source.range.high))
        squares = k.register("squares", 0, Range(0, n * max(abs(source.range.low), source.range.high) ** 2))
        with k.loop("i", n, serial=True, pipeline=True, label="sums") as i:
            code = k.let("code", x[(*rows, i)])
            if not rms:
                k.update(total, total + code)
            k.update(squares, squares + code * code)
        # Not negative, by Cauchy and Schwarz, and at most `largest`: the low bits are all of it.
        deviation = squares if rms else squares * n - total * total
        q = k.let("q", Slice(deviation, 0, sums.largest.bit_length()))
        mantissa, e = _inverse_root(k, k.let("v", (q << sums.spare) + sums.epsilon), table)
        # (2^spare V)^(-1/2) lacks 2^(spare / 2), and for RMSNorm the table sqrt(n)'s power of two.
        power = ROOT_BITS - sums.spare // 2 - fraction - (_half_log(n) if rms else 0)
        limit = (math.isqrt(n) + 1) << fraction
        with k.loop("j", n, pipeline=True, label="rows") as j:
            d = x[(*rows, j)] if rms else x[(*rows, j)] * n - total
            product = k.let("product", d * mantissa)
            # |N| <= sqrt(n), which interval arithmetic does not see: saturating cannot add to the error.
            unit = k.let("unit", clamp(scaled(product, e + power), -limit, limit))
            value: Expr = unit
            point = fraction
            if gammas is not None:
                value, point = unit * gammas[j], fraction + scales.format.fraction
            if betas is not None:
                common = max(point, shifts.format.fraction)
                value = (value << (common - point)) + (betas[j] << (common - shifts.format.fraction))
                point = common
            value = round_shift(value, point - target.fraction)
            k.store(y, (*rows, j), clamp(value, target.range.low, target.range.high))
    slope = (size + scales.error) * root + scales.error
    absolute = (size + scales.error) * 2.0 ** -(fraction + 1) + shifts.error + target.step / 2
    absolute += FLOAT64 * max(target.high, -target.low)
    return Normalised(k.finish(), root, slope, absolute, slope * math.sqrt(n) + absolute)


@dataclass(frozen=True)
class _Parameters:
    """Gamma or beta as codes, and by how much these are off at most."""

    codes: np.ndarray
    format: Fixed
    error: float

    @classmethod
    def of(cls, values: np.ndarray, width: int, finest: int) -> _Parameters:
        """In the finest format of `width` bits that holds them, with at most `finest` fraction bits."""
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        kind = Fixed.holding(low, high, width) if low < high else Fixed(width, width)
        if kind.fraction > finest:
            kind = Fixed(width, width - finest, kind.signed)
        codes = kind.quantise(values)
        return cls(codes, kind, float(np.abs(kind.dequantise(codes) - values).max()))


def _half_log(n: int) -> int:
    """m with sqrt(n) = c 2^m, c above 1/2 and at most 1."""
    return ((n - 1).bit_length() + 1) // 2


def _root_table(n: int, rms: bool, index_bits: int, interpolate: bool) -> tuple[Lookup, float]:
    """c m^(-1/2) on [1, 2), behind it c (2 m)^(-1/2), that is, on [2, 4); and the relative rounding to ROOT_BITS.

    c is 1 for LayerNorm, and sqrt(n) / 2^m for RMSNorm.
    """
    c = math.sqrt(n) / 2 ** _half_log(n) if rms else 1.0

    pieces = [Piece(times(RSQRT, c * factor**-0.5), 1.0, 2.0) for factor in (1.0, 2.0)]
    table = Lookup.make(
        pieces, ADDRESS_BITS + 1, index_bits, ROOT_BITS + 2, interpolate=interpolate, relative=True
    )
    return table, 2.0**-ROOT_BITS / c


def _inverse_root(k: Builder, v: Expr, table: Lookup) -> tuple[Expr, Expr]:
    """r and e with v^(-1/2) = r 2^-(ROOT_BITS + e), but for the table's factor; v is at least 1."""
    part, length = normalised(k, v, ADDRESS_BITS)
    exponent = k.let("exponent", length - 1)
    address = k.let("address", (Slice(exponent, 0, 1) << ADDRESS_BITS) + part)
    found = table.read(k, "root", address)
    mantissa = k.let("mantissa", round_shift(found, table.result_fraction - ROOT_BITS))
    return mantissa, exponent >> 1
