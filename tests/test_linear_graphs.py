"""Mixed precision, plans of linear layers that are followed again, and models that are quantised already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import difference, parse

import lowerkit
from lowerkit import api, pipeline
from lowerkit.errors import LowerkitWarning, PlanError
from lowerkit.graph.canonicalise import canonicalise
from lowerkit.passes import registry
from lowerkit.passes.quantize.mixed import Mixed
from lowerkit.passes.quantize.qdq import use_integers
from lowerkit.pipeline import Lowering, Stages
from lowerkit.plan import Plan
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target
from lowerkit.validation.distil import distilled_samples
from lowerkit.validation.rounding import rounding_noise

RNG = np.random.default_rng(0)
SAMPLES = [{"x": RNG.normal(size=(4, 32)).astype(np.float32)} for _ in range(3)]
NATIVE = frozenset({"MatMulInt8Static", "ConvInt8Static"})


def network() -> ir.Model:
    """Three layers; the second reads values of which a few are 100 times as large as the others."""
    text = """(float[4,32] x) => (float[4,6] y) {
        [first] a = Gemm (x, w1, b1)
        r = Relu(a)
        s = Mul(r, sizes)
        [second] b = MatMul(s, w2)
        t = Tanh(b)
        [third] y = Gemm <transB = 1> (t, w3, b3)
    }"""
    rng = np.random.default_rng(1)
    sizes = np.ones(64, np.float32)
    sizes[:2] = 100
    w2 = rng.normal(size=(64, 16)) / 8 / np.maximum(sizes, 1)[:, None]
    weights = {"w1": rng.normal(size=(32, 64)), "b1": rng.normal(size=64), "sizes": sizes, "w2": w2}
    weights |= {"w3": rng.normal(size=(6, 16)), "b3": rng.normal(size=6)}
    return parse(text, **{name: np.asarray(a, np.float32) for name, a in weights.items()})


def lowered(model: ir.Model, plan: Plan | None = None, **methods: str) -> Lowering:
    target = get_target("cpu")
    canonical = pipeline.canonical_graph(model, target, Stages(), plan, methods)
    return pipeline.lower(canonical, target, SAMPLES, plan, methods=methods or None)


def chosen(found: Lowering) -> dict[str, str]:
    return {choice.node: choice.method for choice in found.plan.choices if choice.op == "MatMul"}


def relative(model: ir.Model, found: Lowering) -> float:
    before, after = Reference(model), Reference(found.model)
    pairs = [(before(sample)["y"], after(sample)["y"]) for sample in SAMPLES]
    y, z = (np.stack([pair[i] for pair in pairs]).astype(np.float64) for i in (0, 1))
    return float(np.linalg.norm(z - y) / np.linalg.norm(y))


def test_the_layer_that_breaks_stays_wide_and_says_why() -> None:
    model = network()
    plain = lowered(model, linear="int8-static")
    assert relative(model, plain) > 0.1
    found = lowered(model, linear="mixed:narrow=int8-static,budget=0.03")
    assert chosen(found) == {"first": "int8-static", "second": "bf16", "third": "int8-static"}
    assert relative(model, found) <= 0.03
    reasons = {choice.node: choice.reason for choice in found.plan.choices}
    assert reasons["second"].startswith("int8-static here alone moves an output by ")
    assert not reasons["first"]
    assert lowered(model, linear="mixed:narrow=int8-static,budget=0.03").plan == found.plan


@pytest.mark.parametrize(
    ("budget", "expected"), [(0.9, {"int8-static"}), (0.01, {"bf16", "int8-static"}), (1e-7, {"keep"})]
)
def test_every_budget_is_kept(budget: float, expected: set[str]) -> None:
    model = network()
    found = lowered(model, linear=f"mixed:narrow=int8-static,budget={budget}")
    assert set(chosen(found).values()) == expected
    assert relative(model, found) <= budget + 1e-6


def test_a_saved_plan_is_followed_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    found = lowered(model, linear="mixed:narrow=int8-static,budget=0.03")
    saved = Plan.from_toml(found.plan.to_toml())
    monkeypatch.setattr(Mixed, "refine", None)
    again = lowered(model, saved)
    assert again.plan == found.plan
    first, second = (ir.serde.serialize_model(each.model) for each in (found, again))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mixed:budget=0", "budget must be a number between 0 and 1"),
        ("mixed:narrow=int9", "no linear method 'int9'"),
        ("mixed:colour=red", "Its options: narrow, wide, budget, samples"),
        ("mixed:samples=0", "samples must be a positive integer"),
    ],
)
def test_bad_requests_are_refused(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        lowered(network(), linear=text)


def test_methods_run_on_the_cpu_target(tmp_path: Path) -> None:
    """Convolutions, also in groups, and products in one model, by an edited plan, against onnxruntime."""
    text = """(float[2,3,6,5] x) => (float[2,8] y) {
        [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        [c2] b = Conv <strides = [2, 1], group = 2> (a, w2)
        [c3] c = Conv <pads = [1, 1, 1, 1]> (b, w3)
        f = Flatten (c)
        [m1] g = MatMul (f, v1)
        [m2] y = Gemm (g, v2, b2)
    }"""
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (6, 2, 3, 2), "w3": (4, 6, 3, 3), "v1": (32, 32)}
    shapes |= {"v2": (32, 8), "b2": (8,)}
    rng = np.random.default_rng(0)
    weights = {
        name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    path = tmp_path / "model.onnx"
    onnx.save(ir.serde.serialize_model(parse(text, **weights)), path)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(8, 3, 6, 5)).astype(np.float32))
    methods = ["bf16", "int8", "int8-static", "weight-int4", "ternary"]
    plan = api.plan(path, calibration=tmp_path / "x.npz", methods={"linear": "int8-static"})
    options = {"weight-int4": {"group": 32}}
    choices = tuple(
        choice if method == "int8-static" else replace(choice, method=method, options=options.get(method, {}))
        for choice, method in zip(plan.choices, methods, strict=True)
    )
    made = lowerkit.compile(
        path, tmp_path / "out", plan=replace(plan, choices=choices), calibration=tmp_path / "x.npz"
    )
    assert [choice.method for choice in made.plan.choices] == methods
    x = np.load(tmp_path / "x.npz")["x"][:2]
    (found,) = made.run({"x": x}).values()
    (wanted,) = Reference(made.model("lowered.onnx"))({"x": x}).values()
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_convolutions_that_gain_nothing_are_spared() -> None:
    text = """(float[1,4,9,9] x) => (float[1,4,3,3] y) {
        [long] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        [short] b = Conv (a, w2)
        [channels] y = Conv <group = 4> (b, w3)
    }"""
    shapes = {"w1": (4, 4, 3, 3), "w2": (4, 4, 1, 1), "w3": (4, 1, 7, 7)}
    model = parse(text, **{name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    for name in ("int8", "int8-static", "bf16"):
        spared = {node.name: registry.make("linear", name, {}).spares(node) for node in model.graph}
        assert spared == {
            "long": None,
            "short": "gains nothing where a sum is one of 4 products",
            "channels": "gains nothing where a sum is one of 49 products",
        }


QDQ = """(float[2,3,6,5] x) => (float[2,7] y) {
    xq = QuantizeLinear (x, sx, zx)
    xd = DequantizeLinear (xq, sx, zx)
    wd = DequantizeLinear <axis = 0> (w, sw, zw)
    bd = DequantizeLinear <axis = 0> (b, sb)
    [conv] a = Conv <pads = [1, 0, 0, 1], strides = [2, 1]> (xd, wd, bd)
    r = Relu (a)
    f = Flatten (r)
    fq = QuantizeLinear (f, sf, zf)
    fd = DequantizeLinear (fq, sf, zf)
    vd = DequantizeLinear (v, sv, zv)
    [gemm] g = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (fd, vd, c)
    gq = QuantizeLinear (g, sf, zf)
    gd = DequantizeLinear (gq, sf, zf)
    ud = DequantizeLinear <axis = 1> (u, su)
    [matmul] m = MatMul (gd, ud)
    mq = QuantizeLinear (m, sf, zf)
    y = DequantizeLinear (mq, sf, zf)
    }"""


def quantised(**changed: np.ndarray) -> ir.Model:
    """Signed and unsigned activations, per-tensor and per-channel weights, an int32 and a float bias."""
    rng = np.random.default_rng(0)

    def signed(*shape: int) -> np.ndarray:
        return rng.integers(-127, 128, shape).astype(np.int8)

    arrays: dict[str, Any] = {
        "sx": np.float32(0.02),
        "zx": np.int8(-3),
        "w": signed(4, 3, 2, 2),
        "sw": rng.uniform(0.001, 0.01, 4).astype(np.float32),
        "zw": np.zeros(4, np.int8),
        "b": rng.integers(-500, 500, 4).astype(np.int32),
        "sb": np.full(4, 1e-3, np.float32),
        "sf": np.float32(0.01),
        "zf": np.uint8(100),
        "v": rng.integers(60, 190, (9, 60)).astype(np.uint8),
        "sv": np.float32(0.004),
        "zv": np.uint8(128),
        "c": rng.normal(size=9).astype(np.float32),
        "u": signed(9, 7),
        "su": rng.uniform(0.001, 0.01, 7).astype(np.float32),
    } | changed
    return canonicalise(parse(QDQ, **{name: np.asarray(a) for name, a in arrays.items()}))


def test_quantised_models_keep_their_integers() -> None:
    before = quantised()
    model = before.clone()
    use_integers(model, NATIVE)
    kinds = {node.name: node.op_type for node in model.graph}
    assert (kinds["conv"], kinds["gemm"]) == ("ConvInt8Static", "MatMulInt8Static")
    assert kinds["matmul"] == "MatMulInt8Static"
    assert sum(op == "QuantizeLinear" for op in kinds.values()) == 1  # the output's own
    assert model.graph.node("gemm").inputs[3].dtype == ir.DataType.INT8
    # In float, where nothing falls on a tie, the two agree to rounding; then the last quantiser hides that.
    assert difference(before, model) < 1e-6
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({"zv": np.uint8(10)}, {"gemm"}),  # 190 - 10 is no signed byte
        (
            {"sx": np.full(3, 0.02, np.float32), "zx": np.zeros(3, np.int8)},
            {"conv"},
        ),  # a scale per channel of x
        ({"zw": np.full(4, 1, np.int8)}, {"conv"}),  # -127 - 1 is one; but -128 - 1 is not
    ],
)
def test_what_does_not_fit_stays(changed: dict[str, np.ndarray], left: set[str]) -> None:
    if "zw" in changed:
        changed["w"] = np.full((4, 3, 2, 2), -128, np.int8)
    before = quantised(**changed)
    model = before.clone()
    use_integers(model, NATIVE)
    assert {node.name for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")} == left
    assert difference(before, model) < 1e-6


def test_targets_without_the_operators_keep_the_graph() -> None:
    model = quantised()
    use_integers(model, frozenset({"MatMulInt8Static"}))
    assert {node.op_type for node in model.graph if node.name in ("conv", "gemm")} == {
        "Conv",
        "MatMulInt8Static",
    }


@pytest.mark.slow
def test_quantised_models_of_onnxruntime_are_taken(tmp_path: Path) -> None:
    """A file by onnxruntime's own tool, whose float sums differ from integers by rounding alone."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Data(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(SAMPLES)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    onnx.save(ir.serde.serialize_model(network()), tmp_path / "float.onnx")
    quantize_static(
        str(tmp_path / "float.onnx"), str(tmp_path / "q.onnx"), Data(), QuantFormat.QDQ, per_channel=True
    )
    before = pipeline.canonical_graph(lowerkit.load(tmp_path / "q.onnx"), get_target("cpu"), Stages())
    model = before.clone()
    use_integers(model, NATIVE)
    assert sum(node.op_type == "MatMulInt8Static" for node in model.graph) == 3
    for sample in SAMPLES:
        # A sum on a tie of the next quantiser may fall to the other side.
        assert difference(before, model, sample) < 0.01


def trained() -> ir.Model:
    """A convolution and two normalisations, which hold the statistics of smooth images around 3 and -1."""
    text = """(float[1,2,16,16] x) => (float[1,4,1,1] y) {
        n = BatchNormalization (x, one, zero, mean0, variance0)
        c = Conv <pads = [2, 2, 2, 2]> (n, w)
        m = BatchNormalization (c, scale, shift, mean1, variance1)
        r = Relu (m)
        d = Conv (r, v)
        y = GlobalAveragePool (d)
    }"""
    rng = np.random.default_rng(0)
    arrays = {"one": np.ones(2), "zero": np.zeros(2), "scale": np.ones(4), "shift": np.zeros(4)}
    arrays |= {"w": rng.normal(size=(4, 2, 5, 5)), "v": rng.normal(size=(4, 4, 1, 1))}
    arrays |= {"mean0": np.array([3, -1]), "variance0": np.array([0.25, 4.0])}
    statistics = {"mean1": np.zeros(4), "variance1": np.ones(4)}
    weights = {name: np.asarray(a, np.float32) for name, a in (arrays | statistics).items()}
    noise = rng.normal(size=(32, 2, 18, 18))
    smooth = sum(noise[:, :, i : i + 16, j : j + 16] for i in range(3) for j in range(3)) / 3
    images = smooth * np.sqrt([0.25, 4.0])[:, None, None] + np.array([3.0, -1.0])[:, None, None]
    probe = Reference(parse(text, **weights), ["c"])
    seen = np.concatenate([probe({"x": x[None].astype(np.float32)})["c"] for x in images])
    weights["mean1"], weights["variance1"] = seen.mean(axis=(0, 2, 3)), seen.var(axis=(0, 2, 3))
    return parse(text, **weights)


def test_inputs_are_distilled_from_batch_normalization() -> None:
    samples = distilled_samples(trained(), 4, seed=0)
    assert samples is not None
    x = np.concatenate([sample["x"] for sample in samples]).astype(np.float64)
    assert np.abs(x.mean(axis=(0, 2, 3)) - [3, -1]).max() < 0.4
    assert np.abs(np.log(x.std(axis=(0, 2, 3)) / [0.5, 2])).max() < 0.3
    beside = np.corrcoef(x[..., :-1].ravel() - 3, x[..., 1:].ravel() - 3)[0, 1]
    assert beside > 0.5  # smooth, as the images were
    again = distilled_samples(trained(), 4, seed=0)
    assert again is not None
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(samples, again, strict=True))
    assert distilled_samples(network(), 4, seed=0) is None


def test_choices_that_need_data_get_distilled_inputs(tmp_path: Path) -> None:
    onnx.save(ir.serde.serialize_model(trained()), tmp_path / "model.onnx")
    with pytest.warns(LowerkitWarning, match="made up to fit its BatchNormalization"):
        plan = api.plan(tmp_path / "model.onnx", methods={"linear": "int8-static"})
    # The image's own range: what noise around 0 has none of.
    first = plan.choices[0].options
    assert (255 - first["zero_point"]) * first["scale"] > 2
    with pytest.warns(LowerkitWarning, match="come from synthetic inputs"):
        api.plan(tmp_path / "model.onnx", methods={"linear": "int8"})


def test_rounding_moves_graphs_with_steps_and_no_others() -> None:
    """Sums on the ties of a coarse quantiser fall to either side; without it the same sums hardly move."""
    text = "(float[4,32] x) => (float[4,8] y) {{ s = MatMul(x, w) {rounding} y = MatMul({of}, v) }}"
    rng = np.random.default_rng(0)
    # Every sum is a whole number and a half, from terms that rounding changes.
    w = np.tile(rng.normal(size=(32, 1)), (1, 8)).astype(np.float32)
    x = rng.normal(size=(4, 32))
    x[:, 0] += (np.floor(x @ w[:, 0]) + 0.5 - x @ w[:, 0]) / w[0, 0]
    sample, v = {"x": x.astype(np.float32)}, np.eye(8, dtype=np.float32)
    smooth = parse(text.format(rounding="", of="s"), w=w, v=v)
    stepped = parse(text.format(rounding="r = Round(s)", of="r"), w=w, v=v)
    (calm,), (moved,) = (rounding_noise(model, [sample]).values() for model in (smooth, stepped))
    assert 0 < calm < 1e-4
    assert moved > 0.05
