"""The planner: ring, primes and scales for a tensor program, the smallest secure ring first.

In each ring the program is packed, which gives its depth L and what its numbers may reach. L primes rescale, the
first prime holds the outputs, and one more prime, as long as the first, serves key switching. Within the bits that
are secure the scale is then as large as it can be: more bits in a prime cost no time. What noise that leaves is
simulated on calibration samples and compared with the precision that is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.targets.he import bootstrapping, levelled, security, simulator
from lowerkit.targets.he.bootstrapping import MOST_DIGITS
from lowerkit.targets.he.chains import (
    FINAL,
    LONGEST,
    MARGIN,
    SPECIAL,
    chain_of,
    openfhe_chain,
    possible_digits,
    refreshed_chain,
)
from lowerkit.targets.he.levelled import Levelled
from lowerkit.targets.he.packed import Packed, magnitudes
from lowerkit.targets.he.packing.network import least_depth, pack
from lowerkit.targets.he.packing.ways import Network
from lowerkit.targets.he.pairing import paired_depths, unscaled
from lowerkit.targets.he.program import Program
from lowerkit.targets.he.report import estimated
from lowerkit.targets.he.sizes import sizes

#: Rings of each library that hold more than a product.
DEGREES: Mapping[str, tuple[int, ...]] = {
    "seal": (4096, 8192, 16384, 32768),
    "openfhe": (8192, 16384, 32768, 65536),
}
#: The longest and shortest scale, in bits.
MOST_SCALE, LEAST_SCALE = 45, 24
#: Most pairs of products that share a prime: see `pairing`.
MOST_PAIRS = 64
#: The longest scale of which a product with plaintexts of as much precision fits into a pair's prime.
MOST_PAIRED = 38
#: Bits that outputs may grow beyond what was proved or seen.
SPARE = 2
#: Bits of the first prime beyond the scale where there is bootstrapping, by its secret: a key under the sparse one has
#: that prime for a modulus, which may be the longer the fewer they are.
REFRESHED_HEAD = {"uniform": 3, "sparse": 1}
#: Numbers that bootstrapping may keep, by time: about the fewest first.
SLOTS = (16, 64, 256, 1024, 4096, 8192, 16384, 32768)
#: Bits beyond which proved magnitudes are given up for calibrated ones.
MOST_PROVED = 20
#: Bounds beyond this are not followed any further.
ABSURD = 1e100
#: Simulated noise is normal; this many times the largest that was seen on a few samples is not met in practice.
SAFETY = 4.0

Range = tuple[float, float]


@dataclass(frozen=True)
class Planned:
    """What is emitted, and the tensor program that it computes."""

    program: Program
    network: Network
    levelled: Levelled


def plan(
    program: Program,
    samples: Sequence[Mapping[str, np.ndarray]],
    ranges: Mapping[str, Range],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The options with `ring`, `scale` and `head` chosen: the smallest ring that is secure and precise enough.

    Where tensors take several ciphertexts there, larger rings that need fewer may take less time, and are compared.

    Args:
        samples: calibration samples, by graph input.
        ranges: inputs' ranges.
        options: the target's.

    Raises UnsupportedError where there is none, with what each ring lacks.
    """
    lacks: list[str] = []
    found: list[tuple[float, dict[str, Any]]] = []
    degrees = (options["ring"],) if options["ring"] else DEGREES[options["backend"]]
    ways = [] if options["refresh"] else [(_in_ring, degree) for degree in degrees]
    if options["backend"] == "openfhe":
        ways.append((_with_bootstrapping, degrees[-1]))
    for way, degree in ways:
        if found and way is _with_bootstrapping:
            break
        try:
            chosen = way(program, samples, ranges, {**options, "ring": degree})
        except UnsupportedError as error:
            if len(ways) == 1:
                raise
            lacks.append(f"{degree}: " + error.reason.removeprefix("target 'he': "))
            continue
        network = _packed(program, chosen)
        whole = all(len(parts) == 1 for parts in network.tensors.values())
        if whole and not found:
            return chosen
        found.append((estimated(build(program, chosen, network).levelled), chosen))
        if whole:
            break
    if found:
        return min(found, key=lambda each: each[0])[1]
    raise UnsupportedError(
        f"target 'he': no ring can hold it; by degree, {'; '.join(lacks)}",
        hint="compile for a smaller --shape, a shallower model, or with a larger option precision",
    )


def build(program: Program, options: Mapping[str, Any], network: Network | None = None) -> Planned:
    """The programs for options as `plan` completes them; of a `network` that is packed already if it is given.

    Raises UnsupportedError for parameters that are not secure.
    """
    network = network or _packed(program, options)
    packed, degree, bits, head = network.program, options["ring"], options["scale"], options["head"]
    kept = _unscaled(packed, options)
    if options["bootstraps"]:
        refresh = bootstrapping.refresh_of(options)
        chain = refreshed_chain(degree, bits, head, options["levels"], options["digits"], refresh)
    elif options["backend"] == "openfhe":
        chain = openfhe_chain(packed, degree, bits, head, options["digits"])
    else:
        chain = chain_of(packed, degree, bits, head, kept)
    if not options["insecure_for_testing"]:
        security.check(chain.degree, (*chain.primes, *chain.specials))
        if chain.refresh and chain.refresh.sparse:
            security.check_ephemeral(chain.degree, chain.primes[0])
    if options["bootstraps"]:
        lowered = bootstrapping.lower(network, chain, options)
    else:
        lowered = levelled.lower(packed, chain, most_keys=options["max_rotation_keys"], unscaled=kept)
    try:
        levelled.check(lowered)
    except ValueError as error:
        if options["bootstraps"]:
            raise PlanError(f"option bootstraps: {error}") from None
        raise
    return Planned(program, network, lowered)


def _in_ring(
    program: Program,
    samples: Sequence[Mapping[str, np.ndarray]],
    ranges: Mapping[str, Range],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    if options["backend"] == "seal":  # before the search for a packing, which takes longer
        _scale_bits(least_depth(program), 1, options)
    network = _packed(program, options)
    vectors = [vectors_of(network, sample) for sample in samples]
    reach = _reach(network, vectors, ranges)
    if options["backend"] == "seal":
        return _rescaled(program, network, vectors, reach, options)
    lack = UnsupportedError("target 'he': OpenFHE cannot divide the primes into so many digits")
    # The more digits of key switching, the more bits are left for scales, and the larger the keys.
    for digits in [options["digits"]] if options["digits"] else range(1, MOST_DIGITS + 1):
        try:
            chosen = {**options, "digits": digits}
            bits = _bits(network.program, chosen, reach)
            return _precise({**chosen, **bits}, program, network, vectors)
        except UnsupportedError as error:
            lack = error
    raise lack


def _rescaled(
    program: Program,
    network: Network,
    vectors: Sequence[Sequence[np.ndarray]],
    reach: Sequence[float],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """With as many pairs of products that share a prime as are precise enough: they save time."""
    most = len(paired_depths(network.program, unscaled(network.program, MOST_PAIRS)))
    ways = range(most, -1, -1) if options["pairs"] == "auto" else [options["pairs"]]
    lack = UnsupportedError("target 'he': no pairs")
    for pairs in ways:
        chosen = {**options, "pairs": pairs}
        try:
            bits = _bits(network.program, chosen, reach)
            return _precise({**chosen, **bits}, program, network, vectors)
        except UnsupportedError as error:
            lack = error
    raise lack


def _unscaled(packed: Packed, options: Mapping[str, Any]) -> frozenset[int]:
    """See `pairing`; OpenFHE's primes are all of one length."""
    chosen = options["backend"] == "seal" and options["pairs"] != "auto"
    return unscaled(packed, options["pairs"]) if chosen else frozenset()


def _with_bootstrapping(
    program: Program,
    samples: Sequence[Mapping[str, np.ndarray]],
    ranges: Mapping[str, Range],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """With bootstraps of as few numbers as possible, and of those the first plan that is precise enough."""
    degree = options["ring"]
    base = {**options, "head": options["head"] or REFRESHED_HEAD[options["secret"]]}
    available = 1 << 20 if options["insecure_for_testing"] else security.MOST_BITS[degree]
    lack = UnsupportedError(
        f"target 'he': within {available} bits bootstrapping leaves too few levels for what lies between two places "
        "where it could be",
        hint="use polynomials of a lower degree",
    )
    noisy = 0  # the longest scale whose noise was found to be too large
    for slots in (options["refresh"],) if options["refresh"] else SLOTS:
        chosen = {**base, "refresh": slots}
        try:
            network = _packed(program, chosen)
        except UnsupportedError as error:
            lack = error
            continue
        vectors = [vectors_of(network, sample) for sample in samples]
        few = _few(program, chosen)
        known = bootstrapping.places(few, [vectors_of(few, sample) for sample in samples])
        large: list[tuple[float, dict[str, Any]]] = []
        for found in bootstrapping.placed(known, chosen, available):
            if found["scale"] <= noisy:
                continue
            way = {**chosen, **found}
            if options["max_memory"] and (size := _server(program, way, network)) > options["max_memory"]:
                large.append((size, way))
                continue
            try:
                return _precise(way, program, network, vectors)
            except UnsupportedError as error:
                lack, noisy = error, found["scale"]
        if large := [each for each in large if each[1]["scale"] > noisy]:
            smallest = min(large, key=lambda each: each[0])[1]  # which may do with fewer rotation keys
            return _precise(smallest, program, network, vectors)
        if noisy:
            break
    raise lack


def _server(program: Program, options: Mapping[str, Any], network: Network) -> float:
    """GiB that a server with all rotation keys holds, and with few plaintexts."""
    return sizes(build(program, options, network).levelled, ahead=False).server / 2**30


def _packed(program: Program, options: Mapping[str, Any]) -> Network:
    slots = options["ring"] // 2
    if not options["refresh"]:
        return pack(program, slots, options["packing"], options["parts"])
    return bootstrapping.widened(_few(program, options), slots)


def _few(program: Program, options: Mapping[str, Any]) -> Network:
    """The program in vectors of as many slots as bootstrapping keeps."""
    slots = min(options["refresh"], options["ring"] // 2)
    return pack(program, slots, options["packing"], options["parts"])


def _precise(
    chosen: dict[str, Any], program: Program, network: Network, vectors: Sequence[Sequence[np.ndarray]]
) -> dict[str, Any]:
    """The options, if their noise is small enough. Raises UnsupportedError."""
    limit = chosen["precision"] / SAFETY
    noise = SAFETY * simulated_noise(network, build(program, chosen, network).levelled, vectors, limit)
    if not noise <= chosen["precision"]:
        raise UnsupportedError(
            f"target 'he': noise of up to {noise:.2g}, and the precision wanted is {chosen['precision']:.2g}"
        )
    return chosen


def _bits(packed: Packed, options: Mapping[str, Any], reach: Sequence[float]) -> dict[str, int]:
    """Bits of the scale, as many as are secure, and of what the first prime holds beyond it.

    Raises UnsupportedError where too few are left to compute with.
    """
    kept = _unscaled(packed, options)
    depths = packed.depths(kept)
    depth, pairs = max(depths[i] for i in packed.outputs), len(paired_depths(packed, kept))
    last = (reach[i] for i, d in enumerate(depths) if d == depth)
    head = options["head"] or math.ceil(math.log2(max(*last, 1.0))) + 1 + SPARE
    return {"scale": _scale_bits(depth, head, options, pairs), "head": head}


def _scale_bits(depth: int, head: int, options: Mapping[str, Any], pairs: int = 0) -> int:
    """Bits of the scale for that many levels, `pairs` of them with the longest primes.

    Raises UnsupportedError where too few are left to compute with.
    """
    degree = options["ring"]
    available = security.MOST_BITS[degree] - 1
    if options["insecure_for_testing"]:
        available = LONGEST * (depth + 2)
    if options["backend"] == "openfhe":
        fitting = _openfhe_bits(depth + 1, head, available, options["digits"])
    elif pairs:
        left = available - head - FINAL - LONGEST * (pairs + 1)
        fitting = min(left // (depth - pairs + 1), MOST_PAIRED, LONGEST - 1 - head - FINAL)
    else:
        fitting = (available - 2 * head - SPECIAL) // (depth + 2)
    bits = options["scale"] or min(fitting, MOST_SCALE, LONGEST - 1 - head)
    if bits < LEAST_SCALE:
        raise UnsupportedError(
            f"target 'he': {depth} levels leave scales of {bits} bits within the {available} bits that are secure in "
            f"the ring of degree {degree}, and at least {LEAST_SCALE} are needed"
        )
    return int(bits)


def _openfhe_bits(count: int, head: int, available: int, digits: int) -> int:
    """The longest scale that leaves room for the special primes, which have to hold the longest digit."""
    best = 0
    if digits not in possible_digits(count):
        return best
    for specials in range(1, available // LONGEST + 1):
        # Primes may be a little longer than the scale.
        scale = (available - specials * LONGEST - head) // count - 1
        longest = (specials * LONGEST - MARGIN - head) // math.ceil(count / digits) - 1
        best = max(best, min(scale, longest))
    return best


def vectors_of(network: Network, sample: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """float64 [slots] for each input of the packed program."""
    flat = {name: np.append(np.asarray(x, np.float64).ravel(), 0.0) for name, x in sample.items()}
    return [flat[name][index] for name, index in network.gathers]


def _reach(
    network: Network, vectors: Sequence[Sequence[np.ndarray]], ranges: Mapping[str, Range]
) -> list[float]:
    """What every packed value may reach, proved if that is not absurd, or else twice what samples show."""
    proved = bounds(network, ranges)
    if all(math.log2(max(proved[i], 1.0)) <= MOST_PROVED for i in network.program.outputs):
        return proved
    return [2 * m for m in magnitudes(network.program, vectors)]


def bounds(network: Network, ranges: Mapping[str, Range]) -> list[float]:
    """The most that any slot of each packed value can hold, for inputs within their ranges."""
    program = network.program
    given = iter(
        np.where(index >= 0, max(abs(end) for end in ranges[name]), 0.0) for name, index in network.gathers
    )
    found: list[np.ndarray] = []
    for op in program.ops:
        operands = [np.minimum(found[a], ABSURD) for a in op.args]  # whose squares are no overflow
        if op.kind == "input":
            made = next(given)
        elif op.multiplies:
            with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float64 is not proved
                made = operands[0] * (np.abs(program.plains[op.plain]) if op.plain >= 0 else operands[1])
        elif op.kind == "rotate":
            made = np.roll(operands[0], -op.step)
        else:
            made = operands[0] + (np.abs(program.plains[op.plain]) if op.plain >= 0 else operands[1])
        found.append(made)
    return [float(x.max()) for x in found]


def simulated_noise(
    network: Network,
    lowered: Levelled,
    vectors: Sequence[Sequence[np.ndarray]],
    limit: float = math.inf,
) -> float:
    """Largest difference of an output's number from exact arithmetic, over samples' vectors, until above `limit`."""
    worst = 0.0
    for seed, given in enumerate(vectors[:4]):
        exact = network.program.run(given)
        noisy = simulator.simulate(lowered, given, seed=seed)
        parts = (part for name in network.outputs for part in network.tensors[name])
        for part, after in zip(parts, lowered.outputs, strict=True):
            difference = noisy[after] - exact[part.value]
            worst = max(worst, float(np.abs(difference[part.slots]).max()))
        if not worst <= limit:
            break
    return worst
