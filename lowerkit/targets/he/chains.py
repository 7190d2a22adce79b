"""Chains of primes and scales for a packed program: of SEAL, which takes any, and of OpenFHE, which chooses its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Set

from lowerkit.targets.he.levelled import Chain, Refresh
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.pairing import paired_depths
from lowerkit.targets.he.primes import is_prime, nearest

#: Longest prime, in bits.
LONGEST = 60
#: Bits that OpenFHE's special primes have beyond a digit of key switching, at least.
MARGIN = 4
#: Bits that outputs' scale has beyond others after a pair: its plaintexts are as much more precise.
FINAL = 4
#: Bits that SEAL's prime of key switching has beyond the first, where they are to be had: its noise is less by that.
SPECIAL = 4


def chain_of(packed: Packed, degree: int, bits: int, head: int, unscaled: Set[int] = frozenset()) -> Chain:
    """SEAL's chain for a packed program, with scales of `bits` and `head` more bits in the first prime.

    Primes are chosen so that scales stay where they are: see `levelled`.

    Args:
        unscaled: products that share a prime of LONGEST bits with what reads them: see `pairing`.
    """
    depth, squared = _products(packed, unscaled)
    paired = {depth - d + 1 for d in paired_depths(packed, unscaled)}
    scales, primes = [2.0**bits], list[int]()
    for level in range(depth, 0, -1):
        wanted = 2.0**LONGEST * 0.99 if level in paired else scales[0]
        primes.insert(0, nearest(wanted, degree, primes))
        scales.insert(0, scales[0] ** 2 / primes[0] if level in squared else 2.0**bits)
    if 1 in paired:
        bits += FINAL
        scales[0] = 2.0**bits
    # Just below the power of two, so that the bits of all primes add up.
    first = nearest(2.0 ** (bits + head) * 0.99, degree, primes)
    longest = LONGEST if paired else min(bits + head + SPECIAL, LONGEST)
    special = nearest(2.0**longest * 0.99, degree, [*primes, first])
    return Chain(degree, (first, *primes), (special,), tuple(scales))


def openfhe_chain(packed: Packed, degree: int, bits: int, head: int, digits: int) -> Chain:
    """OpenFHE's chain for a packed program without bootstrapping; key switching takes `digits` digits."""
    depth, squared = _products(packed)
    primes, specials, group = openfhe_primes(degree, bits, bits + head, depth + 1, digits)
    scales = [2.0**bits]
    for level in range(depth, 0, -1):
        scales.insert(0, scales[0] ** 2 / primes[level] if level in squared else 2.0**bits)
    return Chain(degree, primes, specials, tuple(scales), group, floors=True)


def refreshed_chain(degree: int, bits: int, head: int, levels: int, digits: int, refresh: Refresh) -> Chain:
    """OpenFHE's chain with bootstrapping, whose results have scale 2^bits.

    Products of ciphertexts may be on any level, so that every scale is the square of the one above by its prime.
    """
    primes, specials, group = openfhe_primes(degree, bits, bits + head, levels + 1, digits)
    below, above = [2.0**bits], list[float]()
    for prime in reversed(primes[1 : levels - refresh.depth + 1]):
        below.insert(0, below[0] ** 2 / prime)
    for prime in primes[levels - refresh.depth + 1 :]:
        above.append(math.sqrt((above or below)[-1] * prime))
    return Chain(degree, primes, specials, (*below, *above), group, refresh, floors=True)


def _products(packed: Packed, unscaled: Set[int] = frozenset()) -> tuple[int, set[int]]:
    """The program's depth, and the levels whose prime divides products of ciphertexts."""
    depths = packed.depths(unscaled)
    depth = max(depths[i] for i in packed.outputs)
    products = (i for i, op in enumerate(packed.ops) if op.kind == "mul" and i not in unscaled)
    return depth, {depth - depths[i] + 1 for i in products}


def openfhe_primes(
    degree: int, bits: int, first: int, count: int, digits: int
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The primes of OpenFHE's levels and of its key switching, and how many of the first are in a digit.

    As OpenFHE 1.6 does it (ckksrns-parametergeneration.cpp, SinglePrimeModuliGen, fixed scaling; PrecomputeCRTTables
    in rns-cryptoparameters.cpp): from the top, the first prime above 2^bits, then the next ones below and above it in
    turn; the first prime of all is the last below 2^first. Special primes have 60 bits, as many as the longest digit
    and MARGIN bits need.
    """
    middle = next(_primes(2**bits, degree, 1))
    lower, upper = _primes(middle - 1, degree, -1), _primes(middle + 1, degree, 1)
    turns = itertools.cycle((lower, upper))
    rest = [middle, *(next(side) for side, _ in zip(turns, range(count - 2), strict=False))][: count - 1]
    primes = (next(_primes(2**first, degree, -1)), *reversed(rest))
    group = math.ceil(count / digits)
    longest = max(math.prod(primes[i : i + group]).bit_length() for i in range(0, count, group))
    special = (p for p in _primes(2**LONGEST, degree, -1) if p not in primes)
    return primes, tuple(itertools.islice(special, math.ceil((longest + MARGIN) / LONGEST))), group


def _primes(start: int, degree: int, direction: int) -> Iterator[int]:
    """Primes that are 1 modulo 2 degree, from `start` on upwards or downwards."""
    step = 2 * degree
    candidate = (start - 1) // step * step + 1 if direction < 0 else -(-(start - 1) // step) * step + 1
    while candidate > 1:
        if is_prime(candidate):
            yield candidate
        candidate += direction * step


def possible_digits(count: int) -> list[int]:
    """Numbers of digits into which OpenFHE can divide so many primes, none of them empty."""
    return [d for d in range(1, count + 1) if count > math.ceil(count / d) * (d - 1)]
