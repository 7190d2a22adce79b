"""Batch norm in the place of LayerNorm: its function, its statistics, and what it folds to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers import operators, parse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx_ir.passes.common import InlinePass
from single import U, body, lower, model_of

import lowerkit
from lowerkit.calibrate import Calibration
from lowerkit.errors import PlanError
from lowerkit.graph.canonicalise import FoldConstants
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.passes.norm.batch_norm import BatchNormMethod
from lowerkit.plan import Choice, Plan, options_of
from lowerkit.targets.base import get_target

OPS = ["LayerNormalization", "RMSNormalization"]
each_op = pytest.mark.parametrize("op", OPS)
WEIGHTS = [np.array([1, -2, 3, 0], np.float32), np.array([1, 2, 3, 4], np.float32)]
METHOD = BatchNormMethod([0, 1, -2, 1e-3], [1.0, 0.25, 0.0, 9])


def weights(op: str) -> list[np.ndarray]:
    return WEIGHTS if op == "LayerNormalization" else WEIGHTS[:1]


def fitted(op: str, x: np.ndarray) -> BatchNormMethod:
    stats = TensorStats()
    stats.update(x)
    method = BatchNormMethod.fit_node(model_of(op, x, {}, weights(op)).graph.node("n"), stats, {})
    assert isinstance(method, BatchNormMethod)
    return method


@each_op
@given(hnp.arrays(np.float32, (3, 2, 4), elements=st.floats(-1e6, 1e6, width=32)))
def test_body_is_the_model_up_to_rounding(op: str, x: np.ndarray) -> None:
    y = body(METHOD, op, x, {"epsilon": 1e-3}, weights(op))
    factor = np.abs(WEIGHTS[0]) / np.sqrt(np.array(METHOD.variance) + 1e-3)
    bias = WEIGHTS[1] if op == "LayerNormalization" else 0
    expected = METHOD.evaluate(x, epsilon=1e-3) * WEIGHTS[0] + bias
    size = factor * (np.abs(x) + np.abs(METHOD.mean)) + np.abs(bias)
    # Below the normal numbers rounding is absolute.
    assert np.all(np.abs(y - expected) <= 8 * U * size + 2.0**-148)


@each_op
def test_it_is_affine_and_keeps_to_its_elements(op: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    y = body(METHOD, op, x, {}, weights(op))
    ugly = x.copy()
    ugly[0, 0], ugly[1, 1], ugly[2, 0], ugly[3, 3] = np.nan, np.inf, -np.inf, 1e-45
    z = body(METHOD, op, ugly, {}, weights(op))
    assert np.isnan(z[0, 0])
    assert (z[1, 1], z[2, 0]) == (-np.inf, -np.inf)
    same = np.ones_like(x, bool)
    same[[0, 1, 2, 3], [0, 1, 0, 3]] = False
    np.testing.assert_array_equal(y[same], z[same])


@each_op
def test_statistics_are_those_of_the_channels(op: str) -> None:
    x = np.random.default_rng(1).normal([0, 1, 5, -9], [1, 2, 0.1, 3], (2, 500, 4)).astype(np.float32)
    ragged = np.concatenate([x, np.full((2, 1, 4), np.nan, np.float32)], axis=1)
    method = fitted(op, ragged)
    y = method.evaluate(x, epsilon=0.0)
    np.testing.assert_allclose((y * y).mean(axis=(0, 1)), 1, rtol=1e-5)
    if op == "LayerNormalization":
        np.testing.assert_allclose(y.mean(axis=(0, 1)), 0, atol=1e-4)
    else:
        assert method.mean == (0, 0, 0, 0)


def test_calibrated_numbers_survive_a_plan() -> None:
    x = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    model = model_of("LayerNormalization", x, {}, WEIGHTS)
    calibration = Calibration({"x": TensorStats()})
    calibration.stats["x"].update(x)
    plan = default_plan(model, get_target("cpu"), calibration, {"norm": "batch-norm"})
    assert Plan.from_toml(plan.to_toml()) == plan
    again = registry.make("norm", "batch-norm", Plan.from_toml(plan.to_toml()).choices[0].options)
    assert again == fitted("LayerNormalization", x)
    apply_plan(model, plan)
    assert model.graph.node("n").op_type == "BatchNorm"


def test_it_folds_to_one_product_and_one_sum() -> None:
    for op in OPS:
        model = lower(METHOD, model_of(op, np.zeros((3, 4), np.float32), {}, weights(op)))
        InlinePass()(model)
        model.functions.clear()
        FoldConstants()(model)
        assert operators(model) == {"Mul": 1, "Add": 1}


@each_op
def test_without_statistics_it_is_refused(op: str) -> None:
    model = model_of(op, np.zeros((3, 4), np.float32), {}, weights(op))
    for calibration in (Calibration(), Calibration({"x": TensorStats()})):
        with pytest.raises(PlanError, match="needs the mean and variance of every channel: calibrate"):
            default_plan(model, get_target("cpu"), calibration, {"norm": "batch-norm"})
    with pytest.raises(PlanError, match="batch-norm' needs the mean"):
        apply_plan(model, Plan("cpu", (Choice("n", op, "batch-norm"),)))


def test_other_shapes_are_refused() -> None:
    x = np.zeros((3, 4), np.float32)
    whole = model_of("LayerNormalization", x, {"axis": 0}, [x]).graph.node("n")
    assert METHOD.refuses(whole) == "normalises the last axis alone"
    other = model_of("LayerNormalization", x[:, :3], {}, [WEIGHTS[0][:3]]).graph.node("n")
    assert METHOD.refuses(other) == "has the mean and variance of 4 channels, and the input has 3"
    counted = model_of("LayerNormalization", x, {"axis": 1}, WEIGHTS).graph.node("n")
    assert METHOD.refuses(counted) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": [1.0]}, "mean and variance must be of one length, not 1 and 0"),
        ({"mean": [1.0], "variance": [-1.0]}, "variance must not be negative, and -1.0 is there"),
        (
            {"mean": [float("nan")], "variance": [1.0]},
            "mean must be a list of finite numbers, one per channel",
        ),
        ({"mean": [0.0], "variance": "1"}, "variance must be a list of finite numbers"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        registry.make("norm", "batch-norm", options)


def test_options_are_lists() -> None:
    assert options_of(METHOD) == {"mean": [0.0, 1.0, -2.0, 1e-3], "variance": [1.0, 0.25, 0.0, 9.0]}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_compiles_with_it(tmp_path: Path) -> None:
    w = np.random.default_rng(3).normal(size=(16, 16)).astype(np.float32)
    model = parse(
        "(float[4,16] x) => (float[4,16] y) { n = LayerNormalization(x, s, b) m = MatMul(n, w) y = Relu(m) }",
        s=w[0],
        b=w[1],
        w=w,
    )
    ir.save(model, tmp_path / "m.onnx")
    artifact = lowerkit.compile(tmp_path / "m.onnx", tmp_path / "out", methods={"norm": "batch-norm"})
    (choice, relu) = artifact.plan.choices
    assert relu.method == "keep"
    assert (choice.method, len(choice.options["mean"])) == ("batch-norm", 16)
    assert "(16 in all)" in (tmp_path / "out" / "report.html").read_text()
