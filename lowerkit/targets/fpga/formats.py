"""Number formats: fixed point, with the rounding and overflow of ap_fixed, and affine codes with a scale of their own.

Every format says what number a code k stands for, scale (k - zero), and rounds numbers to codes. Scales are exact:
that of a fixed-point format is a power of two, that of an affine one a float32.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from lowerkit.targets.fpga.lang.expr import Range

ROUNDINGS = ("floor", "half-up", "half-even")
_TEXT = re.compile(r"ap_(u?)fixed<\s*(\d+)\s*,\s*(-?\d+)\s*>")
_AFFINE = re.compile(r"(u?)int(\d+)<\s*([^,<>\s]+)\s*,\s*(-?\d+)\s*(,\s*narrow\s*)?>")
_BIPOLAR = re.compile(r"bipolar<\s*([^,<>\s]+)\s*>")


@dataclass(frozen=True)
class Fixed:
    """Numbers k / 2^fraction, k an integer of `width` bits: ap_fixed<width, width - fraction>, or ap_ufixed.

    `integer` bits stand before the point, the sign among them; it may be negative or above `width`.
    """

    width: int
    integer: int
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 48:
            raise ValueError(f"a format of {self.width} bits; 1 to 48 are possible")
        if not -64 <= self.integer <= 64:
            raise ValueError(f"a format with {self.integer} integer bits; -64 to 64 are possible")

    @classmethod
    def parse(cls, text: str) -> Fixed:
        """From `ap_fixed<16,6>`, `ap_ufixed<8,0>`, or `int8` and `uint8`, whole numbers. Raises ValueError."""
        found = _TEXT.fullmatch(text.strip())
        if found:
            return cls(int(found[2]), int(found[3]), found[1] == "")
        whole = re.fullmatch(r"(u?)int(\d+)", text.strip())
        if whole:
            return cls(int(whole[2]), int(whole[2]), whole[1] == "")
        raise ValueError(f"{text!r} is no format; write ap_fixed<16,6>, ap_ufixed<8,0>, int8 or uint8")

    @classmethod
    def holding(cls, low: float, high: float, width: int) -> Fixed:
        """The format of `width` bits with the most fraction bits that holds [low, high]."""
        signed = low < 0
        for integer in range(-62, 64):
            candidate = cls(width, integer, signed)
            if candidate.low <= low and high <= candidate.high:
                return candidate
        raise ValueError(f"no format of {width} bits holds {low:g} to {high:g}")

    @property
    def fraction(self) -> int:
        """Bits after the point."""
        return self.width - self.integer

    @property
    def step(self) -> float:
        """The distance of two neighbours."""
        return float(2.0**-self.fraction)

    @property
    def scale(self) -> Fraction:
        """The step, exactly."""
        return Fraction(2) ** -self.fraction

    @property
    def zero(self) -> int:
        """The code of the number 0."""
        return 0

    def times(self, exponent: int) -> Fixed:
        """The format of numbers 2^exponent times as large."""
        return replace(self, integer=self.integer + exponent)

    @property
    def range(self) -> Range:
        """The integers k."""
        if self.signed:
            return Range(-(1 << (self.width - 1)), (1 << (self.width - 1)) - 1)
        return Range(0, (1 << self.width) - 1)

    @property
    def low(self) -> float:
        """The least number."""
        return self.range.low * self.step

    @property
    def high(self) -> float:
        """The greatest number."""
        return self.range.high * self.step

    def quantise(self, x: np.ndarray, rounding: str = "half-even") -> np.ndarray:
        """The integers k nearest to x, saturated; int64. Raises ValueError for NaN."""
        whole = _rounded(np.asarray(x, np.float64) * 2.0**self.fraction, rounding)
        codes: np.ndarray = np.clip(whole, self.range.low, self.range.high).astype(np.int64)
        return codes

    def dequantise(self, k: np.ndarray) -> np.ndarray:
        """The numbers that integers stand for, float64."""
        numbers: np.ndarray = np.asarray(k, np.float64) * self.step
        return numbers

    def __str__(self) -> str:
        return f"ap_{'' if self.signed else 'u'}fixed<{self.width},{self.integer}>"


@dataclass(frozen=True)
class Affine:
    """Numbers step (k - zero), k an integer of `width` bits: QuantizeLinear's codes, and those of QONNX's Quant.

    Attributes:
        step: greater than 0, of float32's precision.
        narrow: without the code -2^(width - 1), or without the largest where codes are unsigned.
    """

    width: int
    step: float
    zero: int = 0
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.width <= 32:
            raise ValueError(f"an affine format of {self.width} bits; 2 to 32 are possible")
        _check_step(self.step)
        if not self.range.low <= self.zero <= self.range.high:
            raise ValueError(
                f"the code of 0, {self.zero}, is not within {self.range.low} to {self.range.high}"
            )

    @property
    def scale(self) -> Fraction:
        """The step, exactly."""
        return Fraction(self.step)

    @property
    def fraction(self) -> int:
        """No number of bits stands behind the point. Raises ValueError: for kernels of fixed point alone."""
        raise ValueError(f"no kernel for numbers of the format {self}")

    @property
    def range(self) -> Range:
        """The integers k."""
        full = 1 << self.width
        if self.signed:
            return Range(int(self.narrow) - full // 2, full // 2 - 1)
        return Range(0, full - 1 - int(self.narrow))

    @property
    def low(self) -> float:
        """The least number."""
        return (self.range.low - self.zero) * self.step

    @property
    def high(self) -> float:
        """The greatest number."""
        return (self.range.high - self.zero) * self.step

    def times(self, exponent: int) -> Affine:
        """The format of numbers 2^exponent times as large."""
        return replace(self, step=math.ldexp(self.step, exponent))

    def quantise(self, x: np.ndarray, rounding: str = "half-even") -> np.ndarray:
        """round(x / step) + zero, saturated; int64. Raises ValueError for NaN.

        The quotient of two float32 lies no closer to a tie, unless it is one, than float64 can tell.
        """
        whole = _rounded(np.asarray(x, np.float64) / self.step, rounding) + self.zero
        codes: np.ndarray = np.clip(whole, self.range.low, self.range.high).astype(np.int64)
        return codes

    def dequantise(self, k: np.ndarray) -> np.ndarray:
        """The numbers that integers stand for, float64."""
        numbers: np.ndarray = (np.asarray(k, np.float64) - self.zero) * self.step
        return numbers

    def __str__(self) -> str:
        narrow = ",narrow" if self.narrow else ""
        return f"{'' if self.signed else 'u'}int{self.width}<{self.step!r},{self.zero}{narrow}>"


@dataclass(frozen=True)
class Bipolar:
    """The two numbers step and -step, codes 1 and -1."""

    step: float

    def __post_init__(self) -> None:
        _check_step(self.step)

    width: ClassVar[int] = 2
    zero: ClassVar[int] = 0
    signed: ClassVar[bool] = True

    @property
    def scale(self) -> Fraction:
        """The greater number, exactly."""
        return Fraction(self.step)

    @property
    def fraction(self) -> int:
        """No number of bits stands behind the point. Raises ValueError: for kernels of fixed point alone."""
        raise ValueError(f"no kernel for numbers of the format {self}")

    @property
    def range(self) -> Range:
        """From -1 to 1."""
        return Range(-1, 1)

    @property
    def low(self) -> float:
        """The lesser number."""
        return -self.step

    @property
    def high(self) -> float:
        """The greater number."""
        return self.step

    def times(self, exponent: int) -> Bipolar:
        """The format of numbers 2^exponent times as large."""
        return Bipolar(math.ldexp(self.step, exponent))

    def quantise(self, x: np.ndarray, rounding: str = "half-even") -> np.ndarray:
        """1 from 0 on, -1 below; int64, whatever the rounding. Raises ValueError for NaN."""
        numbers = np.asarray(x, np.float64)
        if np.isnan(numbers).any():
            raise ValueError("NaN has no code")
        return np.where(numbers >= 0, 1, -1).astype(np.int64)

    def dequantise(self, k: np.ndarray) -> np.ndarray:
        """The numbers that integers stand for, float64."""
        return np.asarray(k, np.float64) * self.step

    def __str__(self) -> str:
        return f"bipolar<{self.step!r}>"


Format = Fixed | Affine | Bipolar


def parse(text: str) -> Format:
    """A format from its text: those of `Fixed.parse`, `int8<scale,zero>` and `bipolar<scale>`. Raises ValueError."""
    affine, bipolar = _AFFINE.fullmatch(text.strip()), _BIPOLAR.fullmatch(text.strip())
    if affine:
        return Affine(
            int(affine[2]), float(affine[3]), int(affine[4]), affine[1] == "", affine[5] is not None
        )
    return Bipolar(float(bipolar[1])) if bipolar else Fixed.parse(text)


def _check_step(step: float) -> None:
    if not (step > 0 and math.isfinite(step)) or float(np.float32(step)) != step:
        raise ValueError(f"a scale of {step!r}; it must be a positive float32 number")


def _rounded(scaled: np.ndarray, rounding: str) -> np.ndarray:
    """Whole numbers, float64. Raises ValueError for NaN."""
    if np.isnan(scaled).any():
        raise ValueError("NaN has no code")
    if rounding == "floor":
        whole: np.ndarray = np.floor(scaled)
    elif rounding == "half-up":
        whole = np.floor(scaled + 0.5)
    elif rounding == "half-even":
        whole = np.round(scaled)
    else:
        raise ValueError(f"no rounding {rounding!r}; there are {', '.join(ROUNDINGS)}")
    return whole
