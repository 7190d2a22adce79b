"""Constant weights as memory and as factors: of one bit or two where they are signs, which need no multiplier."""

from __future__ import annotations

import numpy as np

from lowerkit.targets.fpga.lang.expr import Array, Expr, Operand, Select
from lowerkit.targets.fpga.lang.program import Builder


class Weights:
    """Codes of weights, and their products with numbers."""

    def __init__(self, k: Builder, codes: np.ndarray, *, signs: bool) -> None:
        """With `signs`, weights of -1 and 1, or of -1, 0 and 1, choose between a number, 0 and its negative."""
        self.binary = signs and bool((np.abs(codes) == 1).all())
        self.ternary = signs and not self.binary and bool((np.abs(codes) <= 1).all())
        self.memory = k.constant(Array.constant(f"{k.name}_w", (codes + 1) // 2 if self.binary else codes))

    def times(self, number: Expr, index: tuple[Operand, ...]) -> Expr:
        """The product of a number and a weight."""
        weight = self.memory[index]
        if self.binary:
            return Select(weight, number, -number)
        if self.ternary:
            return Select(weight < 0, -number, Select(weight > 0, number, number * 0))
        return number * weight
