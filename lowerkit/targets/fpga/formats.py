"""Fixed-point formats, with the rounding and overflow of ap_fixed."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lowerkit.targets.fpga.lang.expr import Range

ROUNDINGS = ("floor", "half-up", "half-even")
_TEXT = re.compile(r"ap_(u?)fixed<\s*(\d+)\s*,\s*(-?\d+)\s*>")


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
        scaled = np.asarray(x, np.float64) * 2.0**self.fraction
        if np.isnan(scaled).any():
            raise ValueError("NaN has no fixed-point number")
        if rounding == "floor":
            whole = np.floor(scaled)
        elif rounding == "half-up":
            whole = np.floor(scaled + 0.5)
        elif rounding == "half-even":
            whole = np.round(scaled)
        else:
            raise ValueError(f"no rounding {rounding!r}; there are {', '.join(ROUNDINGS)}")
        return np.clip(whole, self.range.low, self.range.high).astype(np.int64)

    def dequantise(self, k: np.ndarray) -> np.ndarray:
        """The numbers that integers stand for, float64."""
        return np.asarray(k, np.float64) * self.step

    def __str__(self) -> str:
        return f"ap_{'' if self.signed else 'u'}fixed<{self.width},{self.integer}>"
