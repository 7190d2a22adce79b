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
from lowerkit.targets.he.program import Program

#: Rings of each library that hold more than a product.
DEGREES: Mapping[str, tuple[int, ...]] = {
    "seal": (4096, 8192, 16384, 32768),
    "openfhe": (8192, 16384, 32768, 65536),
}
#: The longest and shortest scale, in bits.
MOST_SCALE, LEAST_SCALE = 45, 24
#: Bits that outputs may grow beyond what was proved or seen.
SPARE = 2
#: Scale, and bits of the first prime beyond it, where there is bootstrapping: its noise is of a constant size, which is
#: the less as part of a number the larger the scale.
REFRESHED = {"scale": 57, "head": 3}
#: Numbers that bootstrapping may keep, by time: about the fewest first.
SLOTS = (16, 64, 256, 1024, 4096, 16384, 32768)
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

    Args:
        samples: calibration samples, by graph input.
        ranges: inputs' ranges.
        options: the target's.

    Raises UnsupportedError where there is none, with what each ring lacks.
    """
    lacks = []
    degrees = (options["ring"],) if options["ring"] else DEGREES[options["backend"]]
    ways = [] if options["refresh"] else [(_in_ring, degree) for degree in degrees]
    if options["backend"] == "openfhe":
        ways.append((_with_bootstrapping, degrees[-1]))
    for way, degree in ways:
        try:
            return way(program, samples, ranges, {**options, "ring": degree})
        except UnsupportedError as error:
            if len(ways) == 1:
                raise
            lacks.append(f"{degree}: " + error.reason.removeprefix("target 'he': "))
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
    if options["bootstraps"]:
        refresh = bootstrapping.refresh_of(degree, options["refresh"])
        chain = refreshed_chain(degree, bits, head, options["levels"], options["digits"], refresh)
    elif options["backend"] == "openfhe":
        chain = openfhe_chain(packed, degree, bits, head, options["digits"])
    else:
        chain = chain_of(packed, degree, bits, head)
    if not options["insecure_for_testing"]:
        security.check(chain.degree, (*chain.primes, *chain.specials))
    if options["bootstraps"]:
        lowered = bootstrapping.lower(network, chain, options)
    else:
        lowered = levelled.lower(packed, chain, most_keys=options["max_rotation_keys"])
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
        return _precise({**options, **_bits(network.program, options, reach)}, program, network, vectors)
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


def _with_bootstrapping(
    program: Program,
    samples: Sequence[Mapping[str, np.ndarray]],
    ranges: Mapping[str, Range],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """With as few bootstraps as possible, of as few numbers as possible, and then as small keys as possible."""
    degree = options["ring"]
    base = {**options, **{k: options[k] or v for k, v in REFRESHED.items()}}
    available = 1 << 20 if options["insecure_for_testing"] else security.MOST_BITS[degree]
    lack = UnsupportedError(
        f"target 'he': within {available} bits bootstrapping leaves too few levels for what lies between two places "
        "where it could be",
        hint="use polynomials of a lower degree",
    )
    for slots in (options["refresh"],) if options["refresh"] else SLOTS:
        chosen = {**base, "refresh": slots}
        try:
            network = _packed(program, chosen)
        except UnsupportedError as error:
            lack = error
            continue
        vectors = [vectors_of(network, sample) for sample in samples]
        if found := bootstrapping.placed(network, vectors, chosen, available):
            return _precise({**chosen, **found}, program, network, vectors)
    raise lack


def _packed(program: Program, options: Mapping[str, Any]) -> Network:
    slots = options["ring"] // 2
    if not options["refresh"]:
        return pack(program, slots, options["packing"])
    few = pack(program, min(options["refresh"], slots), options["packing"])
    return bootstrapping.widened(few, slots)


def _precise(
    chosen: dict[str, Any], program: Program, network: Network, vectors: Sequence[Sequence[np.ndarray]]
) -> dict[str, Any]:
    """The options, if their noise is small enough. Raises UnsupportedError."""
    noise = SAFETY * simulated_noise(network, build(program, chosen, network).levelled, vectors)
    if not noise <= chosen["precision"]:
        raise UnsupportedError(
            f"target 'he': noise of up to {noise:.2g}, and the precision wanted is {chosen['precision']:.2g}"
        )
    return chosen


def _bits(packed: Packed, options: Mapping[str, Any], reach: Sequence[float]) -> dict[str, int]:
    """Bits of the scale, as many as are secure, and of what the first prime holds beyond it.

    Raises UnsupportedError where too few are left to compute with.
    """
    depth = max(packed.depths()[i] for i in packed.outputs)
    last = (reach[i] for i, d in enumerate(packed.depths()) if d == depth)
    head = options["head"] or math.ceil(math.log2(max(*last, 1.0))) + 1 + SPARE
    return {"scale": _scale_bits(depth, head, options), "head": head}


def _scale_bits(depth: int, head: int, options: Mapping[str, Any]) -> int:
    """Bits of the scale for that many levels. Raises UnsupportedError where too few are left to compute with."""
    degree = options["ring"]
    available = security.MOST_BITS[degree] - 1
    if options["insecure_for_testing"]:
        available = LONGEST * (depth + 2)
    if options["backend"] == "openfhe":
        fitting = _openfhe_bits(depth + 1, head, available, options["digits"])
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


def simulated_noise(network: Network, lowered: Levelled, vectors: Sequence[Sequence[np.ndarray]]) -> float:
    """Largest difference of an output's number from exact arithmetic, over the samples' vectors."""
    worst = 0.0
    for seed, given in enumerate(vectors[:4]):
        exact = network.program.run(given)
        noisy = simulator.simulate(lowered, given, seed=seed)
        parts = (part for name in network.outputs for part in network.tensors[name])
        for part, after in zip(parts, lowered.outputs, strict=True):
            difference = noisy[after] - exact[part.value]
            worst = max(worst, float(np.abs(difference[part.slots]).max()))
    return worst
