"""Runs a levelled program in numpy, with the noise that encryption would add.

Every slot has normal noise of the standard deviation that the operations of RNS-CKKS are known to add, after Kim,
Papadimitriou and Polyakov, Approximate Homomorphic Encryption with Reduced Approximation Error (CT-RSA 2022), section
2, and Costache et al., On the Precision Loss in Approximate Homomorphic Encryption (SAC 2023), section 4. A polynomial
whose coefficients have variance v has slots whose real part has variance N v / 2. The secret is uniform ternary, of
squared norm 2 N / 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowerkit.targets.he.levelled import Chain, Levelled
from lowerkit.targets.he.runtime.execute import Circuit
from lowerkit.targets.he.stored import stored

#: Standard deviation of a fresh error's coefficients.
ERROR = 3.24
#: Multiples of the first prime that raising the modulus leaves, at most, by whether the secret is sparse.
MULTIPLES = {False: 512, True: 16}
#: Bootstrapping's noise is sqrt(slots) 2^correction times MULTIPLES times a sum of two parts: the primes' relative
#: distance from the scale (the root of the mean square), for which with fixed scaling OpenFHE takes all of them, and
#: this times the degree. That is fitted to runs of `benchmarks/he_openfhe.py bootstrap`, for degrees of 2048 and 65536,
#: scales of 45 to 57 bits, and 16 to 32768 slots: they have from a tenth to 1.6 times as much.
REDUCTION = 2.5e-15


@dataclass(frozen=True)
class Vector:
    """What a ciphertext stands for: slots, level and scale."""

    numbers: np.ndarray
    level: int
    scale: float


class SimulatorEngine:
    """`execute.Engine` in numpy. With `noisy` False it computes exactly.

    Raises ValueError where levels or scales do not agree.
    """

    def __init__(self, chain: Chain, *, noisy: bool = True, seed: int = 0) -> None:
        self.chain, self.noisy = chain, noisy
        self._random = np.random.default_rng(seed)
        degree = chain.degree
        #: Variance of coefficients after division and rounding, by 1/12 per part.
        self._rounding = (1 + 2 * degree / 3) / 12
        self._special = math.prod(chain.specials)
        #: Slot -> number of its root among the powers of the primitive root of order 2 N.
        self._roots = np.array([pow(5, j, 2 * degree) for j in range(chain.slots)])
        self._floor = self._floored() if chain.floors else np.zeros(chain.slots)

    def _floored(self) -> np.ndarray:
        """What OpenFHE's division by k special primes does to every slot, in units of 1 / scale.

        Fast base conversion does not subtract its overflow, so that every coefficient of both polynomials is too small
        by k/2 on average. A polynomial of equal coefficients is large near the root 1, and so is its product with the
        secret: the few slots that are there are off by the same number after every key switching.
        """
        degree = self.chain.degree
        secret = self._random.integers(-1, 2, degree)
        at_roots = np.fft.fft(np.stack([np.ones(degree), secret]), 2 * degree)[:, self._roots]
        found: np.ndarray = len(self.chain.specials) / 2 * np.real(at_roots[0] * (1 + at_roots[1]))
        return found

    def encrypt(self, numbers: np.ndarray, level: int, scale: float) -> Vector:
        """Under the secret key."""
        return Vector(self._noisy(np.asarray(numbers, np.float64), ERROR**2 + 1 / 12, scale), level, scale)

    def encode(self, numbers: np.ndarray | float, level: int, scale: float) -> Vector:
        if np.ndim(numbers) == 0:  # one number is one coefficient
            return Vector(np.full(self.chain.slots, round(float(numbers) * scale) / scale), level, scale)
        return Vector(self._rounded(np.asarray(numbers, np.float64), scale), level, scale)

    def _rounded(self, numbers: np.ndarray, scale: float) -> np.ndarray:
        """The numbers of a plaintext, whose coefficients are rounded.

        No random noise would do: those of real slots are antisymmetric, so that their errors are as well, which doubles
        the variance, and vectors that repeat have few coefficients other than 0.
        """
        if not self.noisy:
            return numbers
        degree = self.chain.degree
        values = np.zeros(2 * degree)
        values[self._roots] = values[-self._roots] = numbers
        coefficients = np.rint(2 * scale * np.fft.irfft(values[: degree + 1], 2 * degree)[:degree]) / scale
        at_roots = np.fft.rfft(coefficients, 2 * degree).real
        found: np.ndarray = at_roots[np.minimum(self._roots, 2 * degree - self._roots)]
        return found

    def add(self, x: Vector, y: Vector) -> Vector:
        return Vector(x.numbers + y.numbers, x.level, _same(x, y))

    def add_into(self, x: Vector, y: Vector) -> Vector:
        return self.add(x, y)

    def sub(self, x: Vector, y: Vector) -> Vector:
        return Vector(x.numbers - y.numbers, x.level, _same(x, y))

    def mul(self, x: Vector, y: Vector, scale: float) -> Vector:
        return self._product(x, y, scale)

    def add_plain(self, x: Vector, plain: Vector) -> Vector:
        return self.add(x, plain)

    def mul_plain(self, x: Vector, plain: Vector, scale: float) -> Vector:
        return self._product(x, plain, scale)

    def decomposed(self, x: Vector) -> None:
        """Nothing: hoisting changes no noise."""

    def rotate(self, x: Vector, step: int, decomposed: None = None) -> Vector:
        return self._switched(Vector(np.roll(x.numbers, -step), x.level, x.scale))

    def relinearise(self, x: Vector) -> Vector:
        return self._switched(x)

    def rescale(self, x: Vector, scale: float) -> Vector:
        _near(scale, x.scale / self.chain.primes[x.level])
        return Vector(self._noisy(x.numbers, self._rounding, scale), x.level - 1, scale)

    def mod_switch(self, x: Vector) -> Vector:
        return Vector(x.numbers, x.level - 1, x.scale)

    def bootstrap(self, x: Vector, scale: float) -> Vector:
        """The mean over the period, the cubic error of the sine that reduces modulo the first prime, and noise."""
        refresh = self.chain.refresh
        assert refresh is not None
        mean = x.numbers.reshape(-1, refresh.slots).mean(axis=0)
        if self.noisy:
            angle = 2 * np.pi * mean / 2**refresh.correction
            distances = [p / scale - 1 for p in self.chain.primes[self.chain.top + 1 :]]
            part = math.sqrt(float(np.mean(np.square(distances)))) + REDUCTION * self.chain.degree
            part *= MULTIPLES[refresh.sparse] * math.sqrt(refresh.slots)
            deviation = 2**refresh.correction * part
            mean = mean * (1 - angle**2 / 6) + self._random.normal(0.0, deviation, refresh.slots)
        return Vector(np.tile(mean, self.chain.slots // refresh.slots), self.chain.top, scale)

    def _product(self, x: Vector, y: Vector, scale: float) -> Vector:
        if x.level != y.level:
            raise ValueError(f"a product of levels {x.level} and {y.level}")
        _near(scale, x.scale * y.scale)
        return Vector(x.numbers * y.numbers, x.level, scale)

    def _switched(self, x: Vector) -> Vector:
        """Key switching: digits times errors, divided by the special primes.

        Fast base conversion of digits of k primes gives sums of k numbers, uniform from 0 to the digit.
        """
        primes, group = self.chain.primes[: x.level + 1], self.chain.group
        digits = [primes[i : i + group] for i in range(0, len(primes), group)]
        square = sum((math.prod(d) / self._special) ** 2 * _square_of_sum(len(d)) for d in digits)
        rounding = self._rounding * (len(self.chain.specials) if self.chain.floors else 1)
        variance = self.chain.degree * square * ERROR**2 + rounding
        numbers = x.numbers + self._floor / x.scale if self.noisy else x.numbers
        return Vector(self._noisy(numbers, variance, x.scale), x.level, x.scale)

    def _noisy(self, numbers: np.ndarray, variance: float, scale: float) -> np.ndarray:
        if not self.noisy:
            return numbers
        deviation = np.sqrt(self.chain.degree / 2 * variance) / scale
        return numbers + self._random.normal(0.0, deviation, self.chain.slots)


def _square_of_sum(count: int) -> float:
    """Expected square of a sum of that many numbers, uniform from 0 to 1."""
    return count**2 / 4 + count / 12


def _same(x: Vector, y: Vector) -> float:
    if x.level != y.level or x.scale != y.scale:
        raise ValueError(f"a sum of levels {x.level} and {y.level}, scales {x.scale!r} and {y.scale!r}")
    return x.scale


def _near(scale: float, expected: float) -> None:
    if not np.isclose(scale, expected, rtol=1e-9, atol=0):
        raise ValueError(f"a scale is {scale!r}, and not {expected!r}")


def simulate(
    program: Levelled, inputs: Sequence[np.ndarray], *, noisy: bool = True, seed: int = 0
) -> list[np.ndarray]:
    """The value of every operation, float64 [slots] each, for the vectors of the inputs in order."""
    engine = SimulatorEngine(program.chain, noisy=noisy, seed=seed)
    circuit = Circuit(**stored(program), engine=engine)
    given = [op for op in program.ops if op.kind == "input"]
    encrypted = [engine.encrypt(x, op.level, op.scale) for x, op in zip(inputs, given, strict=True)]
    found: list[np.ndarray] = []
    circuit.run(encrypted, observe=lambda _, value: found.append(value.numbers))
    return found
