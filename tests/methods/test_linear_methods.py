"""Linear layers in few bits: bodies against float64 models, bounds, ranges, and what is refused or kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers import difference, parse
from hypothesis import given, settings
from hypothesis import strategies as st
from single import run

from lowerkit.calibrate import Calibration, calibrate
from lowerkit.errors import PlanError
from lowerkit.graph.linear import separate_biases
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.passes.quantize.base import LinearMethod, product, symmetric
from lowerkit.passes.quantize.ternary import ternary
from lowerkit.plan import Plan
from lowerkit.targets.base import get_target

NAMES = sorted(name for family, name in registry.methods() if family == "linear")
BOUNDED = [name for name in NAMES if name != "ternary"]
SIZES = (1, 7, 8, 9, 47, 48, 49)


def method(name: str, x: np.ndarray, **options: Any) -> LinearMethod:
    stats = TensorStats()
    stats.update(x)
    found = registry.method_class("linear", name).fit(stats, options)
    assert isinstance(found, LinearMethod)
    return found


def matmul(x: np.ndarray, w: np.ndarray) -> ir.Model:
    shape = ",".join(map(str, x.shape))
    out = ",".join(map(str, (*x.shape[:-1], w.shape[1])))
    return parse(f"(float[{shape}] x) => (float[{out}] y) {{ [n] y = MatMul(x, w) }}", w=w)


def after(chosen: LinearMethod, model: ir.Model) -> ir.Model:
    node = model.graph.node("n")
    assert chosen.refuses(node) is None
    chosen.rewrite(model, node)
    return model


def close(found: np.ndarray, wanted: np.ndarray, chosen: LinearMethod, x: np.ndarray, w: np.ndarray) -> None:
    """Equal up to float32 rounding; a tie in float32 may fall to the other side, and moves one x by one step."""
    step = 0.0 if chosen.name.startswith("weight") else np.abs(x).max() * (2 / 255)
    if chosen.name == "bf16":
        step = np.abs(x).max() * 2.0**-8
    elif chosen.name == "int8-static":
        step = chosen.scale  # type: ignore[attr-defined]
    allowed = step * np.abs(w).max() + 1e-5 * np.abs(wanted).max() + 1e-30
    assert np.abs(found - wanted).max() <= allowed
    # Ties are rare: nearly all are equal.
    assert np.mean(np.abs(found - wanted) > 1e-5 * np.abs(wanted).max() + 1e-30) < 0.2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_matmul_is_its_float64_model(name: str, size: int) -> None:
    rng = np.random.default_rng(size)
    depth = 64 if name == "weight-int4" else size
    x = rng.normal(size=(3, 5, depth)).astype(np.float32) + np.float32(0.3)
    w = (rng.normal(size=(depth, size)) * rng.uniform(0.01, 3, size)).astype(np.float32)
    chosen = method(name, x)
    close(run(after(chosen, matmul(x, w)), x), chosen.evaluate(x, weight=w), chosen, x, w)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_of_a_row_that_is_not_finite_is_nan(bad: float) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 9)).astype(np.float32), rng.normal(size=(9, 5)).astype(np.float32)
    spoiled = x.copy()
    spoiled[2, 5] = bad
    chosen = method("int8", x)
    got, fine = (run(after(chosen, matmul(each, w)), each) for each in (spoiled, x))
    assert np.isnan(got[2]).all()
    np.testing.assert_array_equal(got[[0, 1, 3]], fine[[0, 1, 3]])


CONVS = [
    {"pads": [0, 0, 0, 0], "strides": [1, 1], "dilations": [1, 1], "group": 1},
    {"pads": [2, 0, 1, 3], "strides": [2, 1], "dilations": [1, 2], "group": 1},
    {"pads": [1, 1, 1, 1], "strides": [1, 2], "dilations": [1, 1], "group": 3},
    {"pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], "group": 6},
]


def conv(x: np.ndarray, w: np.ndarray, attributes: dict[str, Any]) -> ir.Model:
    shape = ",".join(map(str, x.shape))
    text = ", ".join(f"{key} = {value}" for key, value in attributes.items())
    return parse(f"(float[{shape}] x) => (float[N,O,H,W] y) {{ [n] y = Conv <{text}> (x, w) }}", w=w)


@pytest.mark.parametrize("name", [n for n in NAMES if "Conv" in registry.method_class("linear", n).functions])
@pytest.mark.parametrize("attributes", CONVS)
def test_conv_is_its_float64_model(name: str, attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, 9, 7)).astype(np.float32)
    x[1] *= 30  # each sample has its own step
    w = rng.normal(size=(6, 6 // attributes["group"], 3, 2)).astype(np.float32)
    model = conv(x, w, attributes)
    exact = run(model, x)
    assert np.abs(product(x, w.astype(np.float64), attributes) - exact).max() < 1e-4 * np.abs(exact).max()
    chosen = method(name, x)
    close(run(after(chosen, model), x), chosen.evaluate(x, weight=w, **attributes), chosen, x, w)


@pytest.mark.parametrize("name", BOUNDED)
@given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(1, 9),
    spread=st.floats(0, 30),
    offset=st.floats(-3, 3),
)
@settings(max_examples=50, deadline=None)
def test_bounds_hold(name: str, seed: int, depth: int, spread: float, offset: float) -> None:
    """For operands of one size, and of sizes that differ by up to 2^30."""
    rng = np.random.default_rng(seed)
    depth = 32 if name == "weight-int4" else depth
    x = (rng.normal(size=(2, depth)) + offset) * 2.0 ** rng.uniform(-spread, 0, (2, depth))
    w = rng.normal(size=(depth, 3)) * 2.0 ** rng.uniform(-spread, 0, (depth, 3))
    x, w = (a.astype(np.float32).astype(np.float64) for a in (x, w))
    chosen = method(name, x)
    bound = chosen.bound()
    assert bound is not None
    most = depth * np.abs(x).max() * np.abs(w).max(axis=0)
    error = np.abs(chosen.evaluate(x, weight=w) - x @ w)
    assert (error <= bound.value * (1 + 1e-5) * most).all()  # scales are rounded to float32


def test_weights_use_all_steps_and_zeros_stay() -> None:
    w = np.array([[0.5, 0.0, -3e38, 1e-40], [-1.0, 0.0, 3e38, 0.0]], np.float32).astype(np.float64)
    integers, scale = symmetric(w)
    assert np.abs(integers).max(axis=0).tolist() == [127, 0, 127, 0]
    assert scale.dtype == np.float32
    assert (scale > 0).all()
    assert np.isfinite(scale).all()
    signs, sizes = ternary(np.array([[2.0, 0.0], [-2.0, 0.0], [2.0, 0.0]]))
    assert signs.T.tolist() == [[1, -1, 1], [0, 0, 0]]
    assert sizes[0] == 2


def test_ternary_is_as_near_to_normal_weights_as_the_paper_says() -> None:
    w = np.random.default_rng(0).normal(size=(4096, 4))
    signs, scale = ternary(w)
    assert np.linalg.norm(w - signs * scale) / np.linalg.norm(w) == pytest.approx(0.44, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_zeros_and_constants(name: str) -> None:
    depth = 32
    x = np.stack([np.zeros(depth), np.full(depth, 5.0), np.full(depth, -5.0)]).astype(np.float32)
    w = np.random.default_rng(0).normal(size=(depth, 4)).astype(np.float32)
    w[:, 1] = 0
    found = run(after(method(name, x), matmul(x, w)), x)
    assert np.isfinite(found).all()
    assert not found[0].any()
    assert not found[:, 1].any()
    if name != "ternary":
        assert np.abs(found - x @ w).max() <= 0.08 * depth * 5 * np.abs(w).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_finite_are_refused_by_name(name: str, bad: float) -> None:
    w = np.ones((32, 2), np.float32)
    w[3, 1] = bad
    model = matmul(np.ones((1, 32), np.float32), w)
    stats = TensorStats()
    stats.update(np.ones(4))
    with pytest.raises(PlanError, match=r"node 'n' \(MatMul\).*1 are NaN or infinite"):
        default_plan(model, get_target("cpu"), Calibration({"x": stats}), {"linear": name})


def test_weights_that_overflow_bfloat16_are_refused() -> None:
    model = matmul(np.ones((1, 2), np.float32), np.full((2, 2), 3.4e38, np.float32))
    with pytest.raises(PlanError, match="weights that bfloat16 holds"):
        default_plan(model, get_target("cpu"), Calibration(), {"linear": "bf16"})


GRAPH = """(float[2,64] x) => (float[2,8] y) {
    [shared_a] a = MatMul(x, w)
    [shared_b] b = MatMul(a, w)
    [gemm] c = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (b, v, bias)
    [left] l = MatMul(square, c)
    [two] y = MatMul(l, l2)
    }"""


def graph() -> ir.Model:
    rng = np.random.default_rng(0)
    sizes = {"w": (64, 64), "v": (48, 64), "bias": (48,), "square": (2, 2), "l2": (48, 8)}
    return parse(GRAPH, **{name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()})


def test_plans_speak_of_linear_layers_on_request_alone() -> None:
    model = graph()
    assert default_plan(model, get_target("cpu"), Calibration()).choices == ()
    separate_biases(model, lambda node: True)
    asked = default_plan(model, get_target("cpu"), Calibration(), {"linear": "keep"})
    assert [(c.node, c.op, c.method) for c in asked.choices] == [
        (name, "MatMul", "keep") for name in ("shared_a", "shared_b", "gemm", "two")
    ]


def test_what_a_method_has_nothing_for_is_kept_with_a_reason() -> None:
    model = graph()
    separate_biases(model, lambda node: True)
    plan = default_plan(model, get_target("cpu"), Calibration(), {"linear": "weight-int4"})
    found = {choice.node: (choice.method, choice.reason) for choice in plan.choices}
    assert found["gemm"] == ("weight-int4", "")
    assert found["two"] == ("keep", "weight-int4 needs rows in groups of 32, and the matrix has 48")
    assert Plan.from_toml(plan.to_toml()) == plan


def test_biases_apart_are_the_same_function() -> None:
    before, model = graph(), graph()
    separate_biases(model, lambda node: True)
    assert "Gemm" not in {node.op_type for node in model.graph}
    assert model.graph.node("gemm").op_type == "MatMul"
    assert difference(before, model) < 1e-5


def test_nodes_that_share_a_weight_share_its_bytes() -> None:
    model = graph()
    separate_biases(model, lambda node: True)
    apply_plan(model, default_plan(model, get_target("cpu"), Calibration(), {"linear": "int8"}))
    first, second = model.graph.node("shared_a"), model.graph.node("shared_b")
    assert first.inputs[1] is second.inputs[1]
    assert first.inputs[1].dtype == ir.DataType.INT8
    assert "w" not in model.graph.initializers
    # Batched matrices, and constants on the left, are no linear layers.
    assert model.graph.node("left").op_type == "MatMul"
    assert difference(graph(), model) < 0.05


def test_ranges() -> None:
    """Values with heavy tails: the least squared error is by the rule that looks for it."""
    x = np.random.default_rng(0).standard_t(3, size=40_000).astype(np.float32)
    stats = TensorStats()
    stats.update(x * 2)
    errors, widths = {}, {}
    for rule in ("min-max", "percentile", "mse"):
        found = method("int8-static", x, range=rule)
        scale, zero = found.scale, found.zero_point  # type: ignore[attr-defined]
        quantised = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
        errors[rule], widths[rule] = np.mean((quantised - x) ** 2), 255 * scale
        # Ranges that clip by choice are never left.
        assert (found.outside(stats) is None) == (rule != "min-max")
    assert widths["min-max"] == pytest.approx(x.max() - x.min())
    assert max(widths["percentile"], widths["mse"]) < 0.95 * widths["min-max"]
    assert errors["mse"] < 1.02 * errors["percentile"]
    assert errors["mse"] < errors["min-max"]


def test_static_needs_a_calibrated_scale() -> None:
    model = matmul(np.ones((1, 4), np.float32), np.ones((4, 2), np.float32))
    with pytest.raises(PlanError, match="needs the scale of its input"):
        default_plan(model, get_target("cpu"), Calibration(), {"linear": "int8-static"})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("weight-int4", {"group": 16}, "group must be 32, 64 or 128, not 16"),
        ("int8-static", {"range": "widest"}, "range must be one of min-max, percentile, mse, not 'widest'"),
        ("int8-static", {"zero_point": 256}, "zero_point must be an integer from 0 to 255, not 256"),
        ("int8-static", {"scale": float("inf")}, "scale must be a positive number"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        registry.make("linear", name, options)


def test_repquant_gives_static_products_its_quantiser() -> None:
    """Channels of a LayerNorm that differ by 1000 in size: one scale for all loses the small ones."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e-2, 10, 16).astype(np.float32)
    text = "(float[8,16] x) => (float[8,6] y) { [norm] h = LayerNormalization(x, g, b) [n] y = MatMul(h, w) }"
    weights = {"g": sizes, "b": sizes / 2, "w": rng.normal(size=(16, 6)).astype(np.float32) / sizes[:, None]}
    x = rng.normal(size=(8, 16)).astype(np.float32)

    def error(**methods: str) -> tuple[float, ir.Model]:
        model = parse(text, **weights)
        calibration = calibrate(model, [{"x": x}], ["x", "h"])
        apply_plan(model, default_plan(model, get_target("cpu"), calibration, methods))
        return difference(parse(text, **weights), model, {"x": x}), model

    alone, _ = error(linear="int8-static")
    together, model = error(linear="int8-static", norm="repquant")
    assert together < 0.02 < 5 * together < alone
    norm, node = model.graph.node("norm"), model.graph.node("n")
    scale = node.inputs[1].const_value
    assert scale is not None
    assert scale.numpy() == np.float32(norm.attributes["output_scale"].as_float())
