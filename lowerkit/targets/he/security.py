"""Which moduli are secure at 128 bits: a table, and the refusal of everything above it.

Bossuat, Cammarota, Chillotti, Curtis, Dai, Gong, Hales, Kim, Kumara, Lee, Lu, Maple, Pedrouzo-Ulloa, Player, Polyakov,
Lopez, Song and Yhee, Security Guidelines for Implementing Homomorphic Encryption, IACR Communications in Cryptology
1(4), 2024 (eprint 2024/463), table 5.2: classical attacks, uniform ternary secret, errors of standard deviation 3.19.
It is stricter everywhere than the HomomorphicEncryption.org standard of 2018 (27, 54, 109, 218, 438 and 881 bits up
to N = 32768), which libraries check.

All primes count: those of the levels, bootstrapping's among them, and those of key switching. Secrets are uniform
ternary with both libraries, with bootstrapping too.

Sparse-secret encapsulation (Bossuat, Troncoso-Pastoriza and Hubaux, ACNS 2022, eprint 2022/024) has a second secret,
of 32 coefficients that are not 0, for as long as bootstrapping raises the modulus. One key is encrypted under it,
modulo the first prime of the levels and, with OpenFHE 1.6, two primes of 33 bits. For 128 bits that modulus may have
121 bits at N = 65536: so the paper's parameters in Lattigo 6 (circuits/ckks/bootstrapping: parameters_literal.go,
EphemeralSecretWeight; default_parameters.go, N16QP1767H32768H32). OpenFHE takes 126 bits for secure
(openfhe-development, issue 1041, by the lattice estimator), and the stricter number holds here. For other degrees
no bound is published that OpenFHE's primes would fit, and so they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lowerkit.errors import UnsupportedError

#: Ring degree -> most bits of the product of all primes, those of key switching included.
MOST_BITS: Mapping[int, int] = {
    1 << 10: 26,
    1 << 11: 53,
    1 << 12: 106,
    1 << 13: 214,
    1 << 14: 430,
    1 << 15: 868,
    1 << 16: 1747,
    1 << 17: 3523,
}

#: Ring degree -> most bits of the modulus of a key under a secret of weight 32.
MOST_EPHEMERAL_BITS: Mapping[int, int] = {1 << 16: 121}
#: Bits of that modulus beside the first prime.
EPHEMERAL_BITS = 66


def bits(primes: Sequence[int]) -> int:
    """Bits of the primes' product."""
    return math.prod(primes).bit_length()


def is_secure(degree: int, primes: Sequence[int]) -> bool:
    """Whether a uniform ternary secret in the ring of that degree keeps 128 bits under all of `primes`."""
    return bits(primes) <= MOST_BITS.get(degree, 0)


def check(degree: int, primes: Sequence[int]) -> None:
    """Raises UnsupportedError for parameters below 128 bits."""
    if not is_secure(degree, primes):
        raise UnsupportedError(
            f"target 'he': a modulus of {bits(primes)} bits is not secure at 128 bits in the ring of degree {degree}, "
            f"which takes {MOST_BITS.get(degree, 0)} at most",
            hint="take a larger ring, or the option insecure_for_testing, which marks the artifact",
        )


def check_ephemeral(degree: int, first: int) -> None:
    """Raises UnsupportedError where the key under the sparse secret is below 128 bits, with that first prime."""
    found = first.bit_length() + EPHEMERAL_BITS
    if found > MOST_EPHEMERAL_BITS.get(degree, 0):
        known = ", ".join(f"{most} bits at {d}" for d, most in MOST_EPHEMERAL_BITS.items())
        raise UnsupportedError(
            f"target 'he': a modulus of {found} bits under a sparse secret is not known to be secure at 128 bits in "
            f"the ring of degree {degree}; published are {known}",
            hint="take shorter scales or the option secret=uniform, or insecure_for_testing, which marks the artifact",
        )
