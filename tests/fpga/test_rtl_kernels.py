"""Every kernel as RTL: all that `kernels/` builds, bit for bit, or refused with a reason; and what they are made of.

Simulation needs xls-python and iverilog and is skipped without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
import test_linear_unit
import test_moe
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.errors import UnsupportedError
from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.targets.fpga.formats import Affine, Fixed
from lowerkit.targets.fpga.kernels import (
    affine,
    conv,
    elementwise,
    layout,
    linear,
    mean,
    moe,
    norm,
    pool,
    softmax,
    softmax_affine,
    unit,
)
from lowerkit.targets.fpga.kernels.activation import activation, full_table
from lowerkit.targets.fpga.kernels.window import Window
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Builder, Kernel
from lowerkit.targets.fpga.rtl import rom
from lowerkit.targets.fpga.rtl.graph import Graph, Source, reached
from lowerkit.targets.fpga.rtl.products import OPERAND, digits
from lowerkit.targets.fpga.rtl.simulate import simulate_rtl
from lowerkit.targets.fpga.rtl.stages import split

WIDE, BYTE = Fixed.parse("ap_fixed<16,6>"), Fixed.parse("ap_fixed<8,4>")
AFFINE, OTHER = Affine(8, 1.25 * 2.0**-4, 3), Affine(8, 1.5 * 2.0**-5, 100, signed=False)
WEIGHT = Affine(8, 1.125 * 2.0**-6)
WEIGHTS = np.random.default_rng(0).integers(-128, 128, (8, 4))
FILTERS = np.random.default_rng(1).integers(-9, 9, (4, 8, 3, 3))
ONES = np.ones(8)
simulated = pytest.mark.skipif(
    find_spec("xls") is None or shutil.which("iverilog") is None, reason="needs xls-python and iverilog"
)


def _concat(*shapes: tuple[int, ...] | np.ndarray, axis: int, lanes: int = 1) -> Kernel:
    formats = [BYTE, WIDE, BYTE][: len(shapes)]
    return layout.concat("k", shapes, axis, formats, BYTE, lanes=lanes)[0]


def _experts() -> Kernel:
    return test_moe.pieces(np.random.default_rng(3), 5, 2, 4, reuse=(4, 24))[2]


PRINTED: Mapping[str, Callable[[], Kernel]] = {
    **{f"{a.op}": lambda a=a: activation("k", a, (16,), WIDE, WIDE).kernel for a in ACTIVATIONS},
    "table of all codes": lambda: full_table("k", ACTIVATIONS[0], (16,), BYTE, BYTE).kernel,
    "affine scaled": lambda: affine.scaled("k", (4, 8), AFFINE, OTHER, factor=ONES / 3, offset=ONES)[0],
    "affine product": lambda: affine.multiply("k", (4, 8), (8,), AFFINE, OTHER, AFFINE)[0],
    "affine sum": lambda: affine.add("k", (4, 8), (4, 8), AFFINE, OTHER, AFFINE)[0],
    "affine softmax": lambda: softmax_affine.softmax("k", 3, 9, AFFINE, OTHER)[0],
    "affine mean": lambda: mean.mean("k", 2, 5, 3, AFFINE, OTHER)[0],
    "affine linear": lambda: linear.linear("k", (3,), WEIGHTS // 2, AFFINE, WEIGHT, OTHER, reuse=4)[0],
    "affine matmul": lambda: linear.matmul("k", (2,), (3, 4, 5), AFFINE, OTHER, AFFINE, reuse=5)[0],
    "linear, formats by column": lambda: linear.linear(
        "k", (3,), WEIGHTS, WIDE, [Fixed(8, i) for i in (1, 2, 3, 4)], WIDE, reuse=4
    )[0],
    "linear, two rows at once": lambda: linear.linear(
        "k", (4,), WEIGHTS, WIDE, BYTE, WIDE, reuse=4, at_once=2
    )[0],
    "matmul, two rows at once": lambda: linear.matmul(
        "k", (2,), (4, 6, 5), WIDE, BYTE, WIDE, reuse=15, at_once=2
    )[0],
    "conv, strides": lambda: conv.conv2d("k", (5, 6), FILTERS, BYTE, BYTE, WIDE, stride=(2, 2), reuse=288)[0],
    "conv, depthwise": lambda: conv.conv2d(
        "k", (5, 6), FILTERS[:, :1], BYTE, BYTE, WIDE, groups=4, pads=((1, 1), (1, 1)), reuse=4
    )[0],
    "product": lambda: elementwise.multiply("k", (4, 8), (8,), WIDE, BYTE, WIDE)[0],
    "sum of a column": lambda: elementwise.add("k", (4, 8), (4, 1), WIDE, BYTE, WIDE)[0],
    "requantise": lambda: elementwise.requantise("k", (4, 8), WIDE, BYTE, lanes=4)[0],
    "relu": lambda: elementwise.relu("k", (4, 8), WIDE, BYTE)[0],
    "limit": lambda: elementwise.limit("k", (4, 8), -5, 50, WIDE, BYTE)[0],
    "scale": lambda: elementwise.scale("k", (4, 8), 77, BYTE, WIDE, BYTE)[0],
    "transpose": lambda: layout.transpose("k", (2, 3, 4), (2, 1, 0), BYTE)[0],
    "reshape": lambda: layout.reshape("k", (4, 6), (6, 4), BYTE)[0],
    "embedding": lambda: layout.embedding("k", (4,), WEIGHTS, BYTE.range, BYTE)[0],
    "slices": lambda: layout.slices("k", (4, 6), (1, 0), (3, 3), (1, 2), BYTE)[0],
    "concat of rows": lambda: _concat((2, 3), (1, 3), axis=0),
    "concat of columns": lambda: _concat((2, 3), (2, 2), (2, 1), axis=1),
    "concat of a constant": lambda: _concat(np.arange(4).reshape(1, 4), (5, 4), axis=0),
    "concat of planes": lambda: _concat((2, 4), (2, 8), axis=1, lanes=4),
    "mean": lambda: mean.mean("k", 2, 5, 3, WIDE, WIDE)[0],
    "LayerNorm": lambda: norm.normalise("k", (3, 16), WIDE, WIDE, gamma=np.linspace(-1, 1, 16)).kernel,
    "RMSNorm": lambda: norm.normalise("k", (3, 16), WIDE, WIDE, rms=True).kernel,
    "max pool": lambda: pool.max_pool("k", 2, (5, 5), Window((3, 3), (2, 2), ((1, 1), (1, 1))), BYTE, BYTE)[
        0
    ],
    "average pool": lambda: pool.average_pool(
        "k", 2, (5, 5), Window((3, 3), (2, 2), ((1, 1), (1, 1))), BYTE, BYTE
    )[0],
    "global average pool": lambda: pool.global_average_pool("k", 2, (5, 5), BYTE, BYTE)[0],
    "softmax, online": lambda: softmax.online(4, 17, WIDE, WIDE, name="k"),
    "softmax, fixed": lambda: softmax.fixed(4, 17, WIDE, WIDE, name="k"),
    "softmax, shift": lambda: softmax.shift(4, 17, WIDE, WIDE, name="k"),
    "softmax, log": lambda: softmax.log_quantised(4, 17, WIDE, target=WIDE, name="k"),
    "softmax, quantised": lambda: softmax.quantised(4, 17, WIDE, target=WIDE, name="k"),
    "softmax, binary": lambda: softmax.binary(4, 17, WIDE, name="k"),
    "softmax, power": lambda: softmax.power(4, 17, WIDE, WIDE, name="k"),
    "gate of experts": lambda: moe.gate("k", 4, 6, 2, test_moe.LOGITS, test_moe.SHARE, True)[0],
    "sum of experts": lambda: moe.combine("k", 4, 3, 5, test_moe.FORMATS.out, test_moe.SHARE, Fixed(12, 5))[
        0
    ],
}
REFUSED: Mapping[str, tuple[Callable[[], Kernel], str]] = {
    "linear, rows at once and a rest": (
        lambda: linear.linear("k", (5,), WEIGHTS, WIDE, BYTE, WIDE, at_once=2)[0],
        "a guard decides what is computed",
    ),
    "queues of experts": (
        lambda: moe.queues("k", 5, 4, 2)[0],
        "is written at places that depend on data",
    ),
    "experts": (_experts, "a guard decides what is computed"),
    "a unit of several layers": (
        lambda: unit.linear_unit("k", test_linear_unit.some_jobs(np.random.default_rng(0), 2), 3)[0],
        "a guard decides what is computed",
    ),
}


@simulated
@pytest.mark.parametrize("name", PRINTED)
def test_every_kernel_is_printed(name: str) -> None:
    kernel, rng = PRINTED[name](), np.random.default_rng(0)
    inputs = {a.name: rng.integers(a.range.low, a.range.high + 1, (4, *a.shape)) for a in kernel.inputs}
    wanted = run(kernel, inputs)
    found, _ = simulate_rtl(kernel, inputs, seed=1, simulator="icarus")
    for output, codes in wanted.items():
        np.testing.assert_array_equal(found[output], codes)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason):
        split(make())


@simulated
def test_parts_from_one_input() -> None:
    """Both loops read all of x; the second part waits whole until the first one is through. The last comes first."""
    k = Builder("mirrored", "-x behind x, and the rows' numbers before them")
    x, y = k.input("x", (2, 6), BYTE.range), k.output("y", (2, 13), Range(-128, 128))
    with k.loop("i", 2) as i, k.loop("j", 6, pipeline=True) as j:
        k.store(y, (i, j + 1), x[i, j])
    with k.loop("p", 2) as p, k.loop("q", 6, pipeline=True) as q:
        k.store(y, (p, q + 7), 0 - x[p, q])
    with k.loop("row", 2, pipeline=True) as row:
        k.store(y, (row, 0), row)
    kernel = k.finish()
    codes = np.random.default_rng(0).integers(-128, 128, (6, 2, 6))
    for seed in range(3):
        found, _ = simulate_rtl(kernel, {"x": codes}, seed=seed, simulator="icarus")
        np.testing.assert_array_equal(found["y"], run(kernel, {"x": codes})["y"])


@simulated
def test_a_number_is_compared() -> None:
    """On either side of a comparison, and with an operand that is no plain name."""
    k = Builder("compared", "whether x / 8 is above 0, and at most 7")
    x, y = k.input("x", (16,), Range(-99, 99)), k.output("y", (16,), Range(0, 3))
    with k.loop("i", 16, pipeline=True) as i:
        eighth = x[i] >> 3
        k.store(y, i, (eighth > 0) + (eighth <= 7) * 2)
    kernel = k.finish()
    codes = np.random.default_rng(0).integers(-99, 100, (4, 16))
    found, _ = simulate_rtl(kernel, {"x": codes}, seed=0, simulator="icarus")
    np.testing.assert_array_equal(found["y"], run(kernel, {"x": codes})["y"])


@given(st.integers(-(2**40), 2**40))
def test_digits_are_few(number: int) -> None:
    found = digits(number)
    assert sum(sign << place for sign, place in found) == number
    places = [place for _, place in found]
    assert all(b - a > 1 for a, b in pairwise(places))


@settings(max_examples=60)
@given(st.data())
def test_products_are_of_a_multipliers_width(data: st.DataObject) -> None:
    """Of all widths and signs, and of constants: equal to the product, from multipliers of 18 bits."""
    ends = st.integers(-(2**28), 2**28)
    ranges = [Range(*sorted(data.draw(st.tuples(ends, ends)))) for _ in range(2)]
    numbers = [data.draw(st.integers(r.low, r.high)) for r in ranges]
    graph, counters = Graph(), []
    for n, r in enumerate(ranges):
        # Of one number: a constant, which is to be the number drawn.
        held = r if data.draw(st.booleans()) else Range(numbers[n], numbers[n])
        key = f"x{n}"
        counters.append(graph.source(Source("counter", key), held, key))
    node = graph.binary("mul", *counters)
    grid = {f"x{n}": np.array(number) for n, number in enumerate(numbers)}
    assert int(graph.numbers(node, grid)) == numbers[0] * numbers[1]
    for found in reached([node]):
        if found.op == "mul":
            signed = any(a.range.signed for a in found.args)
            assert all(a.range.bits + (signed and not a.range.signed) <= OPERAND for a in found.args)


@settings(max_examples=100)
@given(st.integers(0, 2**40), st.sampled_from([1, 2, 64, 1024, 2**20]))
def test_leading_ones(number: int, least: int) -> None:
    graph = Graph()
    x = graph.source(Source("counter", "x"), Range(least, 2**40 + least), "x")
    node = graph.bit_length(x)
    assert int(graph.numbers(node, {"x": np.array(number + least)})) == (number + least).bit_length()


@pytest.mark.parametrize("count", [1000, 1025, 3000, 5000, 14907, 16384])
@pytest.mark.parametrize("kind", ["exponentials", "random", "zeros"])
def test_slices_of_tables_fit_a_block(count: int, kind: str) -> None:
    bits = 21
    rng = np.random.default_rng(count)
    words = {
        "exponentials": np.rint(2.0**20 * np.exp(-np.arange(count) / 1024)).astype(int),
        "random": rng.integers(0, 1 << bits, count),
        "zeros": np.zeros(count, int),
    }[kind].tolist()
    cut = rom.slices(words, bits)
    assert [s.low for s in cut] == list(np.cumsum([0, *(s.width for s in cut)])[:-1])
    assert sum(s.width for s in cut) == bits
    for s in cut:
        assert not any((w >> s.low) & ((1 << s.width) - 1) for w in words[s.depth :])
        if count > rom.SMALL:
            assert any(s.depth <= depth and s.width <= width for depth, width in rom.FORMS)
    if kind == "exponentials" and count == 14907:
        # A bit of 2^14 words to a block would take 21.
        assert len(cut) == 14
