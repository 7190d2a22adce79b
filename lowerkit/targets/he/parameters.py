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

from lowerkit.errors import UnsupportedError
from lowerkit.targets.he import levelled, security, simulator
from lowerkit.targets.he.levelled import Chain, Levelled
from lowerkit.targets.he.packed import Packed, magnitudes
from lowerkit.targets.he.packing.network import least_depth, pack
from lowerkit.targets.he.packing.ways import Network
from lowerkit.targets.he.primes import nearest
from lowerkit.targets.he.program import Program

#: Rings that SEAL knows and that hold more than a product.
DEGREES = (4096, 8192, 16384, 32768)
#: Longest prime, in bits, and the longest and shortest scale.
LONGEST, MOST_SCALE, LEAST_SCALE = 60, 45, 24
#: Bits that outputs may grow beyond what was proved or seen.
SPARE = 2
#: Bits that the prime of key switching has beyond the first, where they are to be had: its noise is less by as much.
SPECIAL = 4
#: Bits beyond which proved magnitudes are given up for calibrated ones.
MOST_PROVED = 20
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
    for degree in (options["ring"],) if options["ring"] else DEGREES:
        try:
            return _in_ring(program, samples, ranges, {**options, "ring": degree})
        except UnsupportedError as error:
            if options["ring"]:
                raise
            lacks.append(f"{degree}: " + error.reason.removeprefix("target 'he': "))
    raise UnsupportedError(
        f"target 'he': no ring can hold it; by degree, {'; '.join(lacks)}",
        hint="compile for a smaller --shape, a shallower model, or with a larger option precision",
    )


def build(program: Program, options: Mapping[str, Any]) -> Planned:
    """The programs for options as `plan` completes them.

    Raises UnsupportedError for parameters that are not secure.
    """
    network = pack(program, options["ring"] // 2, options["packing"])
    chain = chain_of(network.program, options["ring"], options["scale"], options["head"])
    if not options["insecure_for_testing"]:
        security.check(chain.degree, (*chain.primes, chain.special))
    lowered = levelled.lower(network.program, chain)
    levelled.check(lowered)
    return Planned(program, network, lowered)


def _in_ring(
    program: Program,
    samples: Sequence[Mapping[str, np.ndarray]],
    ranges: Mapping[str, Range],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    _scale_bits(least_depth(program), 1, options)  # before the search for a packing, which takes longer
    network = pack(program, options["ring"] // 2, options["packing"])
    vectors = [vectors_of(network, sample) for sample in samples]
    reach = _reach(network, vectors, ranges)
    chosen = {**options, **_bits(network.program, options, reach)}
    noise = SAFETY * simulated_noise(network, build(program, chosen).levelled, vectors)
    if noise > options["precision"]:
        raise UnsupportedError(
            f"target 'he': noise of up to {noise:.2g}, and the precision wanted is {options['precision']:.2g}"
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
    fitting = (available - 2 * head - SPECIAL) // (depth + 2)
    bits = options["scale"] or min(fitting, MOST_SCALE, LONGEST - 1 - head)
    if bits < LEAST_SCALE:
        raise UnsupportedError(
            f"target 'he': {depth} levels leave scales of {bits} bits within the {available} bits that are secure in "
            f"the ring of degree {degree}, and at least {LEAST_SCALE} are needed"
        )
    return int(bits)


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
        operands = [found[a] for a in op.args]
        if op.kind == "input":
            made = next(given)
        elif op.kind in ("mul", "mul_plain"):
            with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float64 is not proved
                made = operands[0] * (np.abs(program.plains[op.plain]) if op.plain >= 0 else operands[1])
        elif op.kind == "rotate":
            made = np.roll(operands[0], -op.step)
        else:
            made = operands[0] + (np.abs(program.plains[op.plain]) if op.plain >= 0 else operands[1])
        found.append(made)
    return [float(x.max()) for x in found]


def chain_of(packed: Packed, degree: int, bits: int, head: int) -> Chain:
    """The chain for a packed program, with scales of `bits` and `head` more bits in the first prime."""
    depths = packed.depths()
    depth = max(depths[i] for i in packed.outputs)
    squared = {depths[i] for i, op in enumerate(packed.ops) if op.kind == "mul"}
    scales, primes = [2.0**bits], list[int]()
    for level in range(depth, 0, -1):
        primes.insert(0, nearest(scales[0], degree, primes))
        exact = scales[0] ** 2 / primes[0]
        scales.insert(0, exact if depth - level + 1 in squared else 2.0**bits)
    # Just below the power of two, so that the bits of all primes add up.
    first = nearest(2.0 ** (bits + head) * 0.99, degree, primes)
    special = nearest(2.0 ** min(bits + head + SPECIAL, LONGEST) * 0.99, degree, [*primes, first])
    return Chain(degree, (first, *primes), special, tuple(scales))


def simulated_noise(network: Network, lowered: Levelled, vectors: Sequence[Sequence[np.ndarray]]) -> float:
    """Largest difference of an output's number from exact arithmetic, over the samples' vectors."""
    worst = 0.0
    for seed, given in enumerate(vectors[:4]):
        exact = network.program.run(given)
        noisy = simulator.simulate(lowered, given, seed=seed)
        for name, before, after in zip(
            network.outputs, network.program.outputs, lowered.outputs, strict=True
        ):
            difference = noisy[after] - exact[before]
            worst = max(worst, float(np.abs(difference[network.layouts[name].places]).max()))
    return worst
