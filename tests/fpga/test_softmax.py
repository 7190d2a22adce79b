"""Softmax kernels against the methods whose integers they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from lowerkit.numerics.rows import softmax_rows
from lowerkit.passes.softmax.binary import Binary
from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.passes.softmax.log_quantised import PER_OCTAVE, LogQuantised
from lowerkit.passes.softmax.power import FORMS, Power
from lowerkit.passes.softmax.quantised import Quantised
from lowerkit.passes.softmax.shift import Shift
from lowerkit.targets.fpga.formats import Fixed as Format
from lowerkit.targets.fpga.kernels import softmax
from lowerkit.targets.fpga.kernels.softmax.quantised import zero_point
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Kernel

WIDE = Format.parse("ap_fixed<16,6>")


def logits(source: Format, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Codes [rows, columns]: near ones with ties, wide ones, the whole format, saturated ones, and constant rows."""
    rng = np.random.default_rng(seed)
    fifth, shape = -(-rows // 5), (-(-rows // 5), columns)
    low, high = source.range.low, source.range.high
    parts = [
        rng.integers(-6, 7, shape) * max(1, high // 64),
        source.quantise(rng.normal(0, 4, shape)),
        rng.integers(low, high, shape, endpoint=True),
        np.where(rng.random(shape) < 0.5, low, high),
        np.broadcast_to(rng.integers(low, high, (fifth, 1), endpoint=True), shape),
    ]
    parts[3][: fifth // 2] = source.quantise(rng.normal(0, 1000, (fifth // 2, columns)))
    return np.clip(np.concatenate(parts), low, high)[:rows]


def results(kernel: Kernel, codes: np.ndarray) -> np.ndarray:
    """The kernel over many rows, in batches of its own number."""
    rows = kernel.inputs[0].shape[0]
    found = run(kernel, {"x": codes.reshape(-1, rows, codes.shape[-1])})
    return found["y"].reshape(codes.shape)


def exact(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int64)


@pytest.mark.parametrize(
    ("source", "target", "options"),
    [
        ("ap_fixed<16,6>", "ap_fixed<16,6>", {}),
        ("ap_fixed<16,6>", "ap_ufixed<18,2>", {"input_bits": 8}),
        ("ap_fixed<16,6>", "ap_fixed<25,1>", {"table_bits": 4, "reciprocal_bits": 14}),
        ("ap_fixed<8,4>", "ap_fixed<17,2>", {"input_bits": 8}),
        ("int8", "ap_fixed<16,2>", {"table_bits": 24}),
        ("ap_ufixed<12,3>", "ap_ufixed<9,1>", {"reciprocal_bits": 4}),
    ],
)
@pytest.mark.parametrize("columns", [1, 2, 17, 64])
def test_fixed_is_the_method_bit_for_bit(
    source: str, target: str, options: dict[str, int], columns: int
) -> None:
    given, wanted = Format.parse(source), Format.parse(target)
    default = {"input_bits": min(max(given.fraction, 1), 12), "output_bits": wanted.fraction}
    method = FixedMethod(**{**default, **options})
    codes = logits(given, 10_000, columns)
    kernel = softmax.fixed(10, columns, given, wanted, method if options else None)
    expected = method.evaluate(given.dequantise(codes)) * 2.0**method.output_bits
    np.testing.assert_array_equal(results(kernel, codes), np.minimum(exact(expected), wanted.range.high))


def test_fixed_saturates_where_the_format_ends_below_one() -> None:
    target = Format.parse("ap_ufixed<8,0>")
    codes = logits(WIDE, 1_000, 5)
    y = results(softmax.fixed(10, 5, WIDE, target), codes)
    method = FixedMethod(input_bits=10, output_bits=8)
    np.testing.assert_array_equal(y, np.minimum(method.evaluate(WIDE.dequantise(codes)) * 256, 255))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="10 fractional bits, not 15"):
        softmax.fixed(1, 4, WIDE, WIDE, FixedMethod())
    with pytest.raises(ValueError, match="longest = 3"):
        softmax.fixed(1, 4, WIDE, WIDE, FixedMethod(output_bits=10, longest=3))
    with pytest.raises(ValueError, match="scale the logits"):
        softmax.shift(1, 4, Format(24, 8), WIDE)
    with pytest.raises(ValueError, match="per head"):
        softmax.quantised(1, 4, WIDE, Quantised(per_head=True, correction=(0.0, 0.0)))
    with pytest.raises(ValueError, match="per head"):
        softmax.binary(1, 4, WIDE, Binary(per_head=True, threshold=(0.1, 0.2), scale=(0.1, 0.2)))


@dataclass(frozen=True)
class Octaves(Shift):
    """Shift on logits that are scaled by log2(e) already."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.round(np.asarray(x, np.float64) * 2.0**self.input_bits)
        return found


def streamed(method: Shift, u: np.ndarray) -> np.ndarray:
    """The sums [rows] of the single pass in the docstring of Shift, in floating point."""
    steps = 2.0**method.input_bits
    table, _ = method.tables()
    top, total = np.ceil(u[:, 0] / steps), np.zeros(len(u))
    for column in u.T:
        above = np.maximum(top, np.ceil(column / steps))
        near = np.minimum(above * steps - column, method.last).astype(np.int64)
        e = np.floor(np.ldexp(table[near % len(table)], -(near // len(table))) + 0.5)
        risen = (above - top).astype(np.int64)
        total = np.where(risen > 0, np.floor(np.ldexp(total, -risen) + 0.5), total) + e
        top = above
    return total


@pytest.mark.parametrize("octaves", [False, True])
@pytest.mark.parametrize(
    ("source", "target", "options"),
    [
        ("ap_fixed<16,6>", "ap_fixed<16,6>", {}),
        ("ap_fixed<16,6>", "ap_fixed<18,2>", {"input_bits": 6, "table_bits": 16}),
        ("ap_fixed<8,4>", "ap_fixed<24,2>", {"table_bits": 4, "reciprocal_bits": 14}),
        ("int8", "ap_fixed<16,2>", {}),
    ],
)
@pytest.mark.parametrize("columns", [1, 2, 17, 64])
def test_shift_is_the_single_pass_bit_for_bit(
    source: str, target: str, options: dict[str, int], columns: int, octaves: bool
) -> None:
    given, wanted = Format.parse(source), Format.parse(target)
    default = {"input_bits": max(given.fraction, 1), "output_bits": wanted.fraction}
    method = (Octaves if octaves else Shift)(**{**default, **options})
    codes = logits(given, 10_000, columns)
    kernel = softmax.shift(10, columns, given, wanted, method if options else None, octaves=octaves)
    y = results(kernel, codes)
    x = given.dequantise(codes)
    _, e = method.exponentials(x)
    total = streamed(method, method.logits(x))[:, None]
    np.testing.assert_array_equal(y, exact(method.divide(e, total) * 2.0**method.output_bits))
    # The same as evaluate where the first element has the largest integer maximum.
    first = -np.sort(-codes, axis=-1)
    expected = method.evaluate(given.dequantise(first)) * 2.0**method.output_bits
    np.testing.assert_array_equal(results(kernel, first), exact(expected))


@pytest.mark.parametrize("base", sorted(PER_OCTAVE))
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_codes_of_powers(base: str, bits: int) -> None:
    method, exponential = LogQuantised(bits=bits, base=base), FixedMethod(input_bits=10, table_bits=24)
    codes = logits(WIDE, 10_000, 17)
    k = results(softmax.log_quantised(10, 17, WIDE, method, exponential), codes)
    x = WIDE.dequantise(codes)
    _, e = exponential.exponentials(x)
    with np.errstate(divide="ignore"):
        exponent = -np.log2(e / e.sum(axis=-1, keepdims=True)) * PER_OCTAVE[base]
    np.testing.assert_array_equal(k, np.minimum(np.round(exponent), method.last + 1))
    # Exact softmax has the same codes but where both are near a code's end, or e is of few bits.
    meant = np.where(k > method.last, 0, np.exp2(-k / PER_OCTAVE[base]))
    p = softmax_rows(x)
    plain = p > 2.0**-12
    assert (meant == method.evaluate(x))[plain].mean() > 0.999
    assert np.abs(meant - p).max() <= method.bound().value + 1e-6


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_steps_are_rounded_shares(bits: int) -> None:
    method, exponential = Quantised(bits=bits, correction=0.25 / (2**bits - 1)), FixedMethod(input_bits=10)
    codes = logits(WIDE, 10_000, 17)
    q = results(softmax.quantised(10, 17, WIDE, method, exponential), codes)
    x = WIDE.dequantise(codes)
    _, e = exponential.exponentials(x)
    _, reciprocals = exponential.tables()
    mantissa, exponent = np.frexp(e.sum(axis=-1, keepdims=True))
    r = reciprocals[((2 * mantissa - 1) * len(reciprocals)).astype(np.int64)]
    model = np.floor(np.ldexp(e * r * method.levels, -16 - (exponent - 1)) + 0.5)
    np.testing.assert_array_equal(q, np.minimum(model, method.levels))
    wanted = method.evaluate(x)
    error = np.abs((q - zero_point(method)) / method.levels - softmax_rows(x)).max()
    assert error <= method.bound().value + exponential.bound().value
    if bits <= 8:
        assert (np.abs((q - zero_point(method)) / method.levels - wanted) < 1e-6).mean() > 0.97
    target = Format.parse("ap_fixed<18,2>")
    y = results(softmax.quantised(10, 17, WIDE, method, exponential, target=target), codes)
    np.testing.assert_array_equal(y, target.quantise(q / method.levels + method.correction))


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 1.0])
def test_bits(threshold: float) -> None:
    method, exponential = Binary(threshold=threshold), FixedMethod(input_bits=10)
    codes = logits(WIDE, 10_000, 17)
    bits = results(softmax.binary(10, 17, WIDE, method, exponential), codes)
    x = WIDE.dequantise(codes)
    _, e = exponential.exponentials(x)
    np.testing.assert_array_equal(
        bits, e * 2.0**30 >= e.sum(axis=-1, keepdims=True) * np.ceil(threshold * 2.0**30)
    )
    # Constant rows apart, where 1 / 17 is as far from any threshold, only what is near it may differ.
    p = softmax_rows(x)
    differ = bits != (p >= threshold)
    assert (np.abs(p - threshold)[differ] < 1e-5).all()
    scaled = results(softmax.binary(10, 17, WIDE, method, exponential, target=WIDE), codes)
    np.testing.assert_array_equal(scaled, bits * int(method.scale * 2**WIDE.fraction))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("exponent", [2, 4, 6])
def test_powers_are_near(form: str, exponent: int) -> None:
    method, target = Power(power=exponent, form=form), Format.parse("ap_fixed<16,2>")
    codes = logits(WIDE, 2_000, 17)
    y = target.dequantise(results(softmax.power(10, 17, WIDE, target, method), codes))
    x = WIDE.dequantise(codes)
    wanted = method.evaluate(x)
    # Where the largest power is of few bits, its rounding shows.
    large = np.abs(x).max(axis=-1) >= (16 if form == "plain" else 2)
    assert large.sum() > 1_000
    assert np.abs(y - wanted)[large].max() < 2e-3
    assert (y.sum(axis=-1) <= 1 + 2.0**-10 + 17 * 2.0**-15).all()


def test_powers_of_zeros_and_masks_are_zeros() -> None:
    source = Format.parse("ap_fixed<20,16>")
    kernel = softmax.power(2, 3, source, WIDE, Power(scale=8192.0, epsilon=0.0))
    codes = np.array([[[0, 0, 0], [-10000 * 16, 64 * 1024, 64 * 1024]]])
    np.testing.assert_array_equal(run(kernel, {"x": codes})["y"], [[[0, 0, 0], [0, 512, 512]]])


def distributions(rng: np.random.Generator, rows: int, columns: int) -> dict[str, np.ndarray]:
    peak = rng.normal(0, 1, (rows, columns))
    peak[np.arange(rows), rng.integers(0, columns, rows)] += 12
    return {
        "normal": rng.normal(0, 1, (rows, columns)),
        "wide": rng.normal(0, 4, (rows, columns)),
        "uniform": rng.uniform(WIDE.low, WIDE.high, (rows, columns)),
        "peak": peak,
    }


@pytest.mark.parametrize("kernel", ["fixed", "shift"])
def test_error_and_order_at_sixteen_bits(kernel: str) -> None:
    """64-wide rows, ap_fixed<16,6> in and out: error at most 0.004, and the largest stays the largest."""
    rows, columns = 2_000, 64
    made = getattr(softmax, kernel)(rows, columns, WIDE, WIDE)
    inputs = distributions(np.random.default_rng(5), rows, columns)
    codes = np.stack([WIDE.quantise(x) for x in inputs.values()])
    y = run(made, {"x": codes})["y"]
    p = softmax_rows(WIDE.dequantise(codes))
    errors = np.abs(WIDE.dequantise(y) - p).max(axis=(1, 2))
    print(dict(zip(inputs, errors, strict=True)))
    assert errors.max() <= 0.004
    top = np.sort(p, axis=-1)
    clear = top[..., -1] - top[..., -2] > WIDE.step
    flips = (np.argmax(y, axis=-1) != np.argmax(p, axis=-1)) & clear
    print(f"{clear.sum()} clear rows of {clear.size}, {flips.sum()} flips")
    assert clear.sum() > 6_000
    assert not flips.any()
