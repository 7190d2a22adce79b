"""Polynomials of encrypted numbers at the least depth."""

from __future__ import annotations

from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.program import Polynomial


def depth(step: Polynomial) -> int:
    """Levels: those of its degree's power, and one for coefficients that are not 1."""
    raise NotImplementedError


def emit(program: Packed, x: int, step: Polynomial) -> int:
    raise NotImplementedError
