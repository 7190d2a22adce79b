"""Products made of logic: the same numbers, in as few multiplier blocks as are allowed."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from codes import codes
from hypothesis import given
from hypothesis import strategies as st

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.linear import linear, matmul
from lowerkit.targets.fpga.kernels.norm import normalise
from lowerkit.targets.fpga.lang.expr import Counter, Range
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.rtl.design import print_pipeline
from lowerkit.targets.fpga.rtl.graph import Graph, Node, Source, reached
from lowerkit.targets.fpga.rtl.rows import limit_blocks, products, rows
from lowerkit.targets.fpga.rtl.simulate import simulate_rtl
from lowerkit.targets.fpga.rtl.stages import split

WIDE, BYTE = Fixed.parse("ap_fixed<16,6>"), Fixed.parse("ap_fixed<8,4>")
KERNELS: list[Kernel] = [
    linear("linear", (3,), np.random.default_rng(0).integers(-128, 128, (8, 4)), BYTE, BYTE, WIDE, reuse=16)[
        0
    ],
    matmul("matmul", (2,), (4, 8, 4), WIDE, BYTE, WIDE, reuse=4)[0],
    normalise("norm", (3, 16), WIDE, WIDE, gamma=np.linspace(-1, 1, 16), beta=np.linspace(0, 1, 16)).kernel,
]
simulated = pytest.mark.skipif(
    find_spec("xls") is None or shutil.which("iverilog") is None, reason="needs xls-python and iverilog"
)
ends = st.integers(-40, 40)
ranges = st.tuples(ends, ends).map(lambda e: Range(min(e), max(e)))


@given(ranges, ranges)
def test_rows_are_the_product(first: Range, second: Range) -> None:
    """For all numbers of both ranges, and of no `mul` but with numbers."""
    graph, grid = Graph(), {}
    given_nodes: list[Node] = []
    for axis, each in enumerate((first, second)):
        counter = Counter(f"n{axis}", each)
        numbers = np.arange(each.low, each.high + 1)
        grid[counter] = numbers.reshape(-1, 1) if axis == 0 else numbers
        given_nodes.append(graph.source(Source("counter", counter), each, counter.name))
    made = rows(graph, *given_nodes)
    a, b = (np.arange(r.low, r.high + 1) for r in (first, second))
    found = graph.numbers(made, grid)
    assert found is not None
    np.testing.assert_array_equal(np.broadcast_to(found, (len(a), len(b))), a[:, None] * b)
    assert not [n for n in reached([made]) if n.op == "mul"]


@simulated
@pytest.mark.parametrize("most", [0, 2])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_every_bit_is_the_interpreters(kernel: Kernel, most: int) -> None:
    pipeline = split(kernel)
    assert limit_blocks([pipeline], most) <= most
    rng = np.random.default_rng(0)
    inputs = {
        a.name: codes(rng, a.shape, Fixed(a.range.bits, a.range.bits, a.range.signed), 4)
        for a in kernel.inputs
    }
    found, _ = simulate_rtl(kernel, inputs, rtl=print_pipeline(pipeline), seed=1, simulator="icarus")
    for name, wanted in run(kernel, inputs).items():
        np.testing.assert_array_equal(found[name], wanted)


def test_the_smallest_are_made_of_logic() -> None:
    pipelines = [split(kernel) for kernel in KERNELS[:2]]
    before = [len(products(s)) for p in pipelines for s in p.stages]
    assert before == [2, 8]
    assert limit_blocks(pipelines, 8) == 8
    assert [len(products(s)) for p in pipelines for s in p.stages] == [0, 8]
    assert limit_blocks(pipelines, 3) == 3
    assert limit_blocks(pipelines, 8) == 3
