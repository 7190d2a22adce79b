"""The table of kernels as RTL: what it compares, and what it claims."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import hls4ml_stable
from benchmarks import rtl as table
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels import softmax
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.rtl import tools
from lowerkit.targets.fpga.rtl.design import print_rtl
from lowerkit.targets.fpga.rtl.implement import implement
from lowerkit.targets.fpga.rtl.simulate import simulate_rtl

WIDE = Fixed.parse("ap_fixed<16,6>")
simulated = pytest.mark.skipif(
    find_spec("xls") is None or shutil.which("iverilog") is None, reason="needs xls-python and iverilog"
)
placed = pytest.mark.skipif(
    any(find_spec(name) is None for name in tools.PACKAGES), reason="needs the packages of lowerkit[rtl]"
)


def _logits(rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    wide, near = rng.integers(-32768, 32768, (rows, 64)), rng.normal(0, 2000, (rows, 64))
    return np.concatenate([wide, np.rint(near).astype(np.int64)])


def test_stable_by_hand() -> None:
    """Two equal logits: 1024 each, their sum 2 at address 8, and 512 of 1024."""
    x = np.full((1, 1, 2), 100)
    assert run(hls4ml_stable.stable(1, 2), {"x": x})["y"].tolist() == [[[512, 512]]]
    # hls4ml's type of differences ends at 32, so that 40 wraps to 8.
    far, near = (np.array([[[20 << 10, (20 - d) << 10]]]) for d in (40, 8))
    wrapped, held = (run(hls4ml_stable.stable(1, 2), {"x": codes})["y"] for codes in (far, near))
    np.testing.assert_array_equal(wrapped, held)


@pytest.mark.slow
def test_stable_is_hls4mls(tmp_path: Path) -> None:
    """Bit for bit what hls4ml's own C-simulation gives."""
    pytest.importorskip("hls4ml")
    from benchmarks.hls4ml_softmax import of_hls4ml

    model = of_hls4ml("stable", tmp_path)
    model.compile()
    x = _logits(200)
    theirs = model.predict(np.ascontiguousarray(WIDE.dequantise(x)))
    ours = run(hls4ml_stable.stable(1, 64), {"x": x[:, None]})["y"][:, 0]
    np.testing.assert_array_equal(WIDE.quantise(theirs), ours)


@simulated
def test_stable_is_printed() -> None:
    kernel = hls4ml_stable.stable(4, 16)
    x = _logits(4)[:, :64].reshape(-1, 4, 16)
    found, _ = simulate_rtl(kernel, {"x": x}, seed=2, simulator="icarus")
    np.testing.assert_array_equal(found["y"], run(kernel, {"x": x})["y"])


def test_each_entry_has_enough_elements() -> None:
    for name, entry in table.ENTRIES.items():
        kernel = entry.kernel()
        (batch,) = {len(codes) for codes in table.inputs(kernel).values()}
        assert batch * np.prod(kernel.outputs[0].shape) >= 10_000, name
        assert entry.reference is None or entry.reference in table.ENTRIES


def test_what_is_beaten_is_left_out() -> None:
    rows = [
        {"fmax": 100.0, "luts": 500, "ii": 1.0},
        {"fmax": 120.0, "luts": 700, "ii": 1.0},
        {"fmax": 90.0, "luts": 600, "ii": 1.0},
        {"fmax": 80.0, "luts": 400, "ii": 1.0},
        {"fmax": 130.0, "luts": 700, "ii": 2.0},
    ]
    assert [row["fmax"] for row in table.pareto(rows)] == [130.0, 120.0, 100.0, 80.0]


def test_ratios_are_to_the_exact_softmax() -> None:
    rows = [
        {"name": "shift", "luts": 500, "rate": 90.0},
        {"name": "online", "luts": 800, "rate": 60.0},
        {"name": "norm", "luts": 900, "rate": 80.0},
    ]
    table.compared(rows)
    assert (rows[0]["smaller"], rows[0]["faster"]) == (1.6, 1.5)
    assert np.isnan(rows[2]["smaller"])
    assert np.isnan(rows[1]["faster"])


@placed
@pytest.mark.slow
def test_the_softmax_of_shifts(tmp_path: Path) -> None:
    """Its stage that sums, and all of it, on an LFE5U-25F of speed grade 6, the least of three seeds."""
    rtl = print_rtl(softmax.shift(16, 64, WIDE, WIDE, octaves=True, name="shift"))
    stage = implement(rtl, top="shift_s0_gather", cache=tmp_path)
    assert stage.fmax >= 95
    assert stage.luts <= 900
    assert stage.multipliers <= 1
    assert implement(rtl, cache=tmp_path).fmax >= 80
