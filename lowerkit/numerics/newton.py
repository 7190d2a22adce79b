"""The inverse square root by a linear start and scaled Newton steps, with a proved bound."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

#: Operators have room for this many steps; unused ones are (1, 0), which changes nothing.
STEPS = 10
#: More than float64 loses below, where no difference is small.
SLACK = 1e-12
#: Eight roundings of float64.
ROUNDING = 8 * 2.0**-53


@dataclass(frozen=True)
class InverseRoot:
    """y = slope v + shift, then y <- y (a - b v y^2) for every (a, b) of `steps`, for v in [low, high].

    With y = u v^(-1/2) both are about u alone. The start gives u = (slope v + shift) v^(1/2), where slope < 0:
    its only extremum for v > 0 is a maximum, at v = -shift / (3 slope), so that over the range u lies between
    the lesser of its values at the ends and that maximum. A step makes g(u) = u (a - b u^2) of u, with one
    maximum at u = (a / 3 b)^(1/2), so that it takes an interval of u to the interval between the lesser value
    at the ends and that maximum, where it lies inside. The error is the last interval's distance from 1.

    shift / slope = -(low + (low high)^(1/2) + high) makes the two ends equal, which gives the least ratio of
    the interval's ends. From [l, h] the scaled step takes a = 3 s / 2, b = s^3 / 2, Newton's for s u, with
    s^2 = 3 / (l^2 + l h + h^2): it gives l and h the same value, again the least ratio there is. Far from the
    root u grows by up to 3^(3/2) / 2 = 2.6 per step, against Newton's 1.5. The last step is also scaled to
    have errors of both signs alike.

    Attributes:
        error: proved bound of |u - 1| after the last step, for the coefficients as rounded to float32.
    """

    slope: float
    shift: float
    steps: tuple[tuple[float, float], ...]
    error: float

    def start(self, v: np.ndarray) -> np.ndarray:
        """The first y, float64."""
        return self.slope * v + self.shift

    def array(self) -> np.ndarray:
        """Slope, shift, and `STEPS` pairs, as float32."""
        pairs = [*self.steps, *[(1.0, 0.0)] * (STEPS - len(self.steps))]
        return np.array([self.slope, self.shift, *(number for pair in pairs for number in pair)], np.float32)


@functools.cache
def inverse_root(low: float, high: float, steps: int) -> InverseRoot:
    """The iteration for [low, high], its coefficients float32; at least one step."""
    total = low + math.sqrt(low * high) + high
    slope = _float32(-1 / (total * math.sqrt(total)))
    shift = _float32(1 / math.sqrt(total))
    # Differences of numbers near each other lose what these two take off; the rest is far below SLACK.
    ends = [(slope * v + shift * (1 - ROUNDING)) * math.sqrt(v) for v in (low, high)]
    top = -shift / (3 * slope)
    least, most = min(ends), (slope * top + shift) * math.sqrt(top)
    made = []
    for step in range(steps):
        if least <= 0:  # float32 cannot tell the start from 0 on so wide a range
            return InverseRoot(slope, shift, ((1.0, 0.0),) * steps, math.inf)
        least, most = least * (1 - SLACK), most * (1 + SLACK)
        s = math.sqrt(3 / (least**2 + least * most + most**2))
        scale = 1.0 if step < steps - 1 else 2 / (1 + s * least * (3 - (s * least) ** 2) / 2)
        a, b = _float32(1.5 * s * scale), _float32(0.5 * s**3 * scale)
        made.append((a, b))
        values = [u * (a * (1 - ROUNDING) - b * u * u) for u in (least, most)]
        top = math.sqrt(a / (3 * b))
        if least <= top <= most:
            values.append(top * (a - b * top * top))
        least, most = min(values), max(values)
    return InverseRoot(slope, shift, tuple(made), max(1 - least, most - 1) + SLACK)


def _float32(number: float) -> float:
    return float(np.float32(number))
