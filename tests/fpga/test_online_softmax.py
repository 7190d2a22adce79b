"""The online softmax kernel against softmax in real numbers, and a model that is compiled with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from codes import codes
from helpers import parse

import lowerkit
from lowerkit.numerics.rows import softmax_rows
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.softmax.online import bound, online
from lowerkit.targets.fpga.lang.interpret import run

FORMATS = [
    ("ap_fixed<16,6>", "ap_fixed<16,6>"),
    ("ap_fixed<16,6>", "ap_ufixed<16,0>"),
    ("ap_fixed<20,4>", "ap_fixed<18,2>"),
    ("ap_fixed<8,4>", "ap_fixed<17,2>"),
    ("int8", "ap_ufixed<12,1>"),
]


def rows(source: Fixed, columns: int) -> np.ndarray:
    """Codes [samples, 8, columns]: any, near ones, rising and falling ramps, jumps upwards, and all the same."""
    rng = np.random.default_rng(columns)
    low, high = source.range.low, source.range.high
    drawn = codes(rng, (8, columns), source, 60)
    ramp = np.sort(drawn[:10], axis=-1)
    near = np.rint(rng.normal(0, source.range.high / 32, (20, 8, columns))).astype(np.int64)
    climbs = np.linspace(-1, 1, columns) * rng.uniform(0, 2.0**source.fraction * 8, (10, 8, 1))
    jumps = np.where(np.arange(columns) % 16 == 15, near[:10] + high // 2, near[:10] + low // 2)
    equal = np.broadcast_to(near[:5, :, :1], (5, 8, columns))
    found = [drawn, ramp, ramp[..., ::-1], near, np.rint(climbs).astype(np.int64), jumps, equal]
    return np.concatenate(found).clip(low, high)


@pytest.mark.parametrize(("source", "target"), FORMATS)
@pytest.mark.parametrize("columns", [1, 2, 17, 64, 300])
def test_within_its_bound(source: str, target: str, columns: int) -> None:
    given, wanted = Fixed.parse(source), Fixed.parse(target)
    x = rows(given, columns)
    y = wanted.dequantise(run(online(8, columns, given, wanted), {"x": x})["y"])
    exact = softmax_rows(given.dequantise(x)).clip(wanted.low, wanted.high)
    assert np.abs(y - exact).max() <= bound(columns, given, wanted)


def test_rising_rows_are_as_exact_as_falling_ones() -> None:
    """Every element of a rising row rescales the sum: 63 roundings, and still near the exact row."""
    given, wanted = Fixed.parse("ap_fixed<16,6>"), Fixed.parse("ap_ufixed<16,0>")
    steps = np.arange(64) * np.array([1, 4, 16, 64])[:, None]
    x = np.stack([steps, steps[:, ::-1]])
    y = wanted.dequantise(run(online(4, 64, given, wanted), {"x": x})["y"])
    assert np.abs(y - softmax_rows(given.dequantise(x))).max() < 2.0**-10


def test_the_bound_is_of_use() -> None:
    """It grows with the row's length, and is below a step of eight bits for rows of 64."""
    given, wanted = Fixed.parse("ap_fixed<16,6>"), Fixed.parse("ap_ufixed<16,0>")
    found = [bound(n, given, wanted) for n in (1, 64, 1024)]
    assert found[0] < found[1] < 2.0**-8 < found[2] < 0.1


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_model_is_compiled_with_it(tmp_path: Path) -> None:
    """The C++ of the artifact gives softmax within the kernel's bound of the formats that the plan chose."""
    ir.save(parse("(float[4,12] x) => (float[4,12] y) { y = Softmax <axis = -1> (x) }"), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(0, 2, (20, 4, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    artifact = lowerkit.compile(
        tmp_path / "m.onnx",
        tmp_path / "out",
        "fpga",
        calibration=tmp_path / "x.npz",
        methods={"softmax": "online"},
    )
    found = artifact.run({"x": x})["y"]
    formats = lowerkit.Plan.read(artifact.directory / "plan.toml").options["formats"]
    source, target = (Fixed.parse(formats[value]) for value in "xy")
    held = source.dequantise(source.quantise(x.astype(np.float64)))
    assert (tmp_path / "out" / "hls").is_dir()
    assert np.abs(found - softmax_rows(held)).max() <= bound(12, source, target)
