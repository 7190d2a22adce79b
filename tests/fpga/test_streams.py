"""Channels: what is said of access orders is compared with runs, and networks are run with the memory they have."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from trace import trace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.errors import UnsupportedError
from lowerkit.targets.fpga.dataflow import Network, copy, network
from lowerkit.targets.fpga.design import Design, Layer, Port
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import elementwise, layout, pool
from lowerkit.targets.fpga.kernels.conv import conv2d
from lowerkit.targets.fpga.kernels.linear import linear, matmul
from lowerkit.targets.fpga.kernels.mean import mean
from lowerkit.targets.fpga.kernels.norm import normalise
from lowerkit.targets.fpga.kernels.schedule import Built, built, count
from lowerkit.targets.fpga.kernels.softmax import fixed
from lowerkit.targets.fpga.kernels.window import Window
from lowerkit.targets.fpga.lang.access import banks, order, per_cycle, sequential
from lowerkit.targets.fpga.lang.expr import Const, Operand, Range, Select
from lowerkit.targets.fpga.lang.program import Builder, Kernel

F = Fixed(8, 4)
RNG = np.random.default_rng(1)
W = RNG.integers(-9, 9, (6, 4))
KERNELS: dict[str, Kernel] = {
    made[0].name: made[0]
    for made in (
        linear("linear", (3,), W, F, F, F),
        linear("linear_columns", (3,), W, F, F, F, reuse=4),
        linear("linear_steps", (3,), W, F, F, F, reuse=12, bias=np.arange(4)),
        matmul("matmul", (2,), (3, 4, 6), F, F, F, reuse=4),
        matmul("matmul_t", (2,), (3, 4, 6), F, F, F, transposed=True, reuse=3),
        conv2d("conv", (5, 4), RNG.integers(-9, 9, (4, 2, 3, 3)), F, F, F, pads=((1, 1), (1, 1)), reuse=2),
        pool.max_pool("pool", 2, (4, 6), Window((2, 2), (2, 2)), F, F),
        pool.global_average_pool("average", 3, (2, 4), F, F),
        mean("mean", 2, 3, 4, F, F),
        layout.transpose("turn", (2, 3, 4), (1, 0, 2), F, lanes=2),
        layout.transpose("still", (2, 3, 4), (0, 1, 2), F),
        layout.concat("rows", [(2, 3), (1, 3)], 0, [F, F], F),
        layout.concat("columns", [(2, 3), (2, 1)], 1, [F, F], F),
        layout.reshape("reshape", (4, 6), (6, 4), F),
        layout.slices("slices", (4, 6), (3, 1), (2, 3), (-1, 2), F),
        elementwise.add("add", (3, 4), (1, 4), F, F, F),
        elementwise.multiply("scaled", (3, 4), W[:3], F, F, F, lanes=4),
        (fixed(3, 4, F, Fixed(8, 0, False), name="softmax"), None),
        (normalise("norm", (3, 4), F, F, gamma=np.ones(4)).kernel, None),
        (copy("copy", 8, F.range, 3), None),
    )
}  # fmt: skip


def run(kernel: Kernel):
    return trace(
        kernel,
        {a.name: RNG.integers(a.range.low, a.range.high, a.shape, endpoint=True) for a in kernel.inputs},
    )


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda k: k.name)
def test_orders_are_those_of_runs(kernel: Kernel) -> None:
    ran = run(kernel)
    for array in (*kernel.inputs, *kernel.outputs):
        real, found = ran.places(array), order(kernel, array)
        if found is not None:
            assert found.tolist() == real
        if sequential(kernel, array):
            assert real == list(range(math.prod(array.shape)))
        most = [sum(a is array for p in i.values() for a, _ in p) for i in ran.iterations]
        # A read in a branch may be left out.
        assert max(most, default=1) <= per_cycle(kernel, array)


def test_what_is_sequential() -> None:
    """Neither all nor nothing."""
    found = {
        f"{k.name}.{a.name}" for k in KERNELS.values() for a in (*k.inputs, *k.outputs) if sequential(k, a)
    }
    assert found >= {
        "linear.y",
        "add.a",
        "add.y",
        "rows.y",
        "still.x",
        "still.y",
        "turn.y",
        "reshape.x",
        "norm.y",
    }
    assert found.isdisjoint(
        {"linear.x", "add.b", "columns.y", "turn.x", "norm.x", "conv.x", "mean.x", "slices.x"}
    )


@st.composite
def nests(draw: st.DrawFn) -> Kernel:
    """Loops in any order around x[a i + b j + ... + c], and as many elements written in order."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    strides = [
        draw(st.sampled_from([0, 1, 2, 3, 4, *(math.prod(counts[n + 1 :]),) * 6])) for n in range(len(counts))
    ]
    offset = draw(st.sampled_from([0, 0, 0, 1]))
    pipelined = draw(st.integers(0, len(counts) - 1))
    least = offset + sum(s * (n - 1) for s, n in zip(strides, counts, strict=True)) + 1
    size = max(least, draw(st.sampled_from([least, least + 1])))
    k = Builder("nest", "any")
    x = k.input("x", (size,), Range(0, 255))
    y = k.output("y", tuple(counts), Range(0, 255))

    def inside(depth: int, place: Operand, index: tuple[Operand, ...]) -> None:
        if depth == len(counts):
            k.store(y, index, x[place])
            return
        with k.loop(f"i{depth}", counts[depth], pipeline=depth == pipelined) as i:
            named = k.let(f"n{depth}", i * strides[depth] + place)
            inside(depth + 1, named, (*index, i))

    inside(0, offset, ())
    return k.finish()


@settings(max_examples=150, deadline=None)
@given(nests())
def test_any_nest(kernel: Kernel) -> None:
    ran = run(kernel)
    (x,), (y,) = kernel.inputs, kernel.outputs
    found = order(kernel, x)
    assert found is not None
    assert found.tolist() == ran.places(x)
    assert sequential(kernel, x) == (ran.places(x) == list(range(x.shape[0])))
    assert sequential(kernel, y)
    _no_conflicts(kernel, ran)
    counted = count(kernel)
    assert (counted.cycles, counted.fills) == (ran.cycles, ran.fills)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda k: k.name)
def test_banks_let_lanes_work_at_once(kernel: Kernel) -> None:
    _no_conflicts(kernel, run(kernel))


def _no_conflicts(kernel: Kernel, ran) -> None:
    """Copies of a statement touch different banks, or the same element."""
    arrays = {a for a, _, _ in ran.touched}
    for array in arrays:
        if array.data is not None:
            split, axes = banks(kernel, array), array.shape
        else:
            split, axes = banks(kernel, array, flat=True), (math.prod(array.shape),)
        if not all(b.proven for b in split):
            continue
        for iteration in ran.iterations:
            for touched in iteration.values():
                places = {place for a, place in touched if a is array}
                where = (
                    {
                        tuple(
                            i if b.complete else i % b.factor
                            for i, b in zip(np.unravel_index(p, axes), split, strict=True)
                        )
                        for p in places
                    }
                    if axes
                    else places
                )
                assert len(where) == len(places)


def test_data_dependent_addresses_are_no_order() -> None:
    made, _ = layout.embedding("rows_of", (4,), RNG.integers(0, 9, (3, 5)), Range(0, 9), F)
    assert order(made, made.constants[0]) is None
    k = Builder("branch", "a read that may not happen")
    x, y = k.input("x", (4,), Range(0, 9)), k.output("y", (4,), Range(0, 9))
    with k.loop("i", 4, pipeline=True) as i:
        k.store(y, i, Select(i < 2, x[i], Const(0)))
    assert not sequential(k.finish(), x)


# Networks


def design(
    *layers: tuple[Built, tuple[str, ...], str], inputs: tuple[str, ...] = ("x",), output: str
) -> Design:
    """Layers with what they read and write; all values of the format F."""
    made, values = [], {}
    for (kernel, schedule), reads, write in layers:
        for array, value in zip((*kernel.inputs, *kernel.outputs), (*reads, write), strict=True):
            values.setdefault(value, Port(value, array.shape, F))
        made.append(Layer(kernel.name, f"node {write}", "Any", kernel, reads, (write,), schedule))
    return Design("net", tuple(values[i] for i in inputs), (values[output],), values, {}, tuple(made))


def skip(middle: list[Built], size: int = 8) -> Design:
    """x + f(x)."""
    layers = [(elementwise.relu("first", (size,), F, F), ("x",), "a")]
    for n, made in enumerate(middle):
        layers.append((made, (layers[-1][2],), f"m{n}"))
    layers.append((elementwise.add("joined", (size,), (size,), F, F, F), (layers[-1][2], "a"), "y"))
    return design(*layers, output="y")


def flipped(name: str) -> Built:
    return layout.slices(name, (8,), (7,), (8,), (-1,), F)


def buffered(name: str) -> Built:
    """In order on both sides, with nothing written before all is read."""
    k = Builder(name, "reads all, then writes")
    x, y = k.input("x", (8,), F.range), k.output("y", (8,), F.range)
    kept = k.local("kept", (8,), F.range)
    with k.loop("i", 8, pipeline=True) as i:
        k.store(kept, i, x[i])
    with k.loop("j", 8, pipeline=True) as j:
        k.store(y, j, kept[j])
    return built(k.finish())


SKIPS = {
    "in order": skip([elementwise.relu("m", (8,), F, F)]),
    "buffered": skip([buffered("m")]),
    "reversed": skip([flipped("m")]),
    "long": skip([flipped("p"), buffered("q"), flipped("r"), elementwise.relu("s", (8,), F, F)]),
    "twice": design(
        (flipped("f"), ("x",), "a"),
        (elementwise.multiply("m", (8,), (8,), F, F, F), ("a", "a"), "b"),
        (elementwise.add("s", (8,), (8,), F, F, F), ("b", "x"), "c"),
        (elementwise.add("t", (8,), (8,), F, F, F), ("c", "a"), "y"),
        output="y",
    ),
}


def finishes(net: Network, samples: int = 4) -> bool:
    """Whether processes that touch channels in their kernels' own order, one code at a time, all get through.

    A fifo has `depth` places. A pipo's block is free again when its reader has finished the sample.
    """
    channels = {c.name: c for c in net.channels}
    state = dict.fromkeys(channels, 0)
    scripts = {}
    for p in net.processes:
        ran = run(p.kernel)
        ends = {a: n for a, n in zip(p.kernel.inputs, p.reads, strict=True) if n in channels}
        ends |= {a: n for a, n in zip(p.kernel.outputs, p.writes, strict=True) if n in channels}
        pipos = [(n, n in p.writes) for n in ends.values() if channels[n].kind == "pipo"]
        steps = [("take", n, w) for n, w in pipos]
        steps += [
            ("move", ends[a], w) for a, _, w in ran.touched if a in ends and channels[ends[a]].kind == "fifo"
        ]
        scripts[p.name] = deque((steps + [("done", n, w) for n, w in pipos]) * samples)
    busy = dict.fromkeys(channels, 0)
    while any(scripts.values()):
        moved = False
        for script in scripts.values():
            while script:
                act, name, written = script[0]
                channel = channels[name]
                # state: codes, or full blocks; busy: blocks that are being written or read.
                if act == "take":
                    free = channel.depth - state[name] - busy[name]
                    if (free if written else state[name]) < 1:
                        break
                    busy[name] += 1
                    state[name] -= not written
                elif act == "done":
                    busy[name] -= 1
                    state[name] += written
                elif written:
                    if state[name] == channel.depth:
                        break
                    state[name] += 1
                else:
                    if state[name] == 0:
                        break
                    state[name] -= 1
                script.popleft()
                moved = True
        if not moved:
            return False
    return True


@pytest.mark.parametrize("name", SKIPS)
def test_no_deadlock(name: str) -> None:
    net = network(SKIPS[name])
    for c in net.channels:
        assert sum(c.name in p.reads for p in net.processes) == 1
        assert sum(c.name in p.writes for p in net.processes) == 1
    assert finishes(net)


@pytest.mark.parametrize("name", ["buffered", "reversed", "long"])
def test_shallow_skips_would_deadlock(name: str) -> None:
    """The depth is needed: with two codes less than a sample (a fork may hold one), nothing moves in the end."""
    net = network(SKIPS[name])
    shallow = [replace(c, depth=6) if c.kind == "fifo" and c.depth > 6 else c for c in net.channels]
    assert not finishes(replace(net, channels=tuple(shallow)))


def test_depths_follow_the_longest_way() -> None:
    channels = {(c.writer, c.reader): c for c in network(SKIPS["long"]).channels}
    assert channels["load_x", "first"].kind == "fifo"
    assert channels["load_x", "first"].depth == 2
    # fork, pipo, p, pipo, q, pipo, r, pipo, s: r and q are in order where they meet fifos.
    bypass = channels["fork_a", "joined"]
    assert bypass.kind == "fifo"
    blocks = sum(
        channels[pair].kind == "pipo" for pair in [("fork_a", "p"), ("p", "q"), ("q", "r"), ("r", "s")]
    )
    assert blocks >= 2
    assert bypass.depth == 8 * (1 + blocks)


def test_values_that_nothing_reads_are_refused() -> None:
    made = design(
        (elementwise.relu("a", (8,), F, F), ("x",), "y"),
        (elementwise.relu("b", (8,), F, F), ("x",), "dead"),
        output="y",
    )
    with pytest.raises(UnsupportedError, match="dead"):
        network(made)
