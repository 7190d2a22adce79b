"""Graphs that are quantised already: every code is that of exact arithmetic, and the C-simulation has the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantised_models as models
import quantised_oracle as exact
from onnx import helper

import lowerkit
from lowerkit import pipeline
from lowerkit.errors import ModelError, PlanError, UnsupportedError
from lowerkit.pipeline import Stages
from lowerkit.reference import Reference
from lowerkit.targets.fpga.design import Design, codes_of, simulate
from lowerkit.targets.fpga.formats import Affine
from lowerkit.targets.fpga.graph_formats import stated
from lowerkit.targets.fpga.target import FpgaTarget


def lowered(path: Path, samples: list[np.ndarray]) -> tuple[ir.Model, dict[str, object], Design]:
    """The canonical graph, completed options and the design."""
    target = FpgaTarget()
    model = pipeline.canonical_graph(lowerkit.load(str(path)), target, Stages())
    options = target.complete(model, [{"x": x} for x in samples], {})
    return model, options, FpgaTarget().design(model, options)


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


@pytest.mark.slow
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
    layers = json.loads((tmp_path / "out" / "fpga.json").read_text())["cost"]["layers"]
    third = next(layer for layer in layers if layer["node"] == "fc3")
    # 36 weights of one bit; what remains are thresholds or multipliers of columns.
    assert third["multipliers"] <= 4


@pytest.mark.slow
def test_attention_of_onnxruntime_is_honoured_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    samples = [models.f32(rng, 1, 6, 8) for _ in range(10)]
    (tmp_path / "out").mkdir()
    path = models.quantised(models.attention(rng), samples, tmp_path)
    differing, total = check(path, samples, tmp_path)
    assert differing <= total // 100


def test_codes_beside_ties_are_all_that_a_normalisation_may_miss(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    samples = [models.f32(rng, 1, 16, 24) for _ in range(10)]
    nodes = [helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["y"], "norm")]
    plain = models.build(
        nodes, (1, 16, 24), {"gamma": 1 + models.f32(rng, 24), "beta": models.f32(rng, 24)}, rank=3
    )
    model, _, design = lowered(models.quantised(plain, samples, tmp_path), samples)
    wanted = Reference(model)
    found = simulate(design, codes_of(design, {"x": np.concatenate(samples)}))["y"]
    form = design.values["y"].format
    expected = np.stack([form.quantise(wanted({"x": x})["y"]) for x in samples])
    off = np.abs(found.reshape(expected.shape) - expected)
    assert off.max() <= 1
    assert (off > 0).mean() < 0.002


def test_weights_quantised_in_the_graph_are_the_codes_of_their_quantisation(tmp_path: Path) -> None:
    """What training leaves: QuantizeLinear and DequantizeLinear of float weights."""
    rng = np.random.default_rng(8)
    weights = {
        "w": models.f32(rng, 6, 4), "s": np.float32(0.05) * np.arange(1, 5, dtype=np.float32),
        "z": np.zeros(4, np.int8),
        "sx": np.array(0.031, np.float32), "zx": np.array(7, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], "q"),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], "d"),
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"], "qw", axis=1),
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["wd"], "dw", axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["m"], "product"),
        helper.make_node("QuantizeLinear", ["m", "sx", "zx"], ["mq"], "qm"),
        helper.make_node("DequantizeLinear", ["mq", "sx", "zx"], ["y"], "dm"),
    ]
    path = tmp_path / "qat.onnx"
    onnx.save(models.build(nodes, (1, 6), weights), path)
    samples = [models.f32(rng, 1, 6) for _ in range(50)]
    _, _, design = lowered(path, samples)
    (layer,) = [each for each in design.layers if each.node == "product"]
    stored = next(a.data for a in layer.kernel.constants if a.name.endswith("_w"))
    np.testing.assert_array_equal(
        stored, np.clip(np.round(weights["w"] / weights["s"].astype(np.float64)), -128, 127)
    )
    found = simulate(design, codes_of(design, {"x": np.concatenate(samples)}))["y"].reshape(50, 4)
    x = Affine(8, float(weights["sx"]), 7)
    for sample, codes in zip(samples, found, strict=True):
        numbers = exact.rational(x.dequantise(x.quantise(sample))) @ exact.rational(
            stored * weights["s"].astype(np.float64)
        )
        wanted = [min(max(round(n / x.scale) + 7, -128), 127) for n in numbers.ravel()]
        assert codes.tolist() == wanted


def _quant(**attributes: object) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Quant", ["x", "s", "z", "b"], ["y"], "quant", domain=models.QONNX, **attributes)
    ]
    weights = {"s": np.float32(0.5), "z": np.float32(1), "b": np.float32(4)}
    return models.build(nodes, (1, 3), {n: np.asarray(a) for n, a in weights.items()}, qonnx=True)


def test_what_qonnx_says_and_is_not_understood_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_quant(rounding_mode="CEIL"), path)
    with pytest.raises(ModelError, match="rounding mode CEIL"):
        lowerkit.load(str(path))
    model = _quant()
    model.graph.node[0].op_type = "Trunc"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="no meaning is known for Trunc"):
        lowerkit.load(str(path))
    onnx.save(_quant(), path)
    with pytest.raises(UnsupportedError, match=r"'quant'.*odd zero point"):
        lowered(path, [np.zeros((1, 3), np.float32)])


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize(("signed", "narrow"), [(1, 0), (1, 1), (0, 0), (0, 1)])
def test_the_function_of_quant_is_its_definition(tmp_path: Path, bits: int, signed: int, narrow: int) -> None:
    nodes = [
        helper.make_node(
            "Quant", ["x", "s", "z", "b"], ["y"], "quant", domain=models.QONNX, signed=signed, narrow=narrow
        )
    ]
    weights = {
        "s": np.asarray(np.float32(0.25)),
        "z": np.asarray(np.float32(0)),
        "b": np.asarray(np.float32(bits)),
    }
    path = tmp_path / "model.onnx"
    onnx.save(models.build(nodes, (1, 300), weights, qonnx=True), path)
    x = np.linspace(-40, 40, 300, dtype=np.float32)[None]
    model, _, design = lowered(path, [x])
    low, high = (narrow - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
    wanted = np.clip(np.round(x * 4), low, high) / 4
    np.testing.assert_array_equal(Reference(model)({"x": x})["y"], wanted)
    np.testing.assert_array_equal(
        design.values["y"].format.dequantise(codes_of(design, {"x": x})["x"][0]), wanted
    )


def test_a_plan_cannot_move_what_the_graph_quantises(tmp_path: Path) -> None:
    path, x = tmp_path / "model.onnx", np.zeros((1, 10), np.float32)
    onnx.save(models.qonnx_mlp(np.random.default_rng(0)), path)
    model, options, _ = lowered(path, [x])
    formats = {**options["formats"], "a1": "uint3<0.5,0>"}  # type: ignore[dict-item]
    with pytest.raises(PlanError, match="itself quantises value 'a1'"):
        FpgaTarget().design(model, {**options, "formats": formats})
