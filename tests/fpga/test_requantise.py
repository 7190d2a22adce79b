"""Requantisation is exact: every sum of its range gives the code that rational arithmetic gives."""

from __future__ import annotations

from fractions import Fraction

import csim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.targets.fpga.formats import Affine, Bipolar, Fixed, Format, parse
from lowerkit.targets.fpga.kernels import affine
from lowerkit.targets.fpga.kernels.requantise import Line, Requantise, floor_sum, multipliers
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Builder, Kernel

scales = st.floats(2.0**-12, 4.0, width=32)


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    width, signed, narrow = draw(st.integers(2, 8)), draw(st.booleans()), draw(st.booleans())
    ends = Affine(width, 1.0, 0, signed, narrow).range
    return Affine(width, draw(scales), draw(st.integers(ends.low, ends.high)), signed, narrow)


outputs = st.one_of(affines(), st.builds(Fixed, st.integers(2, 9), st.integers(-2, 8), st.booleans()))
#: Factors with ties (small denominators), without (quotients of float32), and powers of two.
factors = st.one_of(
    st.builds(Fraction, st.integers(-9, 9), st.integers(1, 60)),
    st.builds(lambda a, b: Fraction(a) / Fraction(b), scales, scales),
    st.builds(lambda n: Fraction(1, 2**n), st.integers(0, 12)),
)
offsets = st.one_of(
    st.just(Fraction(0)),
    st.builds(Fraction, st.integers(-40, 40), st.integers(1, 8)),
    st.builds(Fraction, scales),
)


def expected(number: Fraction, out: Format) -> int:
    """round(number) + zero, half to even and saturated."""
    if isinstance(out, Bipolar):
        return 1 if number >= 0 else -1
    return min(max(round(number) + out.zero, out.range.low), out.range.high)


def kernel_of(lines: list[Line], numbers: Range, out: Format) -> Kernel:
    k = Builder("requantised", "codes of sums")
    x, y = k.input("x", (len(lines),), numbers), k.output("y", (len(lines),), out.range)
    exact = Requantise(k, "q", lines, out)
    with k.loop("i", len(lines)) as i:
        k.store(y, i, exact.of(x[i], i))
    return k.finish()


@given(st.integers(0, 30), st.integers(-99, 99), st.integers(-999, 999), st.integers(1, 50))
def test_floor_sums(count: int, a: int, b: int, m: int) -> None:
    assert floor_sum(count, a, b, m) == sum((a * i + b) // m for i in range(count))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_sum_of_the_range_is_rounded_as_the_exact_number(data: st.DataObject) -> None:
    low = data.draw(st.integers(-2000, 500))
    numbers = Range(low, low + data.draw(st.integers(0, 3000)))
    out = data.draw(outputs)
    lines = [
        Line(numbers, data.draw(factors), data.draw(offsets)) for _ in range(data.draw(st.integers(1, 3)))
    ]
    sums = np.arange(numbers.low, numbers.high + 1)
    codes = run(kernel_of(lines, numbers, out), {"x": np.repeat(sums[:, None], len(lines), 1)})["y"]
    for i, line in enumerate(lines):
        wanted = [expected(line.factor * int(n) + line.offset, out) for n in sums]
        np.testing.assert_array_equal(codes[:, i], wanted)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(lambda a, b: Fraction(a) / Fraction(b), scales, scales),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_no_smaller_shift_is_exact(factor: Fraction, below: int, above: int) -> None:
    line = Line(Range(-below, above), factor)
    shift, (m,), (c,), _ = multipliers([line])
    sums = range(-below, above + 1)
    assert [(n * m + c) >> shift for n in sums] == [int((factor * n + Fraction(1, 2)) // 1) for n in sums]
    if shift and not line.ties():
        smaller = 2 ** (shift - 1)
        m = -(-factor.numerator * smaller // factor.denominator)
        c = -(-(Fraction(1, 2) * smaller + below * (m - factor * smaller)) // 1)
        assert [(n * m + c) // smaller for n in sums] != [
            int((factor * n + Fraction(1, 2)) // 1) for n in sums
        ]


@settings(max_examples=60, deadline=None)
@given(st.lists(factors.filter(lambda f: f > 0), min_size=1, max_size=3), offsets)
def test_signs(slopes: list[Fraction], offset: Fraction) -> None:
    numbers = Range(-700, 900)
    sums = np.arange(-700, 901)
    lines = [Line(numbers, slope, -offset) for slope in slopes]
    codes = run(kernel_of(lines, numbers, Bipolar(0.5)), {"x": np.repeat(sums[:, None], len(lines), 1)})["y"]
    for i, line in enumerate(lines):
        assert codes[:, i].tolist() == [expected(line.factor * int(n) - offset, Bipolar(0.5)) for n in sums]


def test_sums_of_26_bits_are_proven_without_trying_them() -> None:
    factor = (
        Fraction(float(np.float32(0.0213)))
        * Fraction(float(np.float32(0.0031)))
        / Fraction(float(np.float32(0.047)))
    )
    line = Line(Range(-(2**25), 2**25), factor).held(-128, 127)
    shift, (m,), (c,), _ = multipliers([line])
    assert line.numbers.high < 2**18  # what saturates is held before
    edges = [Fraction(2 * t - 1, 2) / factor for t in range(-128, 129)]
    for edge in edges:
        for n in (int(edge // 1) - 1, int(edge // 1), int(edge // 1) + 1):
            if line.numbers.low <= n <= line.numbers.high:
                assert (n * m + c) >> shift == int((factor * n + Fraction(1, 2)) // 1)


def test_what_needs_more_than_63_bits_is_refused() -> None:
    factor = Fraction(float(np.float32(1e-7))) / Fraction(float(np.float32(0.37)))
    with pytest.raises(ValueError, match="63 bits"):
        multipliers([Line(Range(-(2**45), 2**45), factor)])


@settings(max_examples=40, deadline=None)
@given(affines(), affines(), outputs, st.booleans())
def test_sums_of_two_are_exact(a: Affine, b: Affine, y: Format, negate: bool) -> None:
    try:
        kernel, _ = affine.add("f", (1,), (1,), a, b, y, negate=negate)
    except ValueError as error:
        if "63 bits" not in str(error):
            raise
        return
    pairs = [
        (p, q) for p in range(a.range.low, a.range.high + 1) for q in range(b.range.low, b.range.high + 1)
    ]
    pairs = pairs[:: max(1, len(pairs) // 4000)]
    given_codes = {"a": np.array(pairs)[:, :1], "b": np.array(pairs)[:, 1:]}
    sign = -1 if negate else 1
    wanted = [
        expected((a.scale * (p - a.zero) + sign * b.scale * (q - b.zero)) / y.scale, y) for p, q in pairs
    ]
    np.testing.assert_array_equal(run(kernel, given_codes)["y"][:, 0], wanted)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        affines(), st.builds(Bipolar, scales), st.builds(Fixed, st.integers(1, 20), st.integers(-9, 20))
    )
)
def test_formats_are_read_back_and_round_trip(form: Format) -> None:
    assert parse(str(form)) == form
    codes = (
        np.array([-1, 1])
        if isinstance(form, Bipolar)
        else np.array([form.range.low, form.zero, form.range.high])
    )
    np.testing.assert_array_equal(form.quantise(form.dequantise(codes)), codes)


@pytest.mark.parametrize(
    "text", ["int8<0,0>", "int8<0.1,0>", "uint4<0.5,16>", "int1<0.5,0>", "bipolar<-1>", "int8<0.5>"]
)
def test_what_is_no_format_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"scale|code of 0|bits|no format"):
        parse(text)


def test_printed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    out = Affine(8, float(np.float32(0.1)), -3)
    numbers = Range(-3000, 3000)
    lines = [
        Line(numbers, Fraction(1, 12)),
        Line(numbers, Fraction(3, 7), Fraction(1, 14)),
        Line(numbers, Fraction(-1, 50)),
    ]
    kernel = kernel_of(lines, numbers, out)
    sums = {"x": np.repeat(np.arange(-3000, 3001, 3)[:, None], 3, 1)}
    np.testing.assert_array_equal(csim.run(kernel, sums, tmp_path)["y"], run(kernel, sums)["y"])
