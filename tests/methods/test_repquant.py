"""RepQuant: the same function after the products, and one quantiser that gives the integers of one per channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import operators, parse
from hypothesis import given
from hypothesis import strategies as st
from onnx_ir.passes.common import InlinePass

import lowerkit
from benchmarks.models import MODELS
from lowerkit.calibrate import Calibration
from lowerkit.errors import PlanError
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.passes.norm.repquant import SPREAD, RepQuant
from lowerkit.plan import Choice, Plan, options_of
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target

C = 8
OPS = ["LayerNormalization", "RMSNormalization"]
each_op = pytest.mark.parametrize("op", OPS)
#: Gains and biases that differ between channels by a factor of 100.
GAIN = np.geomspace(0.05, 5, C).astype(np.float32) * np.where(np.arange(C) % 3, 1, -1).astype(np.float32)
BIAS = (GAIN * np.linspace(-2, 2, C)).astype(np.float32)
HEAD = f"(float[2,5,{C}] x, float[5,3] c)"
NORM = {
    "LayerNormalization": "[n] s = LayerNormalization(x, gain, bias)",
    "RMSNormalization": "[n] s = RMSNormalization(x, gain)",
}
#: What reads s, and the operators that are left besides the norm.
READERS = {
    "one": ("(float[2,5,3] y) { %s y = MatMul(s, w) }", {"MatMul": 1, "Add": 1}),
    "added": ("(float[2,5,3] y) { %s m = MatMul(s, w) y = Add(m, b) }", {"MatMul": 1, "Add": 1}),
    "added before": ("(float[2,5,3] y) { %s m = MatMul(s, w) y = Add(one, m) }", {"MatMul": 1, "Add": 1}),
    "added rows": ("(float[2,5,3] y) { %s m = MatMul(s, w) y = Add(m, rows) }", {"MatMul": 1, "Add": 1}),
    "added values": (
        "(float[2,5,3] y) { %s m = MatMul(s, w) y = Add(m, c) }",
        {"MatMul": 1, "Add": 2},
    ),
    "product is an output": (
        "(float[2,5,3] y, float[2,5,3] m) { %s m = MatMul(s, w) y = Add(m, b) }",
        {"MatMul": 1, "Add": 2},
    ),
    "three of one weight": (
        "(float[2,5,3] y, float[2,5,3] z, float[2,5,3] v) "
        "{ %s y = MatMul(s, w) p = MatMul(s, w) z = Add(p, b) v = MatMul(s, v_w) }",
        {"MatMul": 3, "Add": 3},
    ),
    "a weight used elsewhere": (
        f"(float[2,5,3] y, float[2,5,3] z, float[{C},3] v) "
        "{ %s y = MatMul(s, w) z = MatMul(x, w) v = Neg(w) }",
        {"MatMul": 2, "Add": 1, "Neg": 1},
    ),
    "gemm": (
        "(float[5,3] y) { %s r = ReduceMean<keepdims = 0>(s, first) y = Gemm(r, w) }",
        {"ReduceMean": 1, "Gemm": 1},
    ),
    "gemm with everything": (
        "(float[5,3] y) { %s r = Gather<axis = 0>(s, one_index) "
        "y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(r, wt, b) }",
        {"Gather": 1, "Gemm": 1},
    ),
    "gemm without beta": (
        "(float[5,3] y) { %s r = Gather<axis = 0>(s, one_index) y = Gemm<beta = 0.0>(r, w, b) }",
        {"Gather": 1, "Gemm": 1},
    ),
    "gemm with values": (
        "(float[5,3] y) { %s r = Gather<axis = 0>(s, one_index) y = Gemm<transB = 1>(r, wt, c) }",
        {"Gather": 1, "Gemm": 1, "Add": 1},
    ),
    "carried": (
        "(float[10,3] y, float[5,2,3] z) { %s r = Reshape(s, flat) y = MatMul(r, w) "
        "t = Transpose<perm = [1, 0, 2]>(s) z = MatMul(t, w) }",
        {"Reshape": 1, "Transpose": 1, "MatMul": 2, "Add": 2},
    ),
}


def model_of(op: str, readers: str) -> ir.Model:
    w, v = np.random.default_rng(0).normal(size=(2, C, 3)).astype(np.float32)
    constants = {
        "gain": GAIN, "bias": BIAS, "w": w, "v_w": v, "wt": w.T.copy(), "b": np.ones(3, np.float32),
        "one": np.float32([1.5]), "rows": np.float32([[1], [2], [3], [4], [5]]), "first": np.array([0]),
        "one_index": np.array(1), "flat": np.array([10, C]),
    }  # fmt: skip
    text = f"{HEAD} => {readers.replace('%s', NORM[op])}"
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(text, **{name: array for name, array in constants.items() if name in words})


def samples(count: int = 1, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    spread = np.linspace(1, 3, C)
    return [
        {
            "x": rng.normal(0.5, spread, (2, 5, C)).astype(np.float32),
            "c": rng.normal(size=(5, 3)).astype(np.float32),
        }
        for _ in range(count)
    ]


def fitted(op: str, model: ir.Model | None = None, count: int = 4, **options: object) -> RepQuant:
    stats = TensorStats()
    for sample in samples(count):
        stats.update(sample["x"])
    node = (model or model_of(op, READERS["one"][0])).graph.node("n")
    method = RepQuant.fit_node(node, stats, options)
    assert isinstance(method, RepQuant)
    return method


def rewritten(method: RepQuant, model: ir.Model) -> ir.Model:
    assert method.refuses(model.graph.node("n")) is None
    method.rewrite(model, model.graph.node("n"))
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    return model


def integers(y: np.ndarray, scale: np.ndarray | float, zero: np.ndarray | int, bits: int = 8) -> np.ndarray:
    result: np.ndarray = np.clip(np.rint(y / scale) + zero, 0, 2**bits - 1)
    return result


@each_op
@pytest.mark.parametrize("case", READERS)
def test_products_give_what_they_gave(op: str, case: str) -> None:
    text, left = READERS[case]
    model = model_of(op, text)
    data, reference = samples(3, 5), Reference(model)
    method = fitted(op, model)
    assert max(method.scale) > 20 * min(method.scale)
    rewritten(method, model)
    counts = operators(model)
    if op == "LayerNormalization":
        assert {name: n for name, n in counts.items() if "Norm" not in name} == left
    lowered = Reference(model)
    for sample in data:
        after = lowered(sample)
        for name, expected in reference(sample).items():
            np.testing.assert_allclose(after[name], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_weights_go_and_those_used_elsewhere_stay() -> None:
    model = rewritten(fitted("LayerNormalization"), model_of("LayerNormalization", READERS["added"][0]))
    assert set(model.graph.initializers) == {"s/scale", "s/bias", "m/weight", "y/bias"}
    shared = model_of("LayerNormalization", READERS["a weight used elsewhere"][0])
    w = shared.graph.initializers["w"].const_value.numpy().copy()  # type: ignore[union-attr]
    rewritten(fitted("LayerNormalization"), shared)
    np.testing.assert_array_equal(shared.graph.initializers["w"].const_value.numpy(), w)  # type: ignore[union-attr]


def test_what_has_changed_has_another_name() -> None:
    model = rewritten(fitted("LayerNormalization"), model_of("LayerNormalization", READERS["added"][0]))
    assert [node.outputs[0].name for node in model.graph] == ["s/scaled", "m/product", "y"]
    model = rewritten(fitted("RMSNormalization"), model_of("RMSNormalization", READERS["added"][0]))
    assert [node.outputs[0].name for node in model.graph] == ["s/scaled", "m", "y"]


@each_op
@given(seed=st.integers(0, 2**16), bits=st.integers(2, 12))
def test_integers_are_those_of_a_quantiser_per_channel(op: str, seed: int, bits: int) -> None:
    method = fitted(op, bits=bits)
    (sample,) = samples(1, seed)
    weights = {"scale": GAIN.astype(float), "bias": BIAS.astype(float) if op == OPS[0] else 0.0}
    changed = method.evaluate(sample["x"], rms=op == OPS[1], **weights)
    y = method.restored(changed)
    per_channel = y / np.array(method.scale) + np.array(method.zero_point)
    scale, zero = method.common
    per_layer = changed / scale + zero
    np.testing.assert_allclose(per_layer, per_channel, rtol=0, atol=1e-9 * 2**bits)


@each_op
def test_one_quantiser_errs_less_than_on_the_plain_output(op: str) -> None:
    """The point of the method: 8 bits for channels whose sizes differ a hundredfold."""
    model, data = model_of(op, READERS["one"][0]), samples(50)

    def outputs(name: str) -> np.ndarray:
        reference = Reference(model, [name])
        return np.concatenate([reference(sample)[name].reshape(-1, C) for sample in data])

    method, y = fitted(op, model, count=50), outputs("s")
    rewritten(method, model)
    changed, size = outputs("s/scaled"), np.abs(y).max(axis=0)
    assert np.all(np.abs(method.restored(changed) - y) <= 3e-6 * size)
    step = float(max(y.max(), 0) - min(y.min(), 0)) / 255
    zero = round(-float(min(y.min(), 0)) / step)
    usual = (integers(y, step, zero) - zero) * step
    scale, zero = method.common
    scaled = method.restored((integers(changed, scale, zero) - zero) * scale)
    worst = [float((np.abs(found - y) / size).max()) for found in (usual, scaled)]
    assert worst[0] > 0.2
    assert worst[1] < 0.006


def test_channels_of_zeros_and_extreme_ratios() -> None:
    gain, bias = GAIN.copy(), BIAS.copy()
    gain[0], bias[0] = 0, 0  # always 0
    gain[1], bias[1] = 0, 3  # constant
    gain[2], bias[2] = 1e-12, 0
    gain[3], bias[3] = 1e6, -1e6
    model = model_of("LayerNormalization", READERS["added"][0])
    for name, array in (("gain", gain), ("bias", bias)):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    method = fitted("LayerNormalization", model)
    assert max(method.scale) / min(method.scale) == SPREAD
    before = Reference(model)(samples()[0])["y"]
    after = Reference(rewritten(method, model))(samples()[0])["y"]
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-6 * np.abs(before).max())
    # Nothing but zeros: any scale will do.
    model = model_of("RMSNormalization", READERS["one"][0])
    model.graph.initializers["gain"].const_value = ir.tensor(np.zeros(C, np.float32), name="gain")
    assert set(fitted("RMSNormalization", model).scale) == {1.0}


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_any_axis(axis: int) -> None:
    x = samples()[0]["x"]
    shape = x.shape[axis:]
    gain, bias, w = (
        np.random.default_rng(2).normal(size=s).astype(np.float32) for s in (shape, shape, (C, 3))
    )
    norm = f"[n] s = LayerNormalization<axis = {axis}>(x, gain, bias)"
    text = f"(float[2,5,{C}] x) => (float[2,5,3] y) {{ {norm} y = MatMul(s, w) }}"
    model = parse(text, gain=gain, bias=bias, w=w)
    before = Reference(model, ["s"])({"x": x})
    method = fitted("LayerNormalization", model, count=1)
    low, high = before["s"].reshape(-1, C).min(axis=0), before["s"].reshape(-1, C).max(axis=0)
    width = (np.maximum(high, 0) - np.minimum(low, 0)) / 255
    np.testing.assert_allclose(method.scale, width, rtol=1e-5)
    after = Reference(rewritten(method, model))({"x": x})["y"]
    np.testing.assert_allclose(after, before["y"], rtol=0, atol=2e-6 * np.abs(before["y"]).max())


def test_without_bias() -> None:
    text = (
        f"(float[2,5,{C}] x) => (float[2,5,3] y) {{ [n] s = LayerNormalization(x, gain) y = MatMul(s, w) }}"
    )
    model = parse(text, gain=GAIN, w=np.eye(C, 3, dtype=np.float32))
    x = {"x": samples()[0]["x"]}
    before = Reference(model)(x)["y"]
    after = Reference(rewritten(fitted("LayerNormalization", model), model))(x)["y"]
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-6 * np.abs(before).max())


def test_not_a_number_goes_through() -> None:
    x = samples()[0]["x"]
    x[0, 0, 0], x[1, 2, 3] = np.nan, np.inf
    model = model_of("LayerNormalization", READERS["one"][0])
    before = Reference(model)({"x": x, "c": samples()[0]["c"]})["y"]
    after = Reference(rewritten(fitted("LayerNormalization"), model))({"x": x, "c": samples()[0]["c"]})["y"]
    np.testing.assert_array_equal(np.isnan(after), np.isnan(before))
    assert np.isnan(after[[0, 1], [0, 2]]).all()


REFUSED = {
    "an output": (f"(float[2,5,3] y, float[2,5,{C}] s) {{ %s y = MatMul(s, w) }}", "'s' is an output of it"),
    "a sum": (f"(float[2,5,{C}] y) {{ %s [res] y = Add(s, x) }}", r"not to go to node 'res' \(Add\)"),
    "a sum too": (
        f"(float[2,5,3] y, float[2,5,{C}] z) {{ %s y = MatMul(s, w) [res] z = Add(s, x) }}",
        "to be the first operand of products with a constant matrix, not to go to node 'res'",
    ),
    "a product of values": (
        "(float[2,5,5] y) { %s t = Transpose<perm = [0, 2, 1]>(x) [p] y = MatMul(s, t) }",
        r"node 'p' \(MatMul\)",
    ),
    "the second operand": (f"(float[2,5,{C}] y) {{ %s [p] y = MatMul(q, s) }}", r"node 'p' \(MatMul\)"),
    "a transposed operand": (
        "(float[10,3] y) { %s r = Reshape(s, turned) [p] y = Gemm<transA = 1>(r, w) }",
        r"node '.*' \(Reshape\)",
    ),
    "a mean over channels": (
        "(float[2,5,1] y) { %s [p] y = ReduceMean(s, last) }",
        r"node 'p' \(ReduceMean\)",
    ),
    "channels moved": (
        f"(float[2,{C},5] y) {{ %s [p] y = Transpose<perm = [0, 2, 1]>(s) }}",
        r"node 'p' \(Transpose\)",
    ),
    "channels chosen": ("(float[2,5] y) { %s [p] y = Gather<axis = 2>(s, one_index) }", r"node 'p' \(Gather\)"),
    "carried to an output": (
        f"(float[10,{C}] y) {{ %s [p] y = Reshape(s, flat) }}",
        "'y' is an output of it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    text, words = REFUSED[case]
    extra = {"q": np.ones((5, 5), np.float32), "last": np.array([-1]), "turned": np.array([C, 10])}
    constants = {"gain": GAIN, "bias": BIAS, "w": np.ones((C, 3), np.float32), "one_index": np.array(1),
                 "flat": np.array([10, C]), **extra}  # fmt: skip
    norm = NORM["LayerNormalization"]
    model = parse(f"{HEAD} => {text.replace('%s', norm)}", **constants)
    plan = Plan("cpu", (Choice("n", "LayerNormalization", "repquant", options_of(fitted(OPS[0]))),))
    with pytest.raises(PlanError, match=rf"node 'n' .*norm method 'repquant' needs its output .*{words}"):
        apply_plan(model, plan)


def test_other_refusals() -> None:
    method = fitted(OPS[0])
    norm = "[n] s = LayerNormalization(x, g)"
    text = f"(float[2,5,{C}] x, float[{C}] g) => (float[2,5,3] y) {{ {norm} y = MatMul(s, w) }}"
    varying = parse(text, w=np.ones((C, 3), np.float32)).graph.node("n")
    assert method.refuses(varying) == "needs a constant scale and bias"
    rms = model_of("RMSNormalization", READERS["one"][0]).graph.node("n")
    assert method.refuses(rms) == "needs equal zero points for an RMSNormalization, which has no bias"
    short = RepQuant([1.0] * 3, [0] * 3)
    assert short.refuses(rms) == f"has the scale of 3 channels, and the input has {C}"


@each_op
def test_without_statistics_it_is_refused(op: str) -> None:
    model = model_of(op, READERS["one"][0])
    for calibration in (Calibration(), Calibration({"x": TensorStats()})):
        with pytest.raises(PlanError, match="needs the scale and zero point of every channel: calibrate"):
            default_plan(model, get_target("cpu"), calibration, {"norm": "repquant"})


@each_op
def test_calibrated_numbers_survive_a_plan(op: str) -> None:
    model = model_of(op, READERS["one"][0])
    calibration = Calibration({"x": TensorStats()})
    for sample in samples(4):
        calibration.stats["x"].update(sample["x"])
    plan = default_plan(model, get_target("cpu"), calibration, {"norm": "repquant:bits=6"})
    assert Plan.from_toml(plan.to_toml()) == plan
    again = registry.make("norm", "repquant", Plan.from_toml(plan.to_toml()).choices[0].options)
    assert again == fitted(op, bits=6)
    apply_plan(model, plan)
    node = model.graph.node("n")
    scale, zero = fitted(op, bits=6).common
    assert node.attributes.get_float("output_scale", 0) == pytest.approx(scale)
    assert (node.attributes.get_int("output_zero_point", 0), node.attributes.get_int("bits", 0)) == (zero, 6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 1}, "bits must be an integer from 2 to 16, not 1"),
        ({"scale": [1.0]}, "scale and zero_point must be of one length, not 1 and 0"),
        ({"scale": [0.0], "zero_point": [0]}, "scale must be a list of numbers from 1e-20"),
        ({"scale": [1.0], "zero_point": [256]}, "zero_point must be a list of integers from 0 to 255"),
        ({"scale": [1.0], "zero_point": [0.5]}, "zero_point must be a list of integers"),
        ({"scale": [1.0, 1e-9], "zero_point": [0, 0]}, r"by more than 2\^20"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        registry.make("norm", "repquant", options)


def test_its_body_is_the_standard_norm() -> None:
    model = rewritten(fitted(OPS[0]), model_of(OPS[0], READERS["added"][0]))
    InlinePass()(model)
    assert operators(model) == {"LayerNormalization": 1, "MatMul": 1, "Add": 1}


def test_a_vision_transformer_compiles_with_it(tmp_path: Path) -> None:
    """Its norms are read by one and three products with a bias, and by a mean before the last product."""
    vit = MODELS["vit"]
    data = vit.write_samples(tmp_path / "data.npz")
    artifact = lowerkit.compile(
        vit.path(),
        tmp_path / "out",
        shape=vit.shapes,
        calibration=data,
        methods={"norm": "repquant", "softmax": "keep", "gelu": "keep"},
    )
    chosen = [choice for choice in artifact.plan.choices if choice.op == "LayerNormalization"]
    assert [choice.method for choice in chosen] == ["repquant"] * 5
    validation = lowerkit.validate(artifact, data)
    local = [choice.local for choice in validation.choices if choice.method == "repquant"]
    assert all(error is not None and error.relative < 1e-6 for error in local)
    (output,) = validation.outputs
    assert output.error.method.relative < 1e-5
    assert not [layer for layer in validation.layers if layer.error.method.relative > 1e-5]
