"""Methods whose operators the target has not: their bodies, and the polynomials for what is in them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from he_models import uniform
from helpers import parse
from hypothesis import given, settings
from hypothesis import strategies as st

import lowerkit.api
from lowerkit import pipeline
from lowerkit.calibrate import calibrate
from lowerkit.errors import LowerkitWarning, PlanError, UnsupportedError
from lowerkit.graph.expand import expand
from lowerkit.graph.inline import inline, settle
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.passes.registry import make
from lowerkit.pipeline import Lowering
from lowerkit.plan import Choice, Plan
from lowerkit.reference import Reference
from lowerkit.targets.he.packing.network import least_depth
from lowerkit.targets.he.reading import read
from lowerkit.targets.he.target import HeTarget
from lowerkit.validation.validate import validate

SOFTMAX = "(float[1,4,8] x) => (float[1,4,8] y) { h = MatMul (x, w) y = Softmax <axis = -1> (h) }"
NORM = (
    "(float[1,4,8] x) => (float[1,4,8] y) { h = MatMul (x, w) y = LayerNormalization <axis = -1> (h, g, b) }"
)
POOL = (
    "(float[1,1,4,4] x) => (float[1,1,2,2] y) { y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }"
)
EYE = np.eye(8, dtype=np.float32)


def model_of(text: str) -> ir.Model:
    numbers = {"w": EYE, "g": np.linspace(0.5, 1.5, 8, dtype=np.float32), "b": EYE[0]}
    return parse(
        text, **{name: array for name, array in numbers.items() if f" {name})" in text or f" {name}," in text}
    )


def lowered(text: str, methods: Mapping[str, str], samples: Sequence[Mapping[str, np.ndarray]]) -> Lowering:
    target = HeTarget()
    canonical = pipeline.canonical_graph(model_of(text), target, pipeline.Stages(), methods=methods)
    return pipeline.lower(canonical, target, samples, methods=methods)


def alone(text: str, methods: Mapping[str, str], samples: Sequence[Mapping[str, np.ndarray]]) -> ir.Model:
    """The model with the methods as float operators, and nothing else replaced."""
    from lowerkit.targets.base import get_target

    cpu = get_target("cpu")
    model = pipeline.canonical_graph(model_of(text), cpu, pipeline.Stages(), methods=methods)
    observed = pipeline.calibrate_plannable(model, samples, synthetic=False)
    apply_plan(
        model, default_plan(model, cpu, observed, {**dict.fromkeys(("softmax", "norm"), "keep"), **methods})
    )
    return model


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        (SOFTMAX, {"softmax": "cgf:spread=8"}),
        (SOFTMAX, {"softmax": "cgf:order=3,spread=8"}),
        (SOFTMAX, {"softmax": "power:scale=2.0"}),
        (SOFTMAX, {"softmax": 'power:form="length-agnostic"'}),
        (SOFTMAX, {"softmax": "sigmoid"}),
        (NORM, {"norm": "poly-rsqrt"}),
        (NORM, {"norm": "batch-norm"}),
        (POOL, {"pool": "average"}),
    ],
)
def test_any_method_of_sums_and_products_reaches_encrypted_values(text: str, methods: dict[str, str]) -> None:
    """The tensor program computes what the method's operator does, up to the polynomials of what is in its body."""
    samples = uniform(model_of(text), 16)
    found = lowered(text, methods, samples)
    program, expected = read(found.model), Reference(alone(text, methods, samples))
    assert not {node.op_type for node in found.model.graph if node.domain == "lowerkit"} - HeTarget.native
    for sample in samples[:4]:
        np.testing.assert_allclose(program.run(sample)["y"], expected(sample)["y"], rtol=2e-3, atol=2e-4)


def test_cumulants_take_one_exponential_and_no_reciprocal() -> None:
    samples = uniform(model_of(SOFTMAX), 16)
    found = lowered(SOFTMAX, {"softmax": "cgf:spread=8", "exp": "interval-poly:degree=15"}, samples)
    assert [(choice.op, choice.method) for choice in found.plan.choices] == [
        ("Softmax", "cgf"),
        ("Exp", "interval-poly"),
    ]
    assert found.plan.choices[1].node == f"{found.plan.choices[0].node}/exp"
    # The matrix of x - mean(x) takes one level, the square, its sum with what is in the exponent, and the polynomial.
    assert least_depth(read(found.model)) == 7


def test_a_plan_that_is_read_back_gives_the_same_graph() -> None:
    samples = uniform(model_of(SOFTMAX), 8)
    first = lowered(SOFTMAX, {"softmax": "cgf:spread=8"}, samples)
    plan = Plan.from_toml(first.plan.to_toml())
    canonical = pipeline.canonical_graph(model_of(SOFTMAX), HeTarget(), pipeline.Stages(), plan)
    again = pipeline.lower(canonical, HeTarget(), samples, plan)
    assert again.plan.to_toml() == first.plan.to_toml()
    assert ir.serde.serialize_model(again.model) == ir.serde.serialize_model(first.model)
    assert len(again.graphs) == 2
    stale = dataclasses.replace(plan, choices=(*plan.choices, Choice("gone", "Exp", "interval-poly")))
    with pytest.raises(PlanError, match="speaks of node 'gone'"):
        pipeline.lower(canonical, HeTarget(), samples, stale)


def test_bodies_that_are_no_polynomials_are_refused_by_operator() -> None:
    samples = uniform(model_of(SOFTMAX), 4)
    found = lowered(SOFTMAX, {"softmax": "poly-exp"}, samples)
    with pytest.raises(UnsupportedError, match=r"/reducemax' \(ReduceMax\).*is no polynomial"):
        read(found.model)


def test_every_choice_is_measured_where_it_was_made() -> None:
    """The softmax against the float one, and the exponential in its body against that of the body."""
    samples = uniform(model_of(SOFTMAX), 4)
    found = lowered(SOFTMAX, {"softmax": "cgf:spread=8"}, samples)
    original = model_of(SOFTMAX)
    result = validate(
        original, found.model, Reference(found.model), samples, planned=found.plan, graphs=found.graphs
    )
    softmax, exponential = result.choices
    assert softmax.local is not None
    assert exponential.local is not None
    assert 1e-3 < softmax.local.max_abs < 0.1
    assert exponential.local.max_abs < 1e-4
    # Cumulants are nearly all of the error.
    assert result.outputs[0].error.method.max_abs == pytest.approx(softmax.local.max_abs, rel=0.05)


GUARDED = """(float[1,4] x) => (float[1,4] y) {
    hidden = Less (x, low)
    shown = Where (hidden, nothing, x)
    size = Abs (shown)
    y = Pow (size, two)
}"""


@pytest.mark.parametrize(
    ("low", "left"),
    [
        (-1e4, {"Pow"}),
        (-9.0, {"Less", "Where", "Pow"}),
        (0.5, {"Less", "Where", "Pow"}),
        (20.0, set()),
    ],
)
def test_guards_go_where_calibrated_values_are_far_from_them(low: float, left: set[str]) -> None:
    """Values are in [-1, 1]: ten times as large ones may be below -9, and none is above 20. The square has no sign."""
    numbers = {"low": np.float32(low), "nothing": np.float32(0), "two": np.float32(2)}
    model, before = parse(GUARDED, **numbers), parse(GUARDED, **numbers)
    samples = uniform(model, 8)
    settle(model, samples)
    assert {node.op_type for node in model.graph} - {"Identity"} == left
    for sample in samples:
        np.testing.assert_array_equal(Reference(model)(sample)["y"], Reference(before)(sample)["y"])


def test_inlined_nodes_are_named_after_theirs() -> None:
    model = model_of(SOFTMAX)
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    softmax.name = "weights"
    make("softmax", "cgf", {"spread": 8.0}).rewrite(model, softmax)
    assert inline(model, HeTarget.native)
    names = [node.name for node in model.graph if node.op_type != "MatMul"]
    assert len(set(names)) == len(names)
    assert all(name is not None and name.startswith("weights/") for name in names)
    assert not inline(model, HeTarget.native)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-6, 6), min_size=4, max_size=4))
def test_sums_of_centred_exponentials_are_within_their_bounds(row: list[float]) -> None:
    """At least n (Jensen), at most n exp(R^2 / 8) (Hoeffding)."""
    model = parse("(float[1,4] x) => (float[1,4] y) { y = Softmax <axis = -1> (x) }")
    expand(model, HeTarget.expands)
    sample = {"x": np.array([row], np.float32)}
    (total,) = (node.outputs[0].name or "" for node in model.graph if node.op_type == "ReduceSum")
    seen = calibrate(model, [sample], [total]).stats[total]
    width = max(row) - min(row)
    assert 4 * (1 - 1e-5) <= seen.minimum <= seen.maximum <= 4 * np.exp(width**2 / 8) * (1 + 1e-5)
    exact = np.exp(np.array(row) - max(row))
    np.testing.assert_allclose(Reference(model)(sample)["y"][0], exact / exact.sum(), rtol=1e-4, atol=1e-6)


def test_validation_tells_of_numbers_beyond_an_interval(tmp_path: Path) -> None:
    """Inputs in their range, each, whose sum no calibration sample came near to."""
    model = parse(
        "(float[1,2] x) => (float[1,1] y) { h = MatMul (x, w) y = Gelu (h) }", w=np.ones((2, 1), np.float32)
    )
    ir.save(model, tmp_path / "model.onnx")
    u = np.linspace(-1, 1, 16, dtype=np.float32)
    np.savez(tmp_path / "calibration.npz", x=np.stack([u, -u + 0.1], axis=1))
    np.savez(tmp_path / "same.npz", x=np.array([[0.9, 0.9]], np.float32))
    artifact = lowerkit.api.compile(
        tmp_path / "model.onnx",
        tmp_path / "out",
        "he",
        calibration=tmp_path / "calibration.npz",
        methods={"gelu": "interval-poly:degree=7"},
        options={"insecure_for_testing": True, "ring": 4096, "precision": 1e-2},
    )
    with pytest.warns(LowerkitWarning, match="leaves the interval of its polynomial, 1.8 times"):
        found = lowerkit.api.validate(artifact, tmp_path / "same.npz")
    assert "values reach from 1.8 to 1.8" in (found.choices[0].outside or "")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowerkitWarning)
        inside = lowerkit.api.validate(artifact, tmp_path / "calibration.npz")
    assert inside.choices[0].outside is None
