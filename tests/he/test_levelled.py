"""Levels, scales, security and the simulator."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from he_models import MLP, completed, mlp_weights, uniform
from helpers import parse
from hypothesis import given
from hypothesis import strategies as st

from lowerkit.errors import UnsupportedError
from lowerkit.targets.he import levelled, rotations, security, simulator
from lowerkit.targets.he.chains import chain_of
from lowerkit.targets.he.levelled import Levelled
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.parameters import vectors_of
from lowerkit.targets.he.primes import is_prime, nearest
from lowerkit.targets.he.target import HeTarget


def _program() -> Packed:
    """Values that meet on different levels, lazily rescaled sums, and rotations of products."""
    program = Packed(16)
    x, y = program.input(), program.input()
    square = program.mul(x, x)
    cube = program.mul(square, y)
    weighted = program.mul_plain(program.rotate(square, 3), np.linspace(-1, 1, 16))
    both = program.add(program.mul(x, y), square)
    mixed = program.sub(program.add(cube, weighted), both)
    program.outputs = [program.add_plain(program.rotate(mixed, 5), np.arange(16.0)), x]
    return program


def _lowered(packed: Packed) -> Levelled:
    return levelled.lower(packed, chain_of(packed, 2 * packed.slots, 40, 10))


def test_levels_and_scales_change_no_number() -> None:
    packed = _program()
    lowered = _lowered(packed)
    levelled.check(lowered)
    rng = np.random.default_rng(0)
    given = [rng.uniform(-1, 1, 16) for _ in range(2)]
    expected = packed.run(given)
    found = simulator.simulate(lowered, given, noisy=False)
    for before, after in zip(packed.outputs, lowered.outputs, strict=True):
        np.testing.assert_allclose(found[after], expected[before], atol=1e-10)


def test_sums_are_relinearised_and_rescaled_once() -> None:
    packed = Packed(16)
    xs = [packed.input() for _ in range(4)]
    packed.outputs = [packed.total([packed.mul(x, x) for x in xs])]
    kinds = [op.kind for op in _lowered(packed).ops]
    assert kinds.count("mul") == 4
    assert kinds.count("relinearise") == kinds.count("rescale") == 1


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("add", {"level": 0}, "levels"),
        ("rescale", {"scale": 2.0**41}, "scale"),
        ("mul_plain", {"plain_scale": 2.0**39}, "scale"),
        ("add_plain", {"plain_scale": 2.0**39}, "plaintext has scale"),
        ("relinearise", {"kind": "rotate"}, "not relinearised"),
        ("input", {"level": 9}, "no level"),
    ],
)
def test_the_validator_finds_broken_operations(kind: str, change: dict[str, object], message: str) -> None:
    program = _lowered(_program())
    place = next(i for i, op in enumerate(program.ops) if op.kind == kind and op.level != change.get("level"))
    program.ops[place] = replace(program.ops[place], **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        levelled.check(program)


def test_noise_is_small_and_falls_with_the_scale() -> None:
    model = parse(MLP, **mlp_weights())
    samples = uniform(model, 2)
    options = completed(model, samples)
    errors = []
    for scale in (26, 32):
        planned = HeTarget().planned(model, {**options, "scale": scale})
        given = vectors_of(planned.network, samples[0])
        exact = simulator.simulate(planned.levelled, given, noisy=False)
        noisy = simulator.simulate(planned.levelled, given)
        errors.append(max(np.abs(noisy[i] - exact[i]).max() for i in planned.levelled.outputs))
    assert 0 < errors[1] < errors[0] / 16 < 1e-2


def test_security_counts_the_prime_of_key_switching() -> None:
    primes = [nearest(2.0**53 * 0.99, 8192, []) for _ in range(4)]
    assert security.is_secure(8192, primes)
    assert not security.is_secure(8192, [*primes, nearest(2.0**20, 8192)])
    with pytest.raises(UnsupportedError, match=r"232 bits is not secure.*8192.*214"):
        security.check(8192, [*primes, nearest(2.0**20, 8192)])
    assert not security.is_secure(4097, [3])


def test_chosen_parameters_are_secure_and_smallest() -> None:
    model = parse(MLP, **mlp_weights())
    options = completed(model, uniform(model, 2))
    chain = HeTarget().planned(model, options).levelled.chain
    assert security.is_secure(chain.degree, (*chain.primes, *chain.specials))
    assert options["ring"] == 8192  # four primes and one more leave nothing to compute with in 106 bits


def test_insecure_parameters_are_refused_unless_for_testing() -> None:
    model = parse(MLP, **mlp_weights())
    options = completed(model, uniform(model, 2))
    wide = {**options, "ring": 4096, "scale": 40}
    with pytest.raises(UnsupportedError, match="not secure at 128 bits"):
        HeTarget().planned(model, wide)
    assert HeTarget().planned(model, {**wide, "insecure_for_testing": True}).levelled.chain.degree == 4096


def test_a_depth_that_no_ring_holds_is_refused() -> None:
    lines = "\n".join(f"x{i + 1} = Mul (x{i}, x{i})" for i in range(40))
    model = parse(f"(float[1,4] x0) => (float[1,4] x40) {{ {lines} }}")
    with pytest.raises(UnsupportedError, match=r"no ring can hold it.*32768.*40 levels"):
        completed(model, uniform(model, 2))


@given(bits=st.integers(20, 59), power=st.integers(10, 15))
def test_primes_split_the_ring(bits: int, power: int) -> None:
    found = nearest(2.0**bits, 2**power)
    assert found % 2 ** (power + 1) == 1
    assert is_prime(found)
    assert abs(math.log2(found) - bits) < 0.5


def test_small_numbers_are_told_prime_or_not() -> None:
    sieve = [all(n % d for d in range(2, math.isqrt(n) + 1)) for n in range(2, 3000)]
    assert [is_prime(n) for n in range(2, 3000)] == sieve
    assert not is_prime(3215031751)  # a strong pseudoprime to the bases 2, 3, 5 and 7


@given(
    uses=st.dictionaries(st.integers(1, 255), st.integers(1, 9), min_size=1, max_size=40),
    most=st.integers(1, 12),
)
def test_rotations_are_sums_of_few_steps(uses: dict[int, int], most: int) -> None:
    found = rotations.routes(uses, 256, most)
    assert set(found) == set(uses)
    assert all(sum(parts) % 256 == step for step, parts in found.items())
    assert len({part for parts in found.values() for part in parts}) <= most
