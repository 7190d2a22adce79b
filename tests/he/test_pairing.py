"""Products of ciphertexts that share a prime with the plaintext products after them."""

from __future__ import annotations

import numpy as np
from he_models import MLP, completed, mlp_weights, uniform
from helpers import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.errors import UnsupportedError
from lowerkit.targets.he import levelled, simulator
from lowerkit.targets.he.chains import chain_of
from lowerkit.targets.he.packed import Packed
from lowerkit.targets.he.pairing import unscaled
from lowerkit.targets.he.parameters import vectors_of
from lowerkit.targets.he.target import HeTarget


def test_a_square_and_the_layer_after_it_take_one_level() -> None:
    model = parse(MLP, **mlp_weights())
    samples = uniform(model, 2)
    options = completed(model, samples)
    target = HeTarget()
    together, apart = (
        target.planned(model, options),
        target.planned(model, completed(model, samples, pairs=0)),
    )
    assert options["pairs"] == 1
    assert len(together.levelled.chain.primes) == len(apart.levelled.chain.primes) - 1
    given = vectors_of(together.network, samples[0])
    exact = together.network.program.run(given)
    for program, noise in ((together.levelled, 1e-4), (together.levelled, 0.0), (apart.levelled, 0.0)):
        found = simulator.simulate(program, given, noisy=noise > 0)
        for before, after in zip(together.network.program.outputs, program.outputs, strict=True):
            np.testing.assert_allclose(found[after], exact[before], rtol=1e-9, atol=max(noise, 1e-9))


def test_a_product_that_a_product_reads_is_rescaled() -> None:
    packed = Packed(16)
    x = packed.input()
    square = packed.mul(x, x)
    packed.outputs = [
        packed.mul_plain(packed.mul(square, square), np.ones(16)),
        packed.mul_plain(square, np.ones(16)),
    ]
    assert unscaled(packed, 8) == frozenset({2})


def _program(choices: list[tuple[int, int, int]]) -> Packed:
    packed = Packed(16)
    values = [packed.input(), packed.input()]
    for kind, i, j in choices:
        x, y = values[i % len(values)], values[j % len(values)]
        made = (
            lambda: packed.mul(x, y),  # noqa: B023
            lambda: packed.mul_plain(x, np.cos(np.arange(16.0) + j)),  # noqa: B023
            lambda: packed.add(x, y),  # noqa: B023
            lambda: packed.rotate(x, 1 + j % 15),  # noqa: B023
            lambda: packed.add_plain(x, np.sin(np.arange(16.0) + j)),  # noqa: B023
        )[kind]()
        values.append(made)
    read = {a for op in packed.ops for a in op.args}
    packed.outputs = [packed.total(i for i in range(len(packed.ops)) if i not in read)]
    return packed


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9),
    st.integers(1, 3),
)
def test_scales_agree_or_are_refused(choices: list[tuple[int, int, int]], pairs: int) -> None:
    packed = _program(choices)
    kept = unscaled(packed, pairs)
    try:
        lowered = levelled.lower(packed, chain_of(packed, 32, 30, 10, kept), unscaled=kept)
    except UnsupportedError:
        return
    levelled.check(lowered)
    numbers = [np.linspace(-1, 1, 16), np.linspace(1, -0.5, 16)]
    expected = packed.run(numbers)[packed.outputs[0]]
    found = simulator.simulate(lowered, numbers, noisy=False)[lowered.outputs[0]]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
