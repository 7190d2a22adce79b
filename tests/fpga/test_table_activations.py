"""Activations by table: every code of 16-bit inputs against float64, within the stated bounds."""

from __future__ import annotations

from pathlib import Path

import csim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.passes.activation.base import ACTIVATIONS, Activation
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.activation import Approximated, activation, exact, full_table, sized
from lowerkit.targets.fpga.lang.interpret import run

BY_FAMILY = {a.family: a for a in ACTIVATIONS}
VARIANTS = [(a.family, variant) for a in ACTIVATIONS for variant in range(len(a.wholes))]
#: Input formats of 16 bits: fine and short, usual, coarse and far, not signed.
SOURCES = ["ap_fixed<16,2>", "ap_fixed<16,6>", "ap_fixed<16,10>", "ap_ufixed<16,4>"]
TARGETS = ["ap_fixed<16,6>", "ap_ufixed<12,2>"]


def codes(source: Fixed) -> np.ndarray:
    return np.arange(source.range.low, source.range.high + 1)


def check(made: Approximated, of: Activation, source: Fixed, target: Fixed, variant: int = 0) -> float:
    """Every code is within the bound; the largest error."""
    x = codes(source)
    y = run(made.kernel, {"x": x[None]})["y"][0]
    true = np.clip(exact(of, source.dequantise(x), variant), target.low, target.high)
    error = np.abs(target.dequantise(y) - true)
    bound = made.absolute + made.relative * np.abs(true)
    worst = int(np.argmax(error - bound))
    assert (error <= bound).all(), (source.dequantise(x[worst]), error[worst], bound[worst])
    assert float(bound.max()) <= made.worst * (1 + 1e-12)
    if made.monotone:
        sides = [y[x < 0], y[x >= 0]] if of.family == "reciprocal" else [y]
        falls = of.family in ("reciprocal", "rsqrt")
        for side in sides:
            assert (np.diff(side) * (-1 if falls else 1) >= 0).all()
    return float(error.max())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_every_code_of_16_bits(family: str, variant: int, source: str, target: str) -> None:
    of, x, y = BY_FAMILY[family], Fixed.parse(source), Fixed.parse(target)
    for interpolate in (True, False):
        for index_bits in (6, 10):
            made = activation(
                "f", of, (1 << 16,), x, y, variant=variant, index_bits=index_bits, interpolate=interpolate
            )
            error = check(made, of, x, y, variant)
            # The bound means something: what is reached is not far below it.
            assert made.worst <= max(12 * error, 4 * y.step)


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
@pytest.mark.parametrize("source", ["ap_fixed<8,3>", "ap_ufixed<12,4>", "ap_fixed<1,1>"])
def test_full_tables_are_exact_to_half_a_step(family: str, variant: int, source: str) -> None:
    of, x, y = BY_FAMILY[family], Fixed.parse(source), Fixed.parse("ap_fixed<18,8>")
    made = full_table("f", of, (1 << x.width,), x, y, variant=variant)
    check(made, of, x, y, variant)
    assert made.worst == pytest.approx(y.step / 2, rel=1e-6)


def test_full_tables_of_many_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 4096 words"):
        full_table("f", BY_FAMILY["gelu"], (4,), Fixed(13, 3), Fixed(16, 6))


def test_the_least_size_is_chosen() -> None:
    gelu, x, y = BY_FAMILY["gelu"], Fixed(16, 6), Fixed(16, 6)
    made = sized("f", gelu, (1 << 16,), x, y, 0.8 * y.step)
    words = made.kernel.constants[0].shape[0]
    assert made.worst <= 0.8 * y.step
    smaller = activation("f", gelu, (1 << 16,), x, y, index_bits=words.bit_length() - 2)
    assert smaller.worst > 0.8 * y.step
    check(made, gelu, x, y)
    nearest = sized("f", gelu, (1 << 16,), x, y, 2 * y.step, interpolate=False)
    assert nearest.kernel.constants[0].shape[0] > words
    with pytest.raises(ValueError, match="out of reach"):
        sized("f", gelu, (4,), x, y, 0.4 * y.step)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="index_bits"):
        activation("f", BY_FAMILY["gelu"], (4,), Fixed(16, 6), Fixed(16, 6), index_bits=13)


FORMATS = st.builds(
    lambda width, integer, signed: Fixed(width, integer, signed),
    st.integers(2, 14),
    st.integers(-3, 12),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VARIANTS), FORMATS, FORMATS, st.integers(2, 12), st.booleans())
def test_any_formats(
    which: tuple[str, int], source: Fixed, target: Fixed, index_bits: int, interpolate: bool
) -> None:
    of, variant = BY_FAMILY[which[0]], which[1]
    shape = (1 << source.width,)
    made = activation(
        "f", of, shape, source, target, variant=variant, index_bits=index_bits, interpolate=interpolate
    )
    check(made, of, source, target, variant)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(VARIANTS), st.integers(20, 30), st.integers(2, 12), st.integers(16, 24))
def test_wide_inputs(which: tuple[str, int], width: int, integer: int, out: int) -> None:
    """Bits below the interpolation's are dropped; random codes and the ends."""
    of, source, target = BY_FAMILY[which[0]], Fixed(width, integer), Fixed(out, 8)
    rng = np.random.default_rng(width)
    ends = [source.range.low, source.range.low + 1, -1, 0, 1, source.range.high]
    x = np.concatenate([ends, rng.integers(source.range.low, source.range.high, 2000)])
    made = activation("f", of, x.shape, source, target, variant=which[1])
    y = target.dequantise(run(made.kernel, {"x": x[None]})["y"][0])
    true = np.clip(exact(of, source.dequantise(x), which[1]), target.low, target.high)
    assert (np.abs(y - true) <= made.absolute + made.relative * np.abs(true)).all()


def test_shapes_have_a_loop_for_each_axis() -> None:
    made = activation("f", BY_FAMILY["tanh"], (2, 3, 4), Fixed(16, 4), Fixed(16, 2))
    x = np.random.default_rng(0).integers(-(2**15), 2**15, (5, 2, 3, 4))
    y = run(made.kernel, {"x": x})["y"]
    assert y.shape == x.shape
    error = np.abs(Fixed(16, 2).dequantise(y) - np.tanh(Fixed(16, 4).dequantise(x)))
    assert error.max() <= made.worst


@pytest.mark.parametrize("family", ["gelu", "sigmoid", "mish", "exp", "reciprocal", "rsqrt"])
def test_printed_code_agrees(family: str, tmp_path: Path) -> None:
    """One of each form; every seventh code."""
    of, source, target = BY_FAMILY[family], Fixed(16, 6), Fixed(16, 6)
    x = codes(source)[None, ::7]
    kernels = [activation("lines", of, x.shape[1:], source, target, index_bits=5).kernel]
    if family in ("gelu", "rsqrt"):
        nearest = activation("nearest", of, x.shape[1:], source, target, index_bits=5, interpolate=False)
        every = full_table("every_code", of, x.shape[1:], Fixed(6, 3), target)
        kernels += [nearest.kernel, every.kernel]
    for kernel in kernels:
        given = x >> 10 if kernel.name == "every_code" else x
        expected = run(kernel, {"x": given})["y"]
        assert np.array_equal(csim.run(kernel, {"x": given}, tmp_path)["y"], expected)
