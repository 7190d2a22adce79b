"""Average pooling in max-pooling's place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers import parse

import lowerkit
from lowerkit.errors import PlanError
from lowerkit.graph.domain import DOMAIN
from lowerkit.passes.lower import apply_plan
from lowerkit.passes.pool.average import AverageForMaxPool
from lowerkit.plan import Choice, Plan
from lowerkit.reference import Reference

RNG = np.random.default_rng(4)
CASES = [
    ("kernel_shape = [2, 2], strides = [2, 2]", "[1,3,8,8]", "[1,3,4,4]"),
    ("kernel_shape = [3, 2], strides = [1, 2], pads = [1, 0, 1, 1]", "[2,1,5,6]", "[2,1,5,3]"),
    ("kernel_shape = [2], dilations = [3]", "[1,2,9]", "[1,2,6]"),
    ("kernel_shape = [3]", "[1,1,3]", "[1,1,1]"),
]


def lowered(attributes: str, given: str, wanted: str) -> tuple[ir.Model, ir.Node]:
    """The operator in MaxPool's place."""
    model = parse(f"(float{given} x) => (float{wanted} y) {{ y = MaxPool <{attributes}> (x) }}")
    model.graph[0].name = "pool"
    apply_plan(model, Plan("cpu", (Choice("pool", "MaxPool", "average"),), {}))
    return model, model.graph[0]


@pytest.mark.parametrize(("attributes", "given", "wanted"), CASES)
def test_the_body_is_the_mean_of_each_window(attributes: str, given: str, wanted: str) -> None:
    model, node = lowered(attributes, given, wanted)
    assert (node.domain, node.op_type) == (DOMAIN, "AverageForMaxPool")
    x = RNG.standard_normal([int(n) for n in given.strip("[]").split(",")]).astype(np.float32)
    found = Reference(model)({"x": x})["y"]
    options = {a.name: a.value for a in node.attributes.values()}
    np.testing.assert_allclose(found, AverageForMaxPool().evaluate(x, **options), rtol=1e-5, atol=1e-6)


def test_by_hand() -> None:
    """What is padded does not count, and equal windows are left as they are."""
    x = np.array([[[1.0, 2.0, 6.0]]])
    y = AverageForMaxPool().evaluate(x, kernel_shape=[2], pads=[1, 0], strides=[1])
    np.testing.assert_array_equal(y, [[[1.0, 1.5, 4.0]]])
    flat = np.full((1, 1, 4, 4), 3.0)
    np.testing.assert_array_equal(
        AverageForMaxPool().evaluate(flat, kernel_shape=[2, 2], strides=[2, 2]), flat[:, :, :2, :2]
    )
    assert np.isnan(AverageForMaxPool().evaluate(np.array([[[np.nan, 1.0]]]), kernel_shape=[2])).all()


def test_padding_by_name_is_refused() -> None:
    model = parse(
        '(float[1,1,5] x) => (float[1,1,5] y) { y = MaxPool <kernel_shape = [2], auto_pad = "SAME_UPPER"> (x) }'
    )
    model.graph[0].name = "pool"
    with pytest.raises(PlanError, match="needs explicit pads"):
        apply_plan(model, Plan("cpu", (Choice("pool", "MaxPool", "average"),), {}))


def test_on_request_with_the_measured_agreement(tmp_path: Path) -> None:
    """The default leaves maxima alone; another function is warned of with how often it agrees."""
    window = "kernel_shape = [2, 2], strides = [2, 2]"
    text = f"(float[1,1,4,4] x) => (float[1,4] y) {{ p = MaxPool <{window}> (x) y = Flatten (p) }}"
    ir.save(parse(text), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((32, 1, 4, 4)).astype(np.float32))
    kept = lowerkit.compile(tmp_path / "m.onnx", tmp_path / "kept", "cpu", calibration=tmp_path / "x.npz")
    assert [c.method for c in kept.plan.choices] == ["keep"]
    with pytest.warns(lowerkit.errors.LowerkitWarning, match="average.*another function"):
        lowerkit.compile(
            tmp_path / "m.onnx",
            tmp_path / "a",
            "cpu",
            calibration=tmp_path / "x.npz",
            methods={"pool": "average"},
        )
