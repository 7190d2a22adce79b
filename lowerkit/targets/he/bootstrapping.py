"""Where to bootstrap: a shortest path over pairs of a cut through the program and the level on which it goes on.

Bootstrapping is OpenFHE's: it takes a ciphertext on level 1 to the chain's top level and keeps n numbers, which it
leaves in all slots periodically, the cheaper the smaller n is. So the program is packed into vectors of n slots, which
stand in the ciphertext again and again. What is no number of the program may differ from period to period; the values
at a cut are masked first, so that of equal numbers n slots apart one is left, and bootstrapping sums them up. The mask
also brings numbers below 1, which doublings afterwards undo, as exact and free of levels as additions are.
"""

from __future__ import annotations

import math
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

#: Levels of OpenFHE's approximate reduction modulo the first prime, for uniform ternary secrets.
REDUCTION = 14
#: Level on which the last segment ends: with two primes left, outputs may be large.
LAST = 1
#: Digits of key switching at most: keys grow with them, and with two more little is gained.
MOST_DIGITS = 9
#: Levels beyond bootstrapping's at most.
MOST_LEVELS = 16
#: Most ciphertexts that are bootstrapped at one cut.
WIDEST = 4


def refresh_of(degree: int, slots: int) -> Refresh:
    """Bootstrapping that keeps `slots` numbers: its levels, and OpenFHE's default for the correction of its scale.

    With few slots each linear transform is one matrix product, at one level; with many they are split.
    """
    budget = 1 if slots <= 64 else 2 if slots <= 1024 else 3
    correction = round(-0.1516 * (2 * math.log2(degree) + math.log2(slots)) + 14.284)
    return Refresh(slots, (budget, budget), REDUCTION + 2 * budget, min(max(correction, 6), 13))


@dataclass(frozen=True)
class Cut:
    """A place after which few values are alive.

    Attributes:
        after: the operation before it.
        values: that later operations read.
        period: of these values' numbers, where later operations read them.
    """

    after: int
    values: tuple[int, ...]
    period: int


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


def cuts(network: Network, needed: Sequence[np.ndarray]) -> list[Cut]:
    """The program's cuts of at most WIDEST values, in order. `needed`: see `read_slots`."""
    packed = network.program
    last = {a: i for i, op in enumerate(packed.ops) for a in op.args}
    last |= dict.fromkeys(packed.outputs, len(packed.ops))
    rng = np.random.default_rng(0)
    # Numbers that agree for random inputs are the same polynomial of them, but for a chance of about 2^-50.
    count = max(int(index.max()) for _, index in network.gathers) + 1
    inputs = {name: np.append(rng.uniform(-1, 1, count), 0.0) for name, _ in network.gathers}
    numbers = packed.run([inputs[name][index] for name, index in network.gathers])
    found: list[Cut] = []
    alive: list[int] = []
    for i, op in enumerate(packed.ops):
        alive = [v for v in [*alive, i] if last.get(v, -1) > i]
        if op.kind == "input" or len(alive) > WIDEST or (found and found[-1].values == tuple(alive)):
            continue
        period = max((_period(numbers[v], needed[v]) for v in alive), default=1)
        found.append(Cut(i, tuple(alive), period))
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


def _period(numbers: np.ndarray, needed: np.ndarray) -> int:
    """The shortest power of two by which slots that are needed repeat."""
    scale = max(float(np.abs(numbers[needed]).max(initial=0)), 1e-300)
    period = 4
    while period < len(numbers):
        rows, masks = numbers.reshape(-1, period), needed.reshape(-1, period)
        high = np.where(masks, rows, -np.inf).max(axis=0)
        low = np.where(masks, rows, np.inf).min(axis=0)
        if np.all((high - low)[masks.any(axis=0)] <= 1e-9 * scale):
            return period
        period *= 2
    return period


def placed(
    network: Network, samples: Sequence[Sequence[np.ndarray]], options: Mapping[str, Any], available: int
) -> dict[str, Any] | None:
    """The options `levels`, `digits` and `bootstraps` with the fewest bootstraps, then the fewest digits and levels.

    None where too many levels lie between two cuts for whatever fits into `available` bits.

    Args:
        samples: the packed program's inputs, for each calibration sample.
    """
    packed, needed = network.program, _needed(network)
    found = cuts(network, needed)
    values = [packed.run(sample) for sample in samples]
    best: tuple[tuple[int, int, int], dict[str, Any]] | None = None
    for levels, digits in _sizes(options, available):
        path = _shortest(packed, found, levels, options)
        if not path:
            continue
        rank = (sum(len(cut.values) for cut, _ in path), digits, levels)
        if best is None or rank < best[0]:
            places = {str(c.after): [level, *_doublings(c, needed, values)] for c, level in path}
            best = rank, {"levels": levels, "digits": digits, "bootstraps": places}
    return best[1] if best else None


def lower(network: Network, chain: Chain, options: Mapping[str, Any]) -> Levelled:
    """The levelled program.

    Args:
        options: of which `bootstraps` is operation of the packed program -> level on which it goes on, and doublings
            of the values that are alive after it, which are bootstrapped there; "-1" -> the inputs' level.

    Raises PlanError for operations where nothing can be bootstrapped.
    """
    needed = _needed(network)
    known = {str(cut.after): cut for cut in cuts(network, needed)}
    slots = chain.refresh.slots if chain.refresh else 0
    refreshed: dict[int, list[Refreshed]] = {}
    for after, (level, *doublings) in options["bootstraps"].items():
        if after == "-1":
            continue
        cut = known.get(after)
        if cut is None or len(doublings) != len(cut.values) or cut.period > slots:
            raise PlanError(f"option bootstraps: after operation {after} nothing can be bootstrapped so")
        refreshed[cut.after] = [
            Refreshed(v, level, _mask(needed[v], slots) / 2.0**bits, bits)
            for v, bits in zip(cut.values, doublings, strict=True)
        ]
    entry = options["bootstraps"]["-1"][0]
    return levelled.lower(network.program, chain, entry, refreshed, options["max_rotation_keys"])


def _needed(network: Network) -> list[np.ndarray]:
    packed = network.program
    parts = [part for name in network.outputs for part in network.tensors[name]]
    return read_slots(packed, [(part.value, part.slots) for part in parts])


def _shortest(
    packed: Packed, found: Sequence[Cut], levels: int, options: Mapping[str, Any]
) -> list[tuple[Cut, int]] | None:
    """The cuts to bootstrap at, each with the level on which the program goes on.

    The first one has no values: it stands for the program's beginning. None where too many levels lie between two.
    """
    degree, slots = options["ring"], options["refresh"]
    start = Cut(-1, (), 1)
    end = Cut(len(packed.ops) - 1, tuple(packed.outputs), 1)
    stops = [start, *(c for c in found if c.period <= slots and c.after < end.after), end]
    best: list[tuple[float, int, int] | None] = [(0.0, 0, 0)] + [None] * (len(stops) - 1)
    for i, here in enumerate(stops[:-1]):
        so_far = best[i]
        if so_far is None:
            continue
        highest = levels - refresh_of(degree, slots).depth if i else levels
        refreshing = len(here.values) * cost.bootstrap_seconds(degree, slots)
        for j, level, time in _segments(packed, stops, i, highest, degree):
            reached, known = so_far[0] + refreshing + time, best[j]
            if known is None or reached < known[0]:
                best[j] = (reached, i, level)
    path: list[tuple[Cut, int]] = []
    j = len(stops) - 1
    while j:
        step = best[j]
        if step is None:
            return None
        path.insert(0, (stops[step[1]], step[2]))
        j = step[1]
    return path


def _segments(
    packed: Packed, stops: Sequence[Cut], i: int, highest: int, degree: int
) -> Iterator[tuple[int, int, float]]:
    """Later stops that are reached without bootstrapping: number, level to start on, and estimated time."""
    depths: dict[int, int] = dict.fromkeys(stops[i].values, 0)
    kinds: list[tuple[str, int]] = []
    done = stops[i].after + 1
    for j in range(i + 1, len(stops)):
        for k in range(done, stops[j].after + 1):
            op = packed.ops[k]
            depths[k] = max((depths[a] for a in op.args), default=0) + op.multiplies
            kinds.append((op.kind, depths[k]))
        done = stops[j].after + 1
        depth = max(depths[v] for v in stops[j].values)
        level = depth + (LAST if j == len(stops) - 1 else 2)
        if level > highest:
            return
        yield j, level, sum(cost.seconds(kind, max(level - d, 0) + 1, degree) for kind, d in kinds)


def _mask(needed: np.ndarray, slots: int) -> np.ndarray:
    """One of the needed slots that are equal modulo `slots`, as many times as large as the mean over all asks for."""
    rows = needed.reshape(-1, slots)
    mask = np.zeros(rows.shape)
    mask[rows.argmax(axis=0), np.arange(slots)] = len(rows) * rows.any(axis=0)
    return mask.ravel()


def _doublings(cut: Cut, needed: Sequence[np.ndarray], samples: Sequence[Sequence[np.ndarray]]) -> list[int]:
    """By how many powers of two twice the samples' numbers at a cut are above 1."""
    most = [
        max(2 * float(np.abs(values[v][needed[v]]).max(initial=0)) for values in samples) for v in cut.values
    ]
    return [max(math.ceil(math.log2(max(m, 1.0))), 0) for m in most]


def _sizes(options: Mapping[str, Any], available: int) -> Iterator[tuple[int, int]]:
    """Levels and digits, each pair of which fits into `available` bits."""
    depth = refresh_of(options["ring"], options["refresh"]).depth
    every = range(depth + 4, depth + MOST_LEVELS)
    for levels in [options["levels"]] if options["levels"] else every:
        bits = options["head"] + options["scale"] * (levels + 1)
        for digits in [options["digits"]] if options["digits"] else possible_digits(levels + 1):
            longest = math.ceil((levels + 1) / digits) * (options["scale"] + 1) + options["head"] + MARGIN
            if digits <= MOST_DIGITS and bits + math.ceil(longest / LONGEST) * LONGEST <= available:
                yield levels, digits
