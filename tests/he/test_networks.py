"""Trained networks, compiled by the pipeline and really encrypted."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from he_models import lowered, mlp_weights, uniform
from helpers import parse

import lowerkit.api
from examples import vit_block
from lowerkit.errors import LowerkitWarning, UnsupportedError
from lowerkit.passes.registry import make
from lowerkit.reference import Reference
from lowerkit.targets.he.target import HeTarget

pytest.importorskip("seal", reason="SEAL is missing: pip install seal-python")

EXAMPLES = Path(__file__).parents[2] / "examples"
CALIBRATION = EXAMPLES / "data" / "fashion_calibration.npz"


def _compiled(name: str, output: Path, **options: object) -> lowerkit.Artifact:
    return lowerkit.api.compile(
        EXAMPLES / "models" / f"{name}.onnx",
        output,
        "he",
        calibration=CALIBRATION,
        shape={"image": (1, 784)},
        options=options,
        dump_stages=True,
    )


def _few(path: Path, count: int) -> tuple[Path, Path]:
    with np.load(EXAMPLES / "data" / "fashion_test.npz") as images:
        np.savez(path / "images.npz", image=images["image"][:count])
    with np.load(EXAMPLES / "data" / "fashion_test_labels.npz") as labels:
        np.savez(path / "labels.npz", labels=labels["labels"][:count])
    return path / "images.npz", path / "labels.npz"


def test_a_trained_mlp(tmp_path: Path) -> None:
    artifact = _compiled("mlp_fashion_square", tmp_path / "out")
    validation = lowerkit.api.validate(artifact, *_few(tmp_path, 10))
    (output,) = validation.outputs
    assert output.error.total is not None
    assert output.error.total.max_abs <= 1e-4
    assert output.agreement is not None
    assert output.agreement.accuracy_artifact == output.agreement.accuracy_original
    (cost,) = lowerkit.targets.base.get_target("he").costs(artifact.directory)
    assert cost.rows[-1][1:5] == (2, 12, 1, 26)
    tensor, packed, levelled = (
        (tmp_path / "out" / "stages" / f"{name}-program.txt").read_text()
        for name in ("tensor", "packed", "levelled")
    )
    assert "linear: 1x128 = M[128x784" in tensor
    assert packed.count("= rotate ") == levelled.count("= rotate ") == 12
    assert levelled.count("= rescale ") == cost.rows[-1][5]


def test_a_trained_convolutional_network(tmp_path: Path) -> None:
    artifact = _compiled("lenet_fashion_square", tmp_path / "out")
    validation = lowerkit.api.validate(artifact, *_few(tmp_path, 3), layers=False)
    (output,) = validation.outputs
    assert output.error.total is not None
    assert output.error.total.max_abs <= 1e-4


def test_a_transformer_block_in_the_simulator(tmp_path: Path) -> None:
    vit_block.write(tmp_path)
    model, samples = lowered(tmp_path / "block.onnx", tmp_path / "calibration.npz", vit_block.METHODS)
    target = HeTarget()
    options = target.complete(model, samples[:1], {"ranges": {"tokens": [-4.0, 4.0]}})
    planned = target.planned(model, options)
    assert options["ring"] == 32768
    kinds = Counter(op.kind for op in planned.network.program.ops)
    assert max(planned.network.program.depths()) == 14
    assert kinds["rotate"] <= 54
    found = target.probe(model, options, [])(samples[1])["mixed"]
    np.testing.assert_allclose(found, Reference(model)(samples[1])["mixed"], atol=1e-4)


@pytest.mark.slow
def test_a_transformer_block_encrypted(tmp_path: Path) -> None:
    vit_block.write(tmp_path)
    artifact = lowerkit.api.compile(
        tmp_path / "block.onnx",
        tmp_path / "out",
        "he",
        calibration=tmp_path / "calibration.npz",
        methods=vit_block.METHODS,
    )
    with np.load(tmp_path / "test.npz") as data:
        sample = {"tokens": data["tokens"][:1]}
    found, expected = artifact.run(sample)["mixed"], Reference(artifact.model())(sample)["mixed"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_max_pooling_is_refused_with_what_would_help(tmp_path: Path) -> None:
    """And done as average pooling on request."""
    text = "(float[1,1,4,4] x) => (float[1,1,2,2] y) { y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }"
    ir.save(parse(text), tmp_path / "model.onnx")
    with pytest.raises(UnsupportedError, match=r"MaxPool is no polynomial; --method pool=average"):
        lowerkit.api.compile(tmp_path / "model.onnx", tmp_path / "out", "he")
    artifact = lowerkit.api.compile(
        tmp_path / "model.onnx", tmp_path / "out", "he", methods={"pool": "average"}
    )
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    np.savez(tmp_path / "x.npz", x=x)
    found = lowerkit.api.run(artifact, tmp_path / "x.npz", tmp_path / "y.npz")["y"]
    np.testing.assert_allclose(found[0, 0], x[0, 0].reshape(2, 2, 2, 2).mean(axis=(1, 3)), atol=1e-4)


@pytest.mark.parametrize(
    ("function", "method"),
    [
        ("Gelu", "interval-poly"),
        ("Relu", "interval-poly"),
        ("Sigmoid", "composite"),
        ("Tanh", "interval-poly"),
    ],
)
def test_activations_become_polynomials_on_calibrated_intervals(
    function: str, method: str, tmp_path: Path
) -> None:
    model = parse(
        f"(float[1,12] x) => (float[1,3] y) {{ h = MatMul (x, w) g = {function} (h) y = MatMul (g, v) }}",
        w=mlp_weights()["w1"],
        v=mlp_weights()["w2"],
    )
    ir.save(model, tmp_path / "model.onnx")
    samples = {"x": np.concatenate([sample["x"] for sample in uniform(model, 16)])}
    np.savez(tmp_path / "data.npz", **samples)
    np.savez(tmp_path / "few.npz", x=samples["x"][:2])
    artifact = lowerkit.api.compile(
        tmp_path / "model.onnx",
        tmp_path / "out",
        "he",
        calibration=tmp_path / "data.npz",
        methods={function.lower(): method} if method == "composite" else None,
    )
    validation = lowerkit.api.validate(artifact, tmp_path / "few.npz")
    (output,), (choice,) = validation.outputs, validation.choices
    assert choice.method == method
    assert choice.outside is None
    assert output.error.arithmetic is not None
    assert output.error.arithmetic.max_abs < 1e-4
    assert output.error.method.max_abs < 0.1


def test_numbers_beyond_a_polynomials_interval_are_flagged() -> None:
    model = parse("(float[1,4] x) => (float[1,4] y) { y = Gelu (x) }")
    make("gelu", "interval-poly", {"low": -1.0, "high": 1.0}).rewrite(model, next(iter(model.graph)))
    target = HeTarget()
    options = target.complete(model, [{"x": np.ones((1, 4), np.float32)}], {"ranges": {"x": [-2.0, 2.0]}})
    probe = target.probe(model, options, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowerkitWarning)
        probe({"x": np.ones((1, 4), np.float32)})
    with pytest.warns(LowerkitWarning, match=r"leaves the interval of its polynomial, 1\.5 times"):
        probe({"x": np.full((1, 4), 1.5, np.float32)})
