"""What operations on ciphertexts cost, as measured, for choosing between ways of packing.

A rotation decomposes a ciphertext by its primes and multiplies with a key: for `primes` p of them it takes
p (p + 1) number-theoretic transforms and terms in p; all else is linear in p. The factors are of SEAL 4 on one core of
an AMD EPYC (AVX2) at N = 8192; only their ratios matter here. `python -m benchmarks.he operations` gives them, and with
`--backend openfhe` OpenFHE's, whose ratios are near enough for one table: rotations cost as much with two or three
digits as SEAL's do, and a third to a half less where several share an operand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

#: Operation -> (factor of p (p + 1), factor of p), in milliseconds at N = 8192.
MILLISECONDS: Mapping[str, tuple[float, float]] = {
    "rotate": (0.0875, 0.48),
    "relinearise": (0.0875, 0.48),
    "mul": (0.0, 0.135),
    "mul_plain": (0.0, 0.063),
    "add": (0.0, 0.021),
    "sub": (0.0, 0.021),
    "add_plain": (0.0, 0.015),
    "rescale": (0.0, 0.22),
    "mod_switch": (0.0, 0.02),
    "input": (0.0, 0.0),
}


def seconds(kind: str, primes: int, degree: int) -> float:
    """Estimated time of one operation on ciphertexts of `primes` primes in the ring of that degree."""
    square, linear = MILLISECONDS[kind]
    size = degree * math.log2(degree) / (8192 * 13)
    return 1e-3 * size * (square * primes * (primes + 1) + linear * primes)


def bootstrap_seconds(degree: int, slots: int, primes: int) -> float:
    """Estimated time of OpenFHE's bootstrapping of `slots` numbers, after `python -m benchmarks.he bootstrap`."""
    # With few numbers each linear transform is one matrix product; of all slots two polynomials are evaluated.
    share = 0.7 if slots <= 64 else 1.35 if slots == degree // 2 else 1.0
    return 20.0 * share * (degree / 65536) * (primes / 20) ** 2
