"""The fpga target through the whole pipeline: artifacts, formats, refusals."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers import parse

import lowerkit.api
from lowerkit import LowerkitError, Plan
from lowerkit.artifact import write_manifest
from lowerkit.errors import PlanError, ToolError, UnsupportedError
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target
from lowerkit.targets.fpga.formats import Fixed

RNG = np.random.default_rng(5)


def _normal(*shape: int, scale: float = 0.5) -> np.ndarray:
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


#: One block of everything: attention of two tokens' worth, GELU, LayerNorm, residuals.
BLOCK = """(float[1,6,8] x) => (float[1,6,4] y) {
    n = LayerNormalization <axis = -1> (x, gamma, beta)
    q0 = MatMul (n, wq)
    q = Add (q0, bq)
    kt = Transpose <perm = [0, 2, 1]> (n)
    s = MatMul (q, kt)
    half = Constant <value_float = 0.3> ()
    t = Mul (s, half)
    p = Softmax <axis = -1> (t)
    a = MatMul (p, n)
    r = Add (x, a)
    u = MatMul (r, wu)
    g = Gelu (u)
    y = MatMul (g, wd)
}"""
WEIGHTS = {
    "gamma": 1 + _normal(8, scale=0.1),
    "beta": _normal(8, scale=0.1),
    "wq": _normal(8, 8),
    "bq": _normal(8),
    "wu": _normal(8, 16),
    "wd": _normal(16, 4),
}


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and samples."""
    folder = tmp_path_factory.mktemp("block")
    ir.save(parse(BLOCK, **WEIGHTS), folder / "block.onnx")
    np.savez(folder / "x.npz", x=_normal(24, 6, 8, scale=1.0))
    return folder / "block.onnx", folder / "x.npz"


@pytest.fixture(scope="module")
def artifact(block: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> lowerkit.Artifact:
    """The block, compiled."""
    model, data = block
    return lowerkit.compile(model, tmp_path_factory.mktemp("out") / "a", "fpga", calibration=data)


def test_the_c_simulation_is_the_integer_model(artifact: lowerkit.Artifact, block: tuple[Path, Path]) -> None:
    validation = lowerkit.validate(artifact, block[1])
    assert validation.inexact == 0
    assert "bit for bit" in validation.summary()
    (output,) = validation.outputs
    assert output.error.total is not None
    assert output.error.total.relative < 5e-3
    by_op = {layer.op: layer for layer in validation.layers}
    assert {"LayerNormalization", "MatMul"} <= set(by_op)
    measured = [layer for layer in validation.layers if layer.error.arithmetic is not None]
    assert len(measured) == len(validation.layers)


def test_a_changed_simulation_is_refused(
    artifact: lowerkit.Artifact, block: tuple[Path, Path], tmp_path: Path
) -> None:
    """A number of a table changed in the C++, which is built and sealed again."""
    copy = shutil.copytree(artifact.directory, tmp_path / "copy")
    layer = next(f for f in sorted((copy / "hls" / "layers").iterdir()) if "gelu" in f.name)
    text = layer.read_text()
    first = text.index("{\n    ") + 6
    layer.write_text(text[:first] + "1" + text[first:])
    subprocess.run(["make", "-s", "-B"], cwd=copy / "hls", check=True)
    (copy / "manifest.json").unlink()
    write_manifest(copy, artifact.manifest["source"], artifact.model("original.onnx"), artifact.plan)
    with pytest.raises(LowerkitError, match="differs from its exact model in"):
        lowerkit.validate(copy, block[1], layers=False)


def test_equal_inputs_give_equal_files(
    artifact: lowerkit.Artifact, block: tuple[Path, Path], tmp_path: Path
) -> None:
    again = lowerkit.compile(block[0], tmp_path / "b", "fpga", calibration=block[1])
    assert again.manifest["files"] == artifact.manifest["files"]


def test_a_plan_keeps_the_formats(
    artifact: lowerkit.Artifact, block: tuple[Path, Path], tmp_path: Path
) -> None:
    """Without calibration data, and read back from its file."""
    plan = Plan.read(artifact.directory / "plan.toml")
    assert plan.options["formats"]["a/softmax"] == "ap_ufixed<16,0>"
    again = lowerkit.compile(block[0], tmp_path / "b", "fpga", plan=plan)
    assert again.manifest["files"]["fpga.json"] == artifact.manifest["files"]["fpga.json"]


def test_a_format_of_the_plan_is_used(block: tuple[Path, Path], tmp_path: Path) -> None:
    options = {"formats": {"y": "ap_fixed<24,6>"}, "overflow": "calibrated"}
    found = lowerkit.compile(block[0], tmp_path / "a", "fpga", calibration=block[1], options=options)
    (output,) = json.loads((found.directory / "fpga.json").read_text())["outputs"]
    assert output["format"] == "ap_fixed<24,6>"


def test_a_format_that_does_not_hold_the_calibrated_range_is_refused(
    block: tuple[Path, Path], tmp_path: Path
) -> None:
    options = {"formats": {"r": "ap_fixed<16,1>"}}
    with pytest.raises(PlanError, match=r"ap_fixed<16,1> holds -1 to 0\.99.*'r' takes"):
        lowerkit.compile(block[0], tmp_path / "a", "fpga", calibration=block[1], options=options)
    assert not (tmp_path / "a").exists()
    saturating = {**options, "overflow": "saturate"}
    lowerkit.compile(block[0], tmp_path / "a", "fpga", calibration=block[1], options=saturating)


def test_an_error_budget_narrows_formats(block: tuple[Path, Path], tmp_path: Path) -> None:
    plan = lowerkit.api.plan(block[0], "fpga", calibration=block[1], options={"noise": 0.01})
    widths = {name: Fixed.parse(text).width for name, text in plan.options["formats"].items()}
    assert 4 < widths["q"] < 12
    assert widths["a/softmax"] == 16


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("width", 64, "width must be"),
        ("weight_width", True, "weight_width must be"),
        ("noise", 2.0, "noise must be"),
        ("overflow", "wrap", "overflow must be one of"),
        ("multipliers", 0, "multipliers must be"),
        ("colour", "red", "no option 'colour'"),
        ("formats", {"r": "float"}, "format of value 'r'"),
        ("formats", {"nothing": "int8"}, "value 'nothing'"),
    ],
)
def test_options_are_checked(block: tuple[Path, Path], option: str, value: object, message: str) -> None:
    with pytest.raises(LowerkitError, match=message):
        lowerkit.api.plan(block[0], "fpga", calibration=block[1], options={option: value})


REFUSED = {
    "operator": ("(float[1,4] x) => (float[1,4] y) { y = Sin (x) }", "Sin"),
    "axis": ("(float[1,4,4] x) => (float[1,4,4] y) { y = Softmax <axis = 1> (x) }", "softmax over axis"),
    "power": (
        "(float[1,4] x) => (float[1,4] y) { c = Constant <value_float = 3.0> () y = Pow (x, c) }",
        "even power",
    ),
    "division": ("(float[1,4] x, float[1,4] z) => (float[1,4] y) { y = Div (x, z) }", "division"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_refused_by_node(name: str, tmp_path: Path) -> None:
    text, reason = REFUSED[name]
    ir.save(parse(text), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=reason) as found:
        lowerkit.compile(tmp_path / "m.onnx", tmp_path / "a", "fpga")
    assert "node '" in str(found.value)
    assert not (tmp_path / "a").exists()


def test_a_dynamic_shape_is_refused(tmp_path: Path) -> None:
    ir.save(parse("(float[n,4] x) => (float[n,4] y) { y = Relu (x) }"), tmp_path / "m.onnx")
    with pytest.raises(LowerkitError, match="--shape x:1,4"):
        lowerkit.compile(tmp_path / "m.onnx", tmp_path / "a", "fpga")


@pytest.mark.parametrize("tool", ["g++", "make"])
def test_a_missing_tool_is_named(
    tool: str, block: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else found(name))
    with pytest.raises(ToolError, match=rf"{re.escape(tool)} is not installed"):
        lowerkit.compile(block[0], tmp_path / "a", "fpga", calibration=block[1])
    assert not (tmp_path / "a").exists()


def test_masked_logits_weigh_nothing(tmp_path: Path) -> None:
    """A mask of -3.4e38 in a format of 16 bits, beside logits of very different rows."""
    text = """(float[1,3,4] x, float[1,1,4] mask) => (float[1,3,4] y) {
        s = Add (x, mask)
        y = Softmax <axis = -1> (s)
    }"""
    ir.save(parse(text), tmp_path / "m.onnx")
    x = np.array([[[30, 0, 0, 0], [-30, -30, -30, 20], [0, 1, 2, 30]]], np.float32)
    mask = np.array([[[0, 0, 0, np.finfo(np.float32).min]]], np.float32)
    np.savez(tmp_path / "x.npz", x=x, mask=mask)
    found = lowerkit.compile(tmp_path / "m.onnx", tmp_path / "a", "fpga", calibration=tmp_path / "x.npz")
    y = found.run({"x": x, "mask": mask})["y"]
    assert (y[..., 3] == 0).all()
    np.testing.assert_allclose(y[0, 1, :3], 1 / 3, atol=1e-3)


def test_powers_over_their_sum_are_one_layer(tmp_path: Path) -> None:
    """As a model trained with them spells them: (x / 2)^2 / (0.001 + sum (x / 2)^2)."""
    text = """(float[1,3,8] x) => (float[1,3,8] y) {
        c = Constant <value_float = 2.0> ()
        s = Div (x, c)
        p = Pow (s, c)
        axes = Constant <value_ints = [-1]> ()
        t = ReduceSum <keepdims = 1> (p, axes)
        e = Constant <value_float = 0.001> ()
        d = Add (t, e)
        y = Div (p, d)
    }"""
    ir.save(parse(text), tmp_path / "m.onnx")
    x = _normal(16, 3, 8, scale=1.0)
    np.savez(tmp_path / "x.npz", x=x)
    found = lowerkit.compile(tmp_path / "m.onnx", tmp_path / "a", "fpga", calibration=tmp_path / "x.npz")
    q = np.square(x[:1] / 2)
    np.testing.assert_allclose(
        found.run({"x": x[:1]})["y"], q / (0.001 + q.sum(-1, keepdims=True)), atol=1e-3
    )
    layers = json.loads((found.directory / "fpga.json").read_text())["layers"]
    assert [layer["op"] for layer in layers] == ["Pow"]


def test_sums_over_an_axis(tmp_path: Path) -> None:
    text = """(float[1,3,8] x) => (float[1,8] y) {
        axes = Constant <value_ints = [1]> ()
        y = ReduceSum <keepdims = 0> (x, axes)
    }"""
    ir.save(parse(text), tmp_path / "m.onnx")
    x = _normal(16, 3, 8, scale=1.0)
    np.savez(tmp_path / "x.npz", x=x)
    found = lowerkit.compile(tmp_path / "m.onnx", tmp_path / "a", "fpga", calibration=tmp_path / "x.npz")
    np.testing.assert_allclose(found.run({"x": x[:1]})["y"], x[:1].sum(1), atol=1e-3)


def test_ids_read_rows_of_an_embedding(tmp_path: Path) -> None:
    text = """(int64[1,5] ids) => (float[1,5,4] y) { e = Gather (table, ids) y = Relu (e) }"""
    table = _normal(11, 4)
    ir.save(parse(text, table=table), tmp_path / "m.onnx")
    ids = np.array([[0, 3, 10, 10, 7]], np.int64)
    np.savez(tmp_path / "x.npz", ids=ids)
    found = lowerkit.compile(tmp_path / "m.onnx", tmp_path / "a", "fpga", calibration=tmp_path / "x.npz")
    np.testing.assert_allclose(found.run({"ids": ids})["y"], np.maximum(table[ids], 0), atol=1e-3)


def test_importing_lowerkit_imports_no_hls4ml() -> None:
    code = "import sys, lowerkit.api, lowerkit.targets.fpga.target; print('hls4ml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("overflow", ["calibrated", "never"])
def test_numbers_that_calibration_did_not_see(overflow: str, tmp_path: Path) -> None:
    """Forty times as large: formats saturate, but those that were proven."""
    text = "(float[1,8] x) => (float[1,4] y) { h = MatMul (x, w) y = Relu (h) }"
    ir.save(parse(text, w=_normal(8, 4)), tmp_path / "m.onnx")
    small = _normal(32, 8)
    np.savez(tmp_path / "x.npz", x=small)
    options = {"overflow": overflow, "width": 20, "formats": {"x": "ap_fixed<20,10>"}}
    found = lowerkit.compile(
        tmp_path / "m.onnx", tmp_path / "a", "fpga", calibration=tmp_path / "x.npz", options=options
    )
    large = 40 * small[:1]
    reference = Reference(lowerkit.load(tmp_path / "m.onnx"))({"x": large})["y"]
    error = np.abs(found.run({"x": large})["y"] - reference).max()
    assert error < 1e-2 if overflow == "never" else error > 1


def test_the_exported_inputs_saturate(artifact: lowerkit.Artifact) -> None:
    """+inf is the greatest number of the input's format; NaN has none."""
    x = np.full((1, 6, 8), np.inf, np.float32)
    top = artifact.run({"x": np.full((1, 6, 8), 1e6, np.float32)})["y"]
    np.testing.assert_array_equal(artifact.run({"x": x})["y"], top)
    with pytest.raises(LowerkitError, match="NaN"):
        artifact.run({"x": np.full((1, 6, 8), np.nan, np.float32)})


def test_the_artifact_runs_alone(
    artifact: lowerkit.Artifact, block: tuple[Path, Path], tmp_path: Path
) -> None:
    """By its own script, which imports nothing but numpy."""
    script = artifact.directory / "run.py"
    blocked = "import sys; sys.modules['lowerkit'] = None; sys.argv = sys.argv[1:]; import runpy; "
    code = blocked + "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(script), str(block[1]), str(tmp_path / "y.npz")]
    subprocess.run(command, check=True)
    with np.load(block[1]) as given, np.load(tmp_path / "y.npz") as found:
        expected = [artifact.run({"x": x[None]})["y"] for x in given["x"]]
        np.testing.assert_array_equal(found["y"], np.concatenate(expected))
    np.savez(tmp_path / "bad.npz", x=np.full((1, 6, 8), np.nan, np.float32))
    done = subprocess.run([*command[:-2], str(tmp_path / "bad.npz"), "y.npz"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "has NaN" in done.stderr


def test_the_target_describes_its_options() -> None:
    target = get_target("fpga")
    assert set(target.options) >= {"width", "weight_width", "formats", "overflow", "noise", "reuse"}
