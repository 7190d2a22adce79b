"""Polynomials of encrypted numbers, in Chebyshev's basis, at the least depth: ceil(log2(degree + 1)) levels.

Paterson and Stockmeyer's scheme (SIAM J. Comput. 2(1), 1973) in the form for Chebyshev's basis of Chen, Chillotti and
Song, Improved Bootstrapping for Approximate HE (EUROCRYPT 2019), section 4: p = q T_m + r with m = 2^i, where q and r
are computed in the same way. A part whose terms c_j T_j fit into the levels that it may take is summed as it is, which
takes no product of ciphertexts. T_(a+b) = 2 T_a T_b - T_(a-b), where doubling is an addition.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import chebyshev

from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.program import Polynomial


def depth(step: Polynomial) -> int:
    """Levels that the polynomial takes."""
    return (len(step.coefficients) - 1).bit_length()


def emit(program: Packed, x: int, step: Polynomial) -> int:
    """Emit the polynomial of x, whose slots are all in [-1, 1]. Its degree is at least 1."""
    return _Evaluation(program, x).of(np.array(step.coefficients), depth(step))


class _Evaluation:
    def __init__(self, program: Packed, x: int) -> None:
        self.program = program
        self._basis = {1: x}

    def basis(self, n: int) -> int:
        """T_n(x), at depth ceil(log2 n)."""
        if n not in self._basis:
            half = 1 << (n - 1).bit_length() - 1  # the largest power of two below n
            product = self.program.mul(self.basis(half), self.basis(n - half))
            doubled = self.program.add(product, product)
            rest = 2 * half - n
            if rest:
                self._basis[n] = self.program.sub(doubled, self.basis(rest))
            else:
                self._basis[n] = self.program.add_plain(doubled, self._all(-1.0))
        return self._basis[n]

    def of(self, coefficients: np.ndarray, levels: int) -> int:
        """The sum of c_j T_j within `levels` levels."""
        degree = len(coefficients) - 1
        if degree <= 1 or (degree - 1).bit_length() < levels:
            return self._sum(coefficients)
        half = 1 << degree.bit_length() - 1
        quotient, rest = chebyshev.chebdiv(coefficients, np.eye(half + 1)[half])
        if len(quotient) == 1:  # a multiple of one T alone
            return self._sum(coefficients)
        product = self.program.mul(self.of(quotient, levels - 1), self.basis(half))
        rest = np.trim_zeros(rest, "b")
        if len(rest) <= 1:
            return self.program.add_plain(product, self._all(float(rest.sum())))
        return self.program.add(product, self.of(rest, levels))

    def _sum(self, coefficients: np.ndarray) -> int:
        terms = [
            self.program.mul_plain(self.basis(n), self._all(float(c)))
            for n, c in enumerate(coefficients)
            if n and c
        ]
        return self.program.add_plain(self.program.total(terms), self._all(float(coefficients[0])))

    def _all(self, number: float) -> np.ndarray:
        return np.full(self.program.slots, number)
