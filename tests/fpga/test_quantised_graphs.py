"""Graphs that are quantised already: every code is that of exact arithmetic, and the C-simulation has the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import quantised_models as models
import quantised_oracle as exact

import lowerkit
from lowerkit import pipeline
from lowerkit.pipeline import Stages
from lowerkit.reference import Reference
from lowerkit.targets.fpga.design import Design, codes_of, simulate
from lowerkit.targets.fpga.graph_formats import stated
from lowerkit.targets.fpga.target import FpgaTarget, _design


def lowered(path: Path, samples: list[np.ndarray]) -> tuple[ir.Model, dict[str, object], Design]:
    """The canonical graph, completed options and the design."""
    target = FpgaTarget()
    model = pipeline.canonical_graph(lowerkit.load(str(path)), target, Stages())
    options = target.complete(model, [{"x": x} for x in samples], {})
    return model, options, _design(model, options)


def check(path: Path, samples: list[np.ndarray], tmp_path: Path, simulated: int = 200) -> tuple[int, int]:
    """Codes of exact arithmetic at every quantised value, and the C-simulation's of the outputs.

    Returns how many codes onnxruntime has otherwise, and of how many.
    """
    model, options, design = lowered(path, samples)
    forms = stated(model)
    names = [name for name in forms if name in design.values]
    batch = np.concatenate(samples)
    found = simulate(design, codes_of(design, {"x": batch}), names)
    reference = Reference(model, taps=[name for name in names if name != "x"])
    differing = total = 0
    for i, x in enumerate(samples):
        wanted, rough = exact.run(model, {"x": x}), {"x": x, **reference({"x": x})}
        for name in names:
            form = design.values[name].format
            codes = found[name][i].reshape(wanted[name].shape)
            numbers = wanted[name] if name == "x" else wanted[name].astype(np.float64)
            expected = form.quantise(numbers.astype(np.float64))
            np.testing.assert_array_equal(codes, expected, err_msg=name)
            differing += int((form.quantise(np.asarray(rough[name], np.float64)) != expected).sum())
            total += expected.size
    target = FpgaTarget()
    target.emit(model.clone(), options, tmp_path / "out")
    runner = target.open(tmp_path / "out", options)
    rng = np.random.default_rng(5)
    codes = codes_of(
        design, {"x": np.concatenate([models.f32(rng, *samples[0].shape) for _ in range(simulated)])}
    )
    np.testing.assert_array_equal(
        runner.codes(codes)["y"].reshape(simulated, -1), simulate(design, codes)["y"].reshape(simulated, -1)
    )
    return differing, total


def test_an_mlp_of_onnxruntime_is_honoured_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    samples = [models.f32(rng, 1, 12) for _ in range(60)]
    (tmp_path / "out").mkdir()
    path = models.quantised(models.mlp(rng), samples, tmp_path)
    differing, total = check(path, samples, tmp_path)
    assert differing <= total // 100


def test_a_cnn_of_onnxruntime_is_honoured_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    samples = [models.f32(rng, 1, 2, 8, 8) for _ in range(6)]
    (tmp_path / "out").mkdir()
    path = models.quantised(models.cnn(rng), samples, tmp_path)
    differing, total = check(path, samples, tmp_path)
    assert differing <= total // 100


def test_an_mlp_of_qonnx_is_honoured_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "qonnx.onnx"
    onnx.save(models.qonnx_mlp(rng), path)
    (tmp_path / "out").mkdir()
    differing, total = check(path, [models.f32(rng, 1, 10) for _ in range(80)], tmp_path)
    assert differing <= total // 100
    layers = json.loads((tmp_path / "out" / "fpga.json").read_text())["layers"]
    third = next(layer for layer in layers if layer["node"] == "fc3")
    # 36 weights of one bit; what remains are thresholds or multipliers of columns.
    assert third["multipliers"] <= 4
