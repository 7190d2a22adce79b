"""Where to bootstrap: a shortest path over pairs of a cut through the program and the level on which it goes on.

Bootstrapping is OpenFHE's: it takes a ciphertext on level 1 to the chain's top level and keeps n numbers, which it
leaves in all slots periodically, the cheaper the smaller n is. So the program is packed into vectors of n slots, which
stand in the ciphertext again and again. What is no number of the program may differ from period to period; the values
at a cut are masked first, so that of equal numbers n slots apart one is left, and bootstrapping sums them up. The mask
also brings numbers below 1, which doublings afterwards undo, as exact and free of levels as additions are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowerkit.errors import PlanError
from lowerkit.targets.he import cost, levelled
from lowerkit.targets.he.chains import LONGEST, MARGIN, possible_digits
from lowerkit.targets.he.levelled import Chain, Levelled, Refresh, Refreshed
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.packing.ways import Network

#: Levels of OpenFHE's approximate reduction modulo the first prime, by the secret under which the modulus was raised
#: (GetModDepthInternal in ckksrns-fhe.cpp): of multiples of that prime a uniform one leaves up to 512, a sparse one 16.
REDUCTION = {"uniform": 14, "sparse": 10}
#: Level on which the last segment ends: with two primes left, outputs may be large.
LAST = 1
#: Digits of key switching at most: keys grow with them, and with two more little is gained.
MOST_DIGITS = 9
#: Levels beyond bootstrapping's at most.
MOST_LEVELS = 16
#: Bits of scales, by the secret: noise is of a constant size, which is the less as part of a number the larger the
#: scale; but the shorter, the more levels. With a sparse secret `security` has a bound on the first prime, too.
SCALES = {"uniform": (57, 55, 53), "sparse": (54, 53, 52, 51)}
#: Most ciphertexts that are alive at one cut.
WIDEST = 4
#: Stands for the doublings of a value that is not bootstrapped at a cut.
KEPT = -1


def refresh_of(options: Mapping[str, Any]) -> Refresh:
    """Bootstrapping in the ring and for the numbers of the options: its levels, and OpenFHE's default for the
    correction of its scale.

    With few slots each linear transform is one matrix product, at one level; with many they are split.
    """
    degree, slots, secret = options["ring"], options["refresh"], options["secret"]
    budget = 1 if slots <= 64 else 2 if slots <= 1024 else 3
    correction = round(-0.1516 * (2 * math.log2(degree) + math.log2(slots)) + 14.284)
    depth = REDUCTION[secret] + 2 * budget
    return Refresh(slots, (budget, budget), depth, min(max(correction, 6), 13), secret == "sparse")


@dataclass(frozen=True)
class Cut:
    """A place after which few values are alive.

    Attributes:
        after: the operation before it.
        values: that later operations read.
    """

    after: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class _Reached:
    """The best way to a stop.

    Attributes:
        seconds: estimated, with the bootstraps at the stop.
        before: number of the stop before.
        level: on which the program goes on there.
        refreshed: the values that are bootstrapped at the stop.
    """

    seconds: float
    before: int
    level: int
    refreshed: frozenset[int]


def widened(network: Network, slots: int) -> Network:
    """The network in vectors of `slots`, a multiple of its own: everything stands there again and again.

    Rotations of a vector that repeats are those of one period, so that no operation changes. A network of as many slots
    as bootstrapping keeps loses nothing by it.
    """
    packed = network.program
    times = slots // packed.slots
    program = Packed(slots, packed.ops, [np.tile(p, times) for p in packed.plains], packed.outputs)
    gathers = [(name, np.tile(index, times)) for name, index in network.gathers]
    layouts = {name: replace(layout, slots=slots) for name, layout in network.layouts.items()}
    return replace(network, program=program, gathers=gathers, layouts=layouts)


def cuts(packed: Packed) -> list[Cut]:
    """The program's cuts of at most WIDEST values, in order."""
    last = {a: i for i, op in enumerate(packed.ops) for a in op.args}
    last |= dict.fromkeys(packed.outputs, len(packed.ops))
    found: list[Cut] = []
    alive: list[int] = []
    for i, op in enumerate(packed.ops):
        alive = [v for v in [*alive, i] if last.get(v, -1) > i]
        if op.kind == "input" or len(alive) > WIDEST or (found and found[-1].values == tuple(alive)):
            continue
        found.append(Cut(i, tuple(alive)))
    return found


def read_slots(packed: Packed, places: Iterable[tuple[int, np.ndarray]]) -> list[np.ndarray]:
    """For every value bool [slots]: which of its numbers the outputs depend on.

    Args:
        places: outputs, each with its slots that hold numbers.
    """
    found = [np.zeros(packed.slots, bool) for _ in packed.ops]
    for value, slots in places:
        found[value][np.ravel(slots)] = True
    for i in reversed(range(len(packed.ops))):
        op = packed.ops[i]
        read = found[i]
        if op.kind == "rotate":
            read = np.roll(read, op.step)
        if op.kind == "mul_plain":
            read = read & (packed.plains[op.plain] != 0)
        for a in op.args:
            found[a] |= read
    return found


@dataclass(frozen=True)
class Places:
    """A program, its cuts, and the largest number of each value at one of them."""

    packed: Packed
    cuts: Sequence[Cut]
    most: Mapping[int, float]


#: A cut, the level on which the program goes on, and the values that are bootstrapped there.
Way = tuple[Cut, int, frozenset[int]]


def places(network: Network, samples: Sequence[Sequence[np.ndarray]]) -> Places:
    """Where bootstraps can be.

    Args:
        samples: the packed program's inputs, for each calibration sample.
    """
    packed, needed = network.program, _needed(network)
    found = cuts(packed)
    most = dict.fromkeys((v for cut in found for v in cut.values), 0.0)
    for sample in samples:
        numbers = packed.run(sample)
        for v in most:
            most[v] = max(most[v], float(np.abs(numbers[v][needed[v]]).max(initial=0)))
    return Places(packed, found, most)


def placed(known: Places, options: Mapping[str, Any], available: int) -> list[dict[str, Any]]:
    """Values of the options `scale`, `levels`, `digits` and `bootstraps` that fit into `available` bits, best first.

    Fewest bootstraps first, then smallest keys, then least time, as estimated. None where too many levels lie between
    two cuts for whatever fits.
    """
    paths: dict[int, tuple[list[Way], float] | None] = {}
    ranked: list[tuple[tuple[int, int, float, int], dict[str, Any]]] = []
    for scale, levels, digits in _sizes(options, available):
        if levels not in paths:
            paths[levels] = _shortest(known.packed, known.cuts, levels, options)
        if (path := paths[levels]) is None:
            continue
        ways, seconds = path
        starts = {
            str(cut.after): [level, *(_doublings(known.most[v]) if v in new else KEPT for v in cut.values)]
            for cut, level, new in ways
        }
        rank = (sum(len(new) for _, _, new in ways), digits, seconds, -scale)
        ranked.append((rank, {"scale": scale, "levels": levels, "digits": digits, "bootstraps": starts}))
    return [found for _, found in sorted(ranked, key=lambda each: each[0])]


def lower(network: Network, chain: Chain, options: Mapping[str, Any]) -> Levelled:
    """The levelled program.

    Args:
        options: of which `bootstraps` is operation of the packed program -> level on which it goes on, and doublings
            of the values that are alive after it, which are bootstrapped there; KEPT for one that is not, as it was at
            the operation before; "-1" -> the inputs' level.

    Raises PlanError for operations where nothing can be bootstrapped.
    """
    needed = _needed(network)
    known = {str(cut.after): cut for cut in cuts(network.program)}
    slots = chain.refresh.slots if chain.refresh else 0
    refreshed: dict[int, Refreshed] = {}
    earlier: tuple[int, ...] = ()
    for after, (level, *doublings) in options["bootstraps"].items():
        if after == "-1":
            continue
        cut = known.get(after)
        bits = dict(zip(cut.values, doublings, strict=False)) if cut else {}
        kept = frozenset(v for v, n in bits.items() if n == KEPT)
        if cut is None or len(doublings) != len(cut.values) or not kept.issubset(earlier):
            raise PlanError(f"option bootstraps: after operation {after} nothing can be bootstrapped so")
        new = {v: (_mask(needed[v], slots) / 2.0**n, n) for v, n in bits.items() if v not in kept}
        refreshed[cut.after] = Refreshed(level, new, kept)
        earlier = cut.values
    entry = options["bootstraps"]["-1"][0]
    return levelled.lower(network.program, chain, entry, refreshed, options["max_rotation_keys"])


def _needed(network: Network) -> list[np.ndarray]:
    packed = network.program
    parts = [part for name in network.outputs for part in network.tensors[name]]
    return read_slots(packed, [(part.value, part.slots) for part in parts])


def _shortest(
    packed: Packed, found: Sequence[Cut], levels: int, options: Mapping[str, Any]
) -> tuple[list[Way], float] | None:
    """The cuts to bootstrap at, each with the level on which the program goes on and what is bootstrapped; and the
    estimated time.

    At a cut all values have the highest level: those that were alive at the cut before are kept as they were there, and
    the others are bootstrapped. The first cut has no values: it stands for the program's beginning. None where too many
    levels lie between two.
    """
    degree, slots = options["ring"], options["refresh"]
    top = levels - refresh_of(options).depth
    start, end = Cut(-1, ()), Cut(len(packed.ops) - 1, tuple(packed.outputs))
    stops = [start, *(c for c in found if c.after < end.after), end]
    refresh = cost.bootstrap_seconds(degree, slots, levels + 1)
    best: dict[int, _Reached] = {0: _Reached(0.0, 0, 0, frozenset())}
    for i, here in enumerate(stops[:-1]):
        if i not in best:
            continue
        for j, level, seconds in _segments(packed, stops, i, top if i else levels, degree):
            new = frozenset(stops[j].values) - frozenset(here.values)
            reached = best[i].seconds + seconds + (len(new) * refresh if stops[j] is not end else 0.0)
            if j not in best or reached < best[j].seconds:
                best[j] = _Reached(reached, i, level, new)
    path: list[Way] = []
    j = len(stops) - 1
    while j:
        if j not in best:
            return None
        before = best[j].before
        path.insert(0, (stops[before], best[j].level, best[before].refreshed))
        j = before
    return path, best[len(stops) - 1].seconds


def _segments(
    packed: Packed, stops: Sequence[Cut], i: int, highest: int, degree: int
) -> Iterator[tuple[int, int, float]]:
    """Later stops that are reached without bootstrapping: number, level to start on, and estimated time."""
    depths: dict[int, int] = dict.fromkeys(stops[i].values, 0)
    kinds: Counter[tuple[str, int]] = Counter()
    done = stops[i].after + 1
    for j in range(i + 1, len(stops)):
        for k in range(done, stops[j].after + 1):
            op = packed.ops[k]
            depths[k] = max((depths[a] for a in op.args), default=0) + op.multiplies
            kinds[op.kind, depths[k]] += 1
        done = stops[j].after + 1
        depth = max(depths[v] for v in stops[j].values)
        level = depth + (LAST if j == len(stops) - 1 else 2)
        if level > highest:
            return
        times = (n * cost.seconds(kind, max(level - d, 0) + 1, degree) for (kind, d), n in kinds.items())
        yield j, level, sum(times)


def _mask(needed: np.ndarray, slots: int) -> np.ndarray:
    """One of the needed slots that are equal modulo `slots`, as many times as large as the mean over all asks for."""
    rows = needed.reshape(-1, slots)
    mask = np.zeros(rows.shape)
    mask[rows.argmax(axis=0), np.arange(slots)] = len(rows) * rows.any(axis=0)
    return mask.ravel()


def _doublings(most: float) -> int:
    """By how many powers of two twice the samples' largest number is above 1."""
    return max(math.ceil(math.log2(max(2 * most, 1.0))), 0)


def _sizes(options: Mapping[str, Any], available: int) -> Iterator[tuple[int, int, int]]:
    """Scales, levels and digits that fit into `available` bits."""
    depth = refresh_of(options).depth
    every = range(depth + 4, depth + MOST_LEVELS)
    for scale in [options["scale"]] if options["scale"] else SCALES[options["secret"]]:
        for levels in [options["levels"]] if options["levels"] else every:
            bits = options["head"] + scale * (levels + 1)
            for digits in [options["digits"]] if options["digits"] else possible_digits(levels + 1):
                longest = math.ceil((levels + 1) / digits) * (scale + 1) + options["head"] + MARGIN
                if digits <= MOST_DIGITS and bits + math.ceil(longest / LONGEST) * LONGEST <= available:
                    yield scale, levels, digits
