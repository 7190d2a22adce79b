"""Primes for number-theoretic transforms."""

from __future__ import annotations

from collections.abc import Collection

#: Bases with which Miller and Rabin's test is right below 3.3e24 (Sorenson and Webster, Math. Comp. 86, 2017).
_BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def is_prime(n: int) -> bool:
    """Whether n < 3.3e24 is prime."""
    if n < 2 or any(n % p == 0 for p in _BASES):
        return n in _BASES
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in _BASES:
        x = pow(base, odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def nearest(wanted: float, degree: int, taken: Collection[int] = (), most: int = 1 << 60) -> int:
    """The prime nearest to `wanted` that is 1 modulo 2 `degree`, below `most` and not among `taken`.

    Modulo such a prime x^degree + 1 splits into linear factors.
    """
    step = 2 * degree
    start = round((wanted - 1) / step)
    for distance in range(1 << 20):
        for k in (start + distance, start - distance):
            candidate = k * step + 1
            if 1 < candidate < most and candidate not in taken and is_prime(candidate):
                return candidate
    raise ValueError(f"no prime near {wanted:g} is 1 modulo {step}")
