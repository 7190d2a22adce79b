"""Powers of two, logarithms, products and quotients that are additions of floating-point bit patterns.

A positive float is m 2^k with 1 <= m < 2, and its bit pattern, read as an integer, is (bias + k + (m - 1)) 2^23 in
float32. So log2 with its graph's chords between powers of two, palog2(m 2^k) = k + m - 1, is the bit pattern but for
a constant, and the sum of two bit patterns is the pattern of an approximate product (Mitchell, 1962).
"""

from __future__ import annotations

import math

import numpy as np

#: The largest ratio of paexp2(u) to 2^u: (1 + f) 2^-f at f = 1 / ln 2 - 1 is 2 / (e ln 2) = 2^0.0861.
WORST = 2 / (math.e * math.log(2))
#: float32: the bits of a mantissa, and the pattern of 1.
_MANTISSA = 23
_ONE = 127 << _MANTISSA
_INFINITY = 255 << _MANTISSA


def paexp2(u: np.ndarray) -> np.ndarray:
    """(1 + u - floor u) 2^(floor u) in float64: exact at integers, affine between, rising. 0 for -inf.

    With f = u - floor u, paexp2(u) / 2^u = (1 + f) 2^-f: 1 at both ends, concave in its logarithm, and thus
    between 1 and its value where the derivative 1 / (1 + f) - ln 2 is 0, `WORST`.
    """
    u = np.asarray(u, np.float64)
    whole = np.where(np.isfinite(u), np.floor(u), 0.0)
    # No float64 has larger exponents.
    near = np.clip(whole, -1100, 1100).astype(np.int64)
    with np.errstate(over="ignore", under="ignore"):
        result: np.ndarray = np.ldexp(1 + (np.where(np.isfinite(u), u, 0.0) - whole), near)
    return np.where(np.isfinite(u), result, np.where(u == -np.inf, 0.0, u))


def palog2(x: np.ndarray) -> np.ndarray:
    """The inverse of `paexp2`, k + m - 1 for x = m 2^k with 1 <= m < 2, in float64. -inf for 0, NaN below."""
    x = np.asarray(x, np.float64)
    good = np.isfinite(x) & (x > 0)
    mantissa, exponent = np.frexp(np.where(good, x, 1.0))
    result = (exponent - 1) + (2 * mantissa - 1)
    special = np.where(x == 0, -np.inf, np.where(x > 0, x, np.nan))
    return np.where(good, result, special)


def pamul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """paexp2(palog2 |a| + palog2 |b|) with the product's sign: between 8/9 and 1 times a b, in float64.

    The mantissas 1 + f and 1 + g have the product 1 + f + g + f g, and f + g is what is left of it: the
    ratio (1 + f + g) / (1 + f + g + f g), or 2 (f + g) / (...) where f + g >= 1, is least at f = g = 1/2.
    """
    with np.errstate(invalid="ignore"):
        return _with_sign(paexp2(palog2(np.abs(a)) + palog2(np.abs(b))), a, b)


def padiv(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """paexp2(palog2 |a| - palog2 |b|) with the quotient's sign: between 1 and 9/8 times a / b, in float64.

    It is the inverse of `pamul`: pamul(padiv(a, b), b) = a, whence the range.
    """
    with np.errstate(invalid="ignore"):
        return _with_sign(paexp2(palog2(np.abs(a)) - palog2(np.abs(b))), a, b)


def paexp2_bits(fixed: np.ndarray) -> np.ndarray:
    """`paexp2` of integers in units of 2^-23, as float32 by one integer addition.

    Powers below 2^-126 are 0 and those from 2^128 are inf: the exponent saturates.
    """
    bits = np.asarray(fixed, np.int64) + _ONE
    bits = np.where(bits < 1 << _MANTISSA, 0, np.minimum(bits, _INFINITY))
    return bits.astype(np.int32).view(np.float32)


def palog2_bits(x: np.ndarray) -> np.ndarray:
    """`palog2` of positive normal float32, as integers in units of 2^-23, by one integer subtraction."""
    return _pattern(x) - _ONE


def pamul_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`pamul` of normal float32, as float32: bit patterns added, signs by exclusive or."""
    return _with_sign(paexp2_bits(_pattern(a) + _pattern(b) - 2 * _ONE), a, b)


def padiv_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`padiv` of normal float32, as float32: bit patterns subtracted, signs by exclusive or."""
    return _with_sign(paexp2_bits(_pattern(a) - _pattern(b)), a, b)


def _pattern(x: np.ndarray) -> np.ndarray:
    """The bit pattern of |x|; 64 bits wide, so that sums saturate rather than wrap."""
    return np.abs(np.asarray(x, np.float32)).view(np.int32).astype(np.int64)


def _with_sign(magnitude: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(np.signbit(a) ^ np.signbit(b), -magnitude, magnitude)
