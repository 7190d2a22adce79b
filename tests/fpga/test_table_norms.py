"""LayerNorm and RMSNorm in integers against float64, within the stated bounds."""

from __future__ import annotations

from pathlib import Path

import csim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.norm import Normalised, normalise
from lowerkit.targets.fpga.lang.interpret import run


def rows_of(source: Fixed, n: int, seed: int = 0) -> np.ndarray:
    """Random rows of all spreads, constant ones, and the format's ends."""
    rng = np.random.default_rng(seed)
    low, high = source.range.low, source.range.high
    spreads = 2.0 ** rng.uniform(-1, source.width - 1, (60, 1))
    centres = rng.integers(low, high + 1, (60, 1)) * rng.integers(0, 2, (60, 1))
    drawn = np.rint(rng.normal(size=(60, n)) * spreads + centres)
    ends = rng.choice([low, high], (8, n))
    single = np.full((2, n), [[low], [0]])
    single[:, 0] += 1
    constant = np.full((3, n), [[low], [0], [high]])
    halves = np.where(np.arange(n) < n // 2, low, high)[None]
    return np.clip(np.concatenate([drawn, ends, single, constant, halves]), low, high).astype(np.int64)


def unit(x: np.ndarray, epsilon: float, rms: bool) -> np.ndarray:
    """The normalised rows in float64."""
    centred = x if rms else x - x.mean(axis=-1, keepdims=True)
    result: np.ndarray = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return result


def check(
    made: Normalised,
    x: np.ndarray,
    source: Fixed,
    target: Fixed,
    gamma: np.ndarray | float = 1.0,
    beta: np.ndarray | float = 0.0,
    epsilon: float = 1e-5,
    rms: bool = False,
) -> float:
    """Every number is within the bound; the largest error."""
    y = target.dequantise(run(made.kernel, {"x": x[:, None]})["y"][:, 0])
    plain = unit(source.dequantise(x), epsilon, rms)
    error = np.abs(y - np.clip(plain * gamma + beta, target.low, target.high))
    bound = made.slope * np.abs(plain) + made.absolute
    assert (error <= bound).all(), float((error - bound).max())
    assert bound.max() <= made.worst
    return float(error.max())


@pytest.mark.parametrize("interpolate", [True, False])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("n", [1, 2, 64, 384])
@pytest.mark.parametrize("source", ["ap_fixed<16,6>", "ap_fixed<8,4>", "ap_ufixed<12,2>"])
def test_rows_are_within_the_bound(source: str, n: int, rms: bool, interpolate: bool) -> None:
    given, target = Fixed.parse(source), Fixed(16, 6)
    rng = np.random.default_rng(n)
    gamma, beta = rng.normal(1, 0.3, n), rng.normal(0, 0.5, n)
    made = normalise("f", (1, n), given, target, gamma=gamma, beta=beta, rms=rms, interpolate=interpolate)
    error = check(made, rows_of(given, n), given, target, gamma, beta, rms=rms)
    assert made.root < (4e-5 if interpolate else 4e-3)
    # The bound means something.
    assert made.worst <= 12 * max(error, target.step / 2)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1e-3, 1.0])
def test_epsilon(epsilon: float) -> None:
    source, target = Fixed(16, 6), Fixed(16, 6)
    made = normalise("f", (1, 64), source, target, epsilon=epsilon)
    check(made, rows_of(source, 64), source, target, epsilon=epsilon)


@pytest.mark.parametrize("rms", [False, True])
def test_constant_rows_give_beta(rms: bool) -> None:
    beta = np.array([0.5, -1.25, 3.0])
    made = normalise("f", (2, 3), Fixed(16, 6), Fixed(16, 6), gamma=np.full(3, 7.0), beta=beta, rms=rms)
    x = np.full((1, 2, 3), 0 if rms else -(2**15))
    y = Fixed(16, 6).dequantise(run(made.kernel, {"x": x})["y"])
    assert np.array_equal(y, np.broadcast_to(beta, y.shape))


def test_rows_of_any_shape() -> None:
    source, target = Fixed(16, 6), Fixed(16, 6)
    made = normalise("f", (2, 3, 16), source, target)
    x = rows_of(source, 16)[:12].reshape(2, 2, 3, 16)
    y = target.dequantise(run(made.kernel, {"x": x})["y"])
    assert np.abs(y - unit(source.dequantise(x), 1e-5, False)).max() <= made.worst


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="too wide a sum"):
        normalise("f", (4, 384), Fixed(32, 8), Fixed(16, 6))
    with pytest.raises(ValueError, match="epsilon"):
        normalise("f", (4, 8), Fixed(16, 8), Fixed(16, 6), epsilon=0.0)
    with pytest.raises(ValueError, match="gamma and beta"):
        normalise("f", (4, 8), Fixed(16, 8), Fixed(16, 6), gamma=np.ones(4))
    with pytest.raises(ValueError, match="index_bits"):
        normalise("f", (4, 8), Fixed(16, 8), Fixed(16, 6), index_bits=13)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_formats(data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 16))
    source = Fixed(width, data.draw(st.integers(-2, 10)), data.draw(st.booleans()))
    target = Fixed(data.draw(st.integers(4, 18)), data.draw(st.integers(1, 8)), data.draw(st.booleans()))
    n, rms = data.draw(st.integers(1, 70)), data.draw(st.booleans())
    epsilon = data.draw(st.sampled_from([1e-6, 1e-5, 1e-2]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    gamma = rng.normal(0, 2.0 ** rng.integers(-6, 5), n) if data.draw(st.booleans()) else None
    beta = rng.normal(0, 2.0 ** rng.integers(-6, 5), n) if data.draw(st.booleans()) else None
    made = normalise(
        "f",
        (1, n),
        source,
        target,
        gamma=gamma,
        beta=beta,
        rms=rms,
        epsilon=epsilon,
        index_bits=data.draw(st.integers(2, 12)),
        interpolate=data.draw(st.booleans()),
    )
    scale, shift = 1.0 if gamma is None else gamma, 0.0 if beta is None else beta
    check(made, rows_of(source, n), source, target, scale, shift, epsilon, rms)


def test_printed_code_agrees(tmp_path: Path) -> None:
    source, target, n = Fixed(16, 6), Fixed(16, 6), 12
    rng = np.random.default_rng(0)
    gamma, beta = rng.normal(1, 0.3, n), rng.normal(0, 0.5, n)
    x = rows_of(source, n).reshape(-1, 2, n)
    for name, rms in (("layer", False), ("rms", True)):
        given_beta = None if rms else beta
        kernel = normalise(
            name, (2, n), source, target, gamma=gamma, beta=given_beta, rms=rms, index_bits=5
        ).kernel
        expected = run(kernel, {"x": x})["y"]
        assert np.array_equal(csim.run(kernel, {"x": x}, tmp_path)["y"], expected)
