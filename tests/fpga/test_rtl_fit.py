"""What makes whole networks fit: reuse by cycles, tables side by side, placements that are kept one by one."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from codes import codes
from hypothesis import given
from hypothesis import strategies as st
from rtl_networks import SQUARE, chained

from lowerkit.errors import PlanError
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import layout
from lowerkit.targets.fpga.kernels.elementwise import relu
from lowerkit.targets.fpga.kernels.linear import linear
from lowerkit.targets.fpga.kernels.schedule import greatest_reuse
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lowering import Context
from lowerkit.targets.fpga.rtl import rom, tools
from lowerkit.targets.fpga.rtl.design import print_rtl
from lowerkit.targets.fpga.rtl.implement import implement
from lowerkit.targets.fpga.rtl.network import print_network
from lowerkit.targets.fpga.rtl.simulate import simulate_rtl
from lowerkit.targets.fpga.target import FpgaTarget

BYTE = Fixed.parse("ap_fixed<8,4>")
simulated = pytest.mark.skipif(
    find_spec("xls") is None or shutil.which("iverilog") is None, reason="needs xls-python and iverilog"
)
placed = pytest.mark.skipif(
    any(find_spec(name) is None for name in tools.PACKAGES), reason="needs the packages of lowerkit[rtl]"
)


@given(st.integers(1, 500), st.integers(0, 600))
def test_the_greatest_reuse(products: int, most: int) -> None:
    found = greatest_reuse(products, most)
    assert products % found == 0
    assert found <= max(most, 1)
    assert not [r for r in range(found + 1, min(most, products) + 1) if products % r == 0]


def test_cycles_decide_the_reuse() -> None:
    """Of 96 products at 5 positions in 130 cycles: 24 cycles each; two positions at once have more for each pair."""
    node = ir.node("MatMul", [], name="product")
    context = Context({}, 8, multipliers=2, cycles=130)
    assert context.reuse_of(node, 96, 5) == 24
    assert context.reuse_of(node, 96) == 48
    assert Context({}, 8, cycles=130, parallel={"product": 2}).reuse_of(node, 96, 5) == 32
    assert Context({}, 8, cycles=130, reuse={"product": 3}).reuse_of(node, 96, 5) == 3
    assert Context({}, 8, cycles=3).reuse_of(node, 96, 5) == 1


@pytest.mark.parametrize("cycles", [-1, True, 2.5])
def test_cycles_are_a_number(cycles: object) -> None:
    with pytest.raises(PlanError, match="option cycles must be a number of clock cycles"):
        FpgaTarget().design(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), {"cycles": cycles})


@simulated
@pytest.mark.parametrize("deep", [False, True])
def test_tables_at_one_address(deep: bool) -> None:
    """Weights of eight products are one memory if it is small, and eight if they are deep."""
    weights = np.random.default_rng(0).integers(-128, 128, (rom.SMALL + 8 if deep else 24, 8))
    kernel = linear("linear", (2,), weights, BYTE, BYTE, BYTE, reuse=len(weights))[0]
    rtl = print_rtl(kernel)
    assert len(re.findall(r"reg .*linear_w\w*_rom \[", rtl.verilog)) == (8 if deep else 1)
    inputs = {"x": codes(np.random.default_rng(1), kernel.inputs[0].shape, BYTE, 2)}
    found, _ = simulate_rtl(kernel, inputs, rtl=rtl, simulator="icarus")
    np.testing.assert_array_equal(found["y"], run(kernel, inputs)["y"])


@placed
def test_seeds_are_kept_one_by_one(tmp_path: Path) -> None:
    rtl = print_rtl(relu("relu", (4, 8), BYTE, BYTE)[0])
    one = implement(rtl, seeds=(1,), cache=tmp_path)
    first = {file: file.read_bytes() for file in tmp_path.iterdir()}
    both = implement(rtl, seeds=(1, 2), cache=tmp_path)
    assert len(first) == 1
    assert len(list(tmp_path.iterdir())) == 2
    assert all(file.read_bytes() == text for file, text in first.items())
    assert both.by_seed["1"] == one.by_seed["1"]
    assert both.fmax == min(both.by_seed.values())
    assert implement(rtl, seeds=(2, 1), cache=tmp_path).fmax == both.fmax


@pytest.mark.skipif(find_spec("xls") is None, reason="needs xls-python")
def test_blocks_of_a_reader_are_its_queue() -> None:
    """A transpose of whole samples has the two blocks that the channel asks for; a row's reader has none of them."""
    size = 16
    turned = layout.transpose("t", (2, 8), (1, 0), BYTE)
    made = chained(
        (linear("l", (2,), SQUARE, BYTE, BYTE, BYTE, reuse=64), ("x",), "a"),
        (turned, ("a",), "b"),
        (layout.transpose("u", (8, 2), (1, 0), BYTE), ("b",), "c"),
        (linear("m", (2,), SQUARE, BYTE, BYTE, BYTE, reuse=64), ("c",), "y"),
    )
    depths = {(k.writer, k.reader): k.depth for k in print_network(made).links}
    assert [print_rtl(turned[0]).inputs[0].blocks, depths["l", "t"], depths["t", "u"]] == [
        2,
        2 * size,
        2 * size,
    ]
    assert depths["u", "m"] == size
    text = print_network(made).verilog
    assert "u_c_c (" in text
    assert "u_c_a (" not in text
