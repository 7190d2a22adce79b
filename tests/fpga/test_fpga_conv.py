"""Convolutions and pooling: bit for bit what exact arithmetic gives."""

from __future__ import annotations

import math
from fractions import Fraction

import csim
import numpy as np
import pytest
from codes import codes, formats, roundings
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.conv import conv2d
from lowerkit.targets.fpga.kernels.divide import Division, Quotient
from lowerkit.targets.fpga.kernels.pool import average_pool, global_average_pool, max_pool
from lowerkit.targets.fpga.kernels.window import Window
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Builder

X, Y = Fixed(6, 3), Fixed(7, 3)


def patches(x: np.ndarray, window: Window, beyond: float) -> np.ndarray:
    """[..., height, width] to [..., out height, out width, kernel height, kernel width]."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + list(window.pads), constant_values=beyond)
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.stride, window.dilation
    found = np.lib.stride_tricks.sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), (-2, -1))
    return found[..., ::sh, ::sw, ::dh, ::dw]


@st.composite
def windows(draw: st.DrawFn) -> tuple[Window, tuple[int, int]]:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
    window = Window(draw(pair), draw(pair), (draw(pads), draw(pads)), draw(pair))
    image = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    fits = all(
        n + sum(p) >= d * (k - 1) + 1
        for n, p, k, d in zip(image, window.pads, window.kernel, window.dilation, strict=True)
    )
    assume(fits)
    return window, image


def exactly(numbers: Fraction, rounding: str) -> int:
    if rounding == "half-even":
        return round(numbers)
    return math.floor(numbers + (Fraction(1, 2) if rounding == "half-up" else 0))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_conv_is_exact(data: st.DataObject) -> None:
    window, image = data.draw(windows())
    groups, each, shared = (data.draw(st.integers(1, 3)) for _ in range(3))
    x, y, rounding = data.draw(formats), data.draw(formats), data.draw(roundings)
    outputs = groups * each
    per_channel = data.draw(st.booleans())
    weight = data.draw(st.lists(formats, min_size=outputs, max_size=outputs) if per_channel else formats)
    every = weight if isinstance(weight, list) else [weight] * outputs
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    w = np.stack([codes(rng, (shared, *window.kernel), f) for f in every])
    bias = rng.integers(-3000, 3001, outputs) if data.draw(st.booleans()) else None
    reuse = data.draw(st.sampled_from([1, groups, each, shared, window.kernel[0], groups * shared, w.size]))
    kernel, cost = conv2d(
        "f", image, w, x, weight, y, stride=window.stride, pads=window.pads, dilation=window.dilation,
        groups=groups, bias=bias, rounding=rounding, reuse=reuse,
    )  # fmt: skip
    given_x = codes(rng, (groups * shared, *image), x, batch=3)
    steps = np.array([f.step for f in every])
    found = patches(x.dequantise(given_x), window, 0)
    found = found.reshape(3, groups, shared, *found.shape[2:])
    real = (w * steps[:, None, None, None]).reshape(groups, each, *w.shape[1:])
    exact = np.einsum("bgcyxij,gocij->bgoyx", found, real).reshape(3, outputs, *window.out(image))
    if bias is not None:
        exact = exact + (bias * steps * x.step)[:, None, None]
    np.testing.assert_array_equal(run(kernel, {"x": given_x})["y"], y.quantise(exact, rounding))
    assert (cost.multipliers, cost.cycles, cost.ii) == (
        w.size // reuse,
        reuse * math.prod(window.out(image)),
        reuse,
    )


@settings(max_examples=40, deadline=None)
@given(windows(), formats, formats, roundings, st.integers(0, 2**32 - 1))
def test_max_pool_is_exact(found, x: Fixed, y: Fixed, rounding: str, seed: int) -> None:
    window, image = found
    given_x = codes(np.random.default_rng(seed), (2, *image), x, batch=3)
    kernel, cost = max_pool("f", 2, image, window, x, y, rounding)
    exact = x.dequantise(patches(given_x, window, x.range.low).max((-2, -1)))
    np.testing.assert_array_equal(run(kernel, {"x": given_x})["y"], y.quantise(exact, rounding))
    assert (cost.multipliers, cost.cycles, cost.ii) == (0, 2 * math.prod(window.out(image)), 1)


@settings(max_examples=50, deadline=None)
@given(windows(), formats, formats, roundings, st.booleans(), st.integers(0, 2**32 - 1))
def test_average_pool_is_exact(found, x: Fixed, y: Fixed, rounding: str, pads: bool, seed: int) -> None:
    window, image = found
    inside = patches(np.ones(image), window, 0).sum((-2, -1)).astype(int)
    if not pads and not inside.all():
        with pytest.raises(ValueError, match="lies in the border"):
            average_pool("f", 2, image, window, x, y, count_pads=pads)
        return
    given_x = codes(np.random.default_rng(seed), (2, *image), x, batch=3)
    kernel, _ = average_pool("f", 2, image, window, x, y, count_pads=pads, rounding=rounding)
    sums = patches(given_x, window, 0).sum((-2, -1))
    counts = np.broadcast_to(math.prod(window.kernel) if pads else inside, sums.shape)
    check_means(run(kernel, {"x": given_x})["y"], sums, counts, x, y, rounding)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), formats, formats, roundings, st.integers(0, 2**32 - 1))
def test_global_average_pool_is_exact(h: int, w: int, x: Fixed, y: Fixed, rounding: str, seed: int) -> None:
    given_x = codes(np.random.default_rng(seed), (3, h, w), x, batch=4)
    kernel, cost = global_average_pool("f", 3, (h, w), x, y, rounding)
    sums = given_x.sum((-2, -1))
    check_means(run(kernel, {"x": given_x})["y"], sums, np.full(sums.shape, h * w), x, y, rounding)
    assert cost.cycles == 3 * (h * w + 1)


def check_means(got, sums, counts, x: Fixed, y: Fixed, rounding: str) -> None:
    scale = Fraction(2) ** (y.fraction - x.fraction)
    exact = [
        min(max(exactly(scale * int(s) / int(n), rounding), y.range.low), y.range.high)
        for s, n in zip(sums.ravel(), counts.ravel(), strict=True)
    ]
    np.testing.assert_array_equal(got.ravel(), exact)


@pytest.mark.parametrize("scale", [-70, -31, 0, 9, 40, 100])
@pytest.mark.parametrize("rounding", ["floor", "half-up", "half-even"])
def test_quotients_at_extreme_scales(scale: int, rounding: str) -> None:
    numbers, out = Range(-(2**20), 2**20), Range(-100, 2000)
    every = np.concatenate([np.arange(-4000, 4000), [numbers.low, numbers.high, 2**19, 2**19 + 1]])
    for divisors in ([12], [9, 6, 4]):
        k = Builder("f", "")
        quotient = Quotient(k, "q", numbers, divisors, scale, rounding, out)
        x, y = k.input("x", every.shape, numbers), k.output("y", (len(every), len(divisors)), out)
        with k.loop("i", len(every)) as i, k.loop("j", len(divisors)) as j:
            k.store(y, (i, j), quotient.of(x[i], j))
        got = run(k.finish(), {"x": every[None]})["y"][0]
        exact = [
            [
                min(max(exactly(Fraction(2) ** scale * int(n) / d, rounding), out.low), out.high)
                for d in divisors
            ]
            for n in every
        ]
        np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize("divisors", [[1], [3], [32], [24], [7, 64], [20, 12], [1000, 1, 6]])
def test_division_is_exact_at_every_number(divisors: list[int]) -> None:
    numbers = Range(-2100, 3000)
    k = Builder("f", "")
    division = Division(k, "d", numbers, divisors)
    x, y = k.input("x", (5101,), numbers), k.output("y", (5101, len(divisors)), Range(-(2**14), 2**14))
    with k.loop("i", 5101) as i, k.loop("j", len(divisors)) as j:
        k.store(y, (i, j), division.floor(x[i], j))
    every = np.arange(-2100, 3001)
    got = run(k.finish(), {"x": every[None]})["y"][0]
    np.testing.assert_array_equal(got, every[:, None] // np.array(divisors))


def test_means_of_large_images_fit() -> None:
    x = Fixed(16, 8)
    kernel, _ = global_average_pool("f", 1, (112, 112), x, x)
    given_x = np.stack([np.full((1, 112, 112), x.range.low), np.full((1, 112, 112), x.range.high)])
    given_x = np.concatenate([given_x, codes(np.random.default_rng(0), (1, 112, 112), x, batch=3)[2:]])
    sums = given_x.sum((-2, -1))
    check_means(run(kernel, {"x": given_x})["y"], sums, np.full(sums.shape, 112 * 112), x, x, "half-even")


def test_what_cannot_be_divided_by_a_product_is_refused() -> None:
    with pytest.raises(ValueError, match="too wide"):
        Division(Builder("f", ""), "d", Range(0, 2**40), [7])


def test_an_image_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than"):
        conv2d("f", (2, 5), np.ones((1, 1, 3, 3), int), X, X, Y)


@pytest.mark.parametrize(("groups", "reuse"), [(1, 1), (1, 4), (2, 12), (4, 36)])
def test_printed_conv(tmp_path, groups: int, reuse: int) -> None:
    rng = np.random.default_rng(groups)
    w = codes(rng, (4, 4 // groups, 3, 3), X)
    kernel, _ = conv2d(
        "f", (5, 6), w, X, [X, Fixed(6, 1), X, X], Y, stride=(2, 1), pads=((1, 0), (2, 1)), dilation=(1, 2),
        groups=groups, bias=rng.integers(-99, 99, 4), reuse=reuse,
    )  # fmt: skip
    inputs = {"x": codes(rng, (4, 5, 6), X, batch=5)}
    np.testing.assert_array_equal(csim.run(kernel, inputs, tmp_path)["y"], run(kernel, inputs)["y"])


@pytest.mark.parametrize("kind", ["max", "average", "average with pads", "global"])
def test_printed_pool(tmp_path, kind: str) -> None:
    window = Window((3, 2), (2, 1), ((1, 1), (0, 1)))
    if kind == "max":
        kernel, _ = max_pool("f", 3, (5, 4), window, X, Y)
    elif kind == "global":
        kernel, _ = global_average_pool("f", 3, (5, 4), X, Y)
    else:
        kernel, _ = average_pool("f", 3, (5, 4), window, X, Y, count_pads="pads" in kind)
    inputs = {"x": codes(np.random.default_rng(0), (3, 5, 4), X, batch=6)}
    np.testing.assert_array_equal(csim.run(kernel, inputs, tmp_path)["y"], run(kernel, inputs)["y"])
