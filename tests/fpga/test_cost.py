"""Costs are compared with what kernels do when they run, and with sums made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_project import residual
from test_streams import KERNELS, run

from lowerkit.targets.fpga.cost import NOTE, blocks, cost, cost_table
from lowerkit.targets.fpga.dataflow import network
from lowerkit.targets.fpga.devices import device
from lowerkit.targets.fpga.kernels.schedule import count
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.lang.program import Builder, Kernel


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda k: k.name)
def test_cycles_are_counted_iterations(kernel: Kernel) -> None:
    ran, counted = run(kernel), count(kernel)
    assert (counted.cycles, counted.fills) == (ran.cycles, ran.fills)


def test_loops_that_are_not_pipelined_take_their_time() -> None:
    """Several pipelined loops in a plain one, code between them, and a plain loop of code alone."""
    k = Builder("mixed", "any")
    x, y = k.input("x", (3, 4), Range(-8, 7)), k.output("y", (3, 4), Range(-999, 999))
    z = k.output("z", (3,), Range(-8, 7))
    with k.loop("r", 3) as r:
        total = k.register("total", 0, Range(-32, 28))
        with k.loop("i", 4, serial=True, pipeline=True) as i:
            k.update(total, total + x[r, i])
        half = k.let("half", total >> 1)
        with k.loop("j", 4, pipeline=True) as j:
            k.store(y, (r, j), x[r, j] * half)
    with k.loop("s", 3) as s:
        k.store(z, s, x[s, 0])
    kernel = k.finish()
    counted, ran = count(kernel), run(kernel)
    assert (counted.cycles, counted.fills) == (3 * (4 + 1 + 4) + 3, 6) == (ran.cycles, ran.fills)
    assert sum(counted.products.values()) == 1


@given(st.integers(1, 60), st.integers(1, 60))
def test_blocks_hold_products(a: int, b: int) -> None:
    """Tiles cover both operands, one block where both fit, and as many for either order."""
    found = blocks((a, b), (27, 18))
    assert found == blocks((b, a), (27, 18))
    assert found * 26 * 17 >= (a - 1) * (b - 1)
    assert (found == 1) == (min(a, b) <= 18 and max(a, b) <= 27)


def test_a_design() -> None:
    """By hand: 36 weights of 9 bits and 16 x 16 codes of channels; a sample each 36 iterations at best."""
    net = network(residual())
    found = cost(net, device("pynq-z2"))
    layers = {la.name: la for la in found.layers}
    weights = residual().layers[0].kernel.constants[0]
    assert layers["l0"].parameters == 36
    assert layers["l0"].parameter_bits == 36 * weights.range.bits
    assert layers["l0"].multipliers == 6
    assert layers["l0"].products == {f"12x{weights.range.bits}": 6}
    assert layers["l0"].blocks == 6
    assert layers["l0"].cycles == 24
    assert layers["l1"].parameters == layers["l1"].multipliers == 0
    assert layers["l3"].tables == 2
    assert found.interval == max(la.cycles for la in found.layers)
    # Nothing can be through before the longest of its processes, and nothing takes longer than one after the other.
    assert found.interval < found.latency <= sum(la.cycles for la in found.layers)
    kept = {c.name: c for c in found.channels}
    for c in kept.values():
        words = c.depth * (24 if c.kind == "pipo" else 1)
        assert c.bits == words * c.range.bits
    own = sum(la.parameter_bits + la.table_bits + la.local_bits for la in found.layers)
    assert found.memory_bits == own + sum(c.bits for c in kept.values())


def test_reports_say_that_they_are_analytic() -> None:
    found = cost(network(residual()))
    written = json.loads(json.dumps(found.as_json()))
    assert written["note"] == NOTE
    assert written["memory_bits"] == found.memory_bits
    assert {c["kind"] for c in written["channels"]} == {"fifo", "pipo"}
    table = cost_table(written)
    assert "analytic" in table.note
    assert table.rows[-1][-2:] == (found.interval, found.latency)
    assert [row[0] for row in table.rows] == [*(la.name for la in found.layers), "channels", "all"]
    assert sum(int(row[2]) for row in table.rows[:-1]) == found.memory_bits
    assert np.sum([la.parameters for la in found.layers]) == written["parameters"]
