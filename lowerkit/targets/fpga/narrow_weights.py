"""Narrow formats for weights: one scale for each column, which multiplies the sum and not its terms.

Sources: binary weights: Rastegari et al., XNOR-Net (ECCV 2016), section 3.1; ternary ones: Li et al., Ternary Weight
Networks (2016), section 2.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from lowerkit.targets.fpga.formats import Affine, Bipolar, Fixed, Format

#: Significant bits of a scale: one input of a multiplier, which keeps requantisation narrow.
SCALE_BITS = 12
#: The scale of a column of zeros.
LEAST = 2.0**-40
#: Of the mean magnitude: smaller weights become 0 in a ternary column.
THRESHOLD = 0.7

Coding = tuple[np.ndarray, list[Format]]


def coding(kind: str) -> Callable[[np.ndarray], Coding]:
    """What brings weights [inner, columns] to codes and a format for each column.

    Kinds: `int2` to `int16`, symmetric; `ternary`; `binary`; or a fixed-point format, in which weights saturate.
    Raises ValueError for any other.
    """
    text = kind.strip()
    if text == "binary":
        return _binary
    if text == "ternary":
        return _ternary
    if whole := re.fullmatch(r"int(\d+)", text):
        width = int(whole[1])
        if not 2 <= width <= 16:
            raise ValueError(f"weights of {width} bits; 2 to 16 are possible")
        return lambda weights: _whole(weights, width)
    try:
        form = Fixed.parse(text)
    except ValueError:
        raise ValueError(
            f"{kind!r} is no format of weights; write int8, ternary, binary or ap_fixed<8,2>"
        ) from None
    return lambda weights: (form.quantise(weights), [form] * weights.shape[1])


def _whole(weights: np.ndarray, width: int) -> Coding:
    most = (1 << (width - 1)) - 1
    scales = [_scale(float(np.abs(column).max()) / most) for column in weights.T]
    formats: list[Format] = [Affine(width, scale, narrow=True) for scale in scales]
    return np.stack([f.quantise(c) for f, c in zip(formats, weights.T, strict=True)], 1), formats


def _ternary(weights: np.ndarray) -> Coding:
    """The sign of what is above the threshold, times the mean magnitude of that."""
    sizes = np.abs(weights)
    kept = sizes > THRESHOLD * sizes.mean(0)
    means = (sizes * kept).sum(0) / np.maximum(kept.sum(0), 1)
    codes = np.where(kept, np.sign(weights), 0).astype(np.int64)
    return codes, [Affine(2, _scale(float(mean)), narrow=True) for mean in means]


def _binary(weights: np.ndarray) -> Coding:
    """The sign times the mean magnitude."""
    codes = np.where(weights < 0, -1, 1).astype(np.int64)
    return codes, [Bipolar(_scale(float(mean))) for mean in np.abs(weights).mean(0)]


def _scale(number: float) -> float:
    """The next number of `SCALE_BITS` significant bits that is not smaller."""
    mantissa, exponent = math.frexp(max(number, LEAST))
    return math.ldexp(math.ceil(math.ldexp(mantissa, SCALE_BITS)), exponent - SCALE_BITS)
