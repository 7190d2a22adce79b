"""Validation: data files, the three arrows, layers, choices, task metrics and bounds."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lowerkit.artifact import TensorSpec
from lowerkit.calibrate import Calibration
from lowerkit.errors import DataError
from lowerkit.numerics.metrics import errors
from lowerkit.passes import registry
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.plan import Choice, Plan
from lowerkit.reference import Reference
from lowerkit.targets.base import Runner, get_target
from lowerkit.validation import layers as layers_module
from lowerkit.validation import measure as measure_module
from lowerkit.validation.layers import spread
from lowerkit.validation.measure import by_bytes
from lowerkit.validation.outputs import OutputMeter, meters
from lowerkit.validation.results import Validation
from lowerkit.validation.samples import Samples, read_labels, read_samples, synthetic_samples
from lowerkit.validation.validate import validate

SPECS = [TensorSpec("x", "float32", (2, 3)), TensorSpec("ids", "int64", (1, 4))]


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def good(count: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * count, 3)).astype(np.float32)
    return {"x": x, "ids": rng.integers(0, 9, (count, 4))}


class TestReadSamples:
    def test_cut_along_the_first_axis(self, tmp_path: Path) -> None:
        arrays = good(5)
        samples = read_samples(save(tmp_path / "d.npz", **arrays), SPECS)
        assert len(samples) == 5
        for i, sample in enumerate(samples):
            np.testing.assert_array_equal(sample["x"], arrays["x"][2 * i : 2 * i + 2])
            np.testing.assert_array_equal(sample["ids"], arrays["ids"][i : i + 1])

    def test_extra_axis_and_single_sample(self, tmp_path: Path) -> None:
        arrays = {"x": np.ones((4, 2, 3), np.float32), "ids": np.zeros((4, 1, 4), np.int64)}
        assert len(read_samples(save(tmp_path / "a.npz", **arrays), SPECS)) == 4
        one = {name: array[0] for name, array in arrays.items()}
        samples = read_samples(save(tmp_path / "b.npz", **one), SPECS)
        assert [sample["x"].shape for sample in samples] == [(2, 3)]

    def test_scalar_input(self, tmp_path: Path) -> None:
        samples = read_samples(
            save(tmp_path / "d.npz", s=np.arange(3, dtype=np.float32)), [TensorSpec("s", "float32", ())]
        )
        assert [float(sample["s"]) for sample in samples] == [0, 1, 2]

    def test_slices_are_samples(self, tmp_path: Path) -> None:
        samples = read_samples(save(tmp_path / "d.npz", **good(5)), SPECS)[1:3]
        assert isinstance(samples, Samples)
        assert len(list(samples)) == 2

    def test_widens_without_loss(self, tmp_path: Path) -> None:
        arrays = {"x": np.ones((2, 3), np.float16), "ids": np.ones((1, 4), np.int32)}
        sample = read_samples(save(tmp_path / "d.npz", **arrays), SPECS)[0]
        assert (sample["x"].dtype, sample["ids"].dtype) == (np.float32, np.int64)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ids": None}, "lacks input 'ids': expected 'x', 'ids', found 'x'"),
            ({"y": np.zeros(1)}, "holds 'y', which is no input: expected 'x', 'ids', found 'ids', 'x', 'y'"),
            (
                {"x": np.ones((4, 4), np.float32)},
                r"'x' has shape \[4, 4\]; it takes \[N\*2, 3\] or \[N, 2, 3\]",
            ),
            ({"x": np.ones((5, 3), np.float32)}, "'x' has 5 rows, not a multiple of the input's 2"),
            (
                {"x": np.ones((4, 3))},
                r"'x' is float64, the input is float32. Convert it .*astype\(numpy.float32",
            ),
            ({"x": np.ones((4, 3), np.uint8)}, "'x' is uint8, the input is float32"),
            ({"ids": np.ones((5, 4), np.uint64)}, "'ids' is uint64, the input is int64"),
            ({"x": np.full((4, 3), np.nan, np.float32)}, "'x' holds 12 NaN values of 12"),
            ({"x": np.ones((4, 3), np.float32)}, "disagree on the number of samples: 2 of 'x', 5 of 'ids'"),
            ({"x": np.ones((0, 3), np.float32), "ids": np.ones((0, 4), np.int64)}, "holds no samples"),
            ({"x": np.array([{}], object)}, "(?i)pickle|object"),
        ],
    )
    def test_refusals(self, tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
        arrays = {name: array for name, array in {**good(5), **change}.items() if array is not None}
        with pytest.raises(DataError, match=message) as caught:
            read_samples(save(tmp_path / "d.npz", **arrays), SPECS)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
    def test_cut_off_file(self, tmp_path: Path, kept: float) -> None:
        path = save(tmp_path / "d.npz", **good(50))
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(DataError, match=r"not an \.npz file, or is cut off"):
            read_samples(path, SPECS)

    def test_damaged_member(self, tmp_path: Path) -> None:
        path = save(tmp_path / "d.npz", **good(50))
        content = bytearray(path.read_bytes())
        content[400] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot read"):
            read_samples(path, SPECS)

    def test_not_npz(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no file"):
            read_samples(tmp_path / "none.npz", SPECS)
        np.save(tmp_path / "d.npy", np.ones(3))
        with pytest.raises(DataError, match=r"not an \.npz"):
            read_samples(tmp_path / "d.npy", SPECS)
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("x", "hello")
        with pytest.raises(DataError, match="not a numpy array"):
            read_samples(tmp_path / "d.npz", SPECS)


def test_labels(tmp_path: Path) -> None:
    labels = read_labels(save(tmp_path / "l.npz", labels=np.array([[1, 2], [0, 3]], np.uint8)))
    assert labels.dtype == np.int64
    assert labels.tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(2, int)}, "exactly one array, 'labels'; found 'y'"),
        ({"labels": np.zeros(2, int), "y": np.zeros(2, int)}, "exactly one array"),
        ({"labels": np.zeros(2)}, "is float64, not an integer array"),
        ({"labels": np.array([0, -1])}, "no class index"),
        ({"labels": np.zeros(0, int)}, "is empty"),
    ],
)
def test_label_refusals(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels(save(tmp_path / "l.npz", **arrays))


def test_synthetic_samples_fit_the_inputs() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]>
    g (int64[2,16] ids, int32[2,16] types, int64[2,16] attention_mask,
       float[2,3] x, bool[4] b, uint8[9] image)
      => (float[2,16,4] y, float[2,16,4] z) {
      wide = Cast<to=7>(types)
      y = Gather(words, ids)
      z = Gather(kinds, wide)
    }"""
    model = onnx.parser.parse_model(text)
    for name, rows in (("words", 50), ("kinds", 3)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((rows, 4), np.float32), name))
    graph = ir.serde.deserialize_model(model)
    samples = synthetic_samples(graph, 40, seed=1)
    again = synthetic_samples(graph, 40, seed=1)
    other = synthetic_samples(graph, 40, seed=2)
    stacked = {name: np.stack([s[name] for s in samples]) for name in samples[0]}
    assert (stacked["ids"].min(), stacked["ids"].max()) == (0, 49)
    assert (stacked["types"].dtype, stacked["types"].max()) == (np.int32, 2)
    mask = stacked["attention_mask"].reshape(-1, 16)
    assert (np.diff(mask, axis=1) <= 0).all()  # ones, then zeros
    assert mask.sum(axis=1).min() >= 8
    assert mask.min() == 0
    assert abs(stacked["x"].std() - 1) < 0.2
    assert set(np.unique(stacked["b"])) == {False, True}
    assert stacked["image"].max() > 200
    for a, b in zip(samples, again, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(samples[0]["x"], other[0]["x"])


def classifier(layers: int = 2) -> ir.Model:
    """`layers` times softmax attention over itself with a norm, then a pooled embedding and ten classes."""
    body, value = "", "x"
    for i in range(layers):
        body += f"""
        s{i} = MatMul({value}, k{i})
        p{i} = Softmax<axis=-1>(s{i})
        o{i} = MatMul(p{i}, v{i})
        a{i} = Add(o{i}, {value})
        h{i} = LayerNormalization<axis=-1>(a{i}, one, zero)"""
        value = f"h{i}"
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 23]>
        g (float[2,8,16] x) => (float[2,10] logits, float[2,16] embedding, int64[2] label) {{{body}
        embedding = ReduceMean<keepdims=0>({value}, axes)
        logits = MatMul(embedding, head)
        label = ArgMax<axis=-1, keepdims=0>(logits)
        }}"""
    )
    rng = np.random.default_rng(0)
    weights = {f"{kind}{i}": rng.normal(size=(16, 16)) / 2 for kind in "kv" for i in range(layers)}
    weights |= {"one": np.ones(16), "zero": np.zeros(16), "head": rng.normal(size=(16, 10))}
    constants = {name: w.astype(np.float32) for name, w in weights.items()} | {"axes": np.array([1])}
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))


class Perturbed:
    """A float model whose chosen values are off by a known constant."""

    def __init__(self, model: ir.Model, off: Mapping[str, float], taps: Sequence[str] = ()) -> None:
        self.reference, self.off = Reference(model, taps), off

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self.reference(inputs)
        return {
            name: value + np.asarray(self.off.get(name, 0), value.dtype) for name, value in results.items()
        }


KEPT = Plan("cpu", tuple(Choice(f"node_p{i}", "Softmax", "keep") for i in range(2)))


def measure(
    model: ir.Model,
    off: Mapping[str, float] = {},
    *,
    count: int = 4,
    labels: np.ndarray | None = None,
    plan: Plan = KEPT,
    lowered: ir.Model | None = None,
    run: Runner | None = None,
) -> Validation:
    after = lowered if lowered is not None else model
    return validate(
        model,
        after,
        run or Perturbed(after, off),
        synthetic_samples(model, count, 0),
        planned=plan,
        labels=labels,
        probe=lambda taps: Perturbed(after, off, taps),
    )


def test_a_known_arithmetic_error_is_found_exactly_where_it_is() -> None:
    model = classifier()
    found = measure(model, {"embedding": 0.25, "p1": 0.5})
    by_name = {output.name: output for output in found.outputs}
    total = by_name["embedding"].error.total
    assert total is not None
    assert total.max_abs == pytest.approx(0.25, abs=1e-6)
    assert total == by_name["embedding"].error.arithmetic
    assert by_name["embedding"].error.method.max_abs == 0
    assert by_name["logits"].error.total.max_abs == 0
    layers = {layer.value: layer for layer in found.layers}
    assert list(layers) == ["s0", "p0", "o0", "h0", "s1", "p1", "o1", "h1", "logits"]
    assert found.worst_layer is layers["p1"]
    assert layers["p1"].error.arithmetic.max_abs == pytest.approx(0.5, abs=1e-6)
    assert layers["p1"].error.method.max_abs == 0
    assert layers["s1"].error.total.max_abs == 0
    assert (layers["p1"].node, layers["p1"].op, layers["p1"].method) == ("node_p1", "Softmax", None)


def test_errors_merge_over_samples() -> None:
    model, samples = classifier(), synthetic_samples(classifier(), 5, 0)
    reference = Reference(model)
    whole = np.stack([reference(sample)["embedding"] for sample in samples])
    found = measure(model, {"embedding": 0.25}, count=5).outputs[1].error.total
    expected = errors(whole, whole + np.float32(0.25))
    assert found.count == expected.count == 5 * 32
    assert found.max_abs == expected.max_abs
    assert found.mean_abs == pytest.approx(expected.mean_abs)
    assert found.sqnr_db == pytest.approx(expected.sqnr_db)
    assert found.cosine == pytest.approx(expected.cosine)


def test_accuracy_and_agreement() -> None:
    model, samples = classifier(), synthetic_samples(classifier(), 10, 0)
    reference = Reference(model)
    labels = np.concatenate([reference(sample)["label"] for sample in samples])
    labels[:5] = (labels[:5] + 1) % 10

    def flip(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = reference(inputs)
        results["logits"] = results["logits"] * np.array([[1], [-1]], np.float32)  # every second row
        return results

    found = measure(model, count=10, labels=labels, run=flip)
    logits, embedding, label = found.outputs
    assert logits.agreement.rows == 20
    assert (logits.agreement.lowered, logits.agreement.artifact) == (1.0, 0.5)
    assert (logits.agreement.accuracy_original, logits.agreement.accuracy_lowered) == (0.75, 0.75)
    assert logits.agreement.accuracy_artifact < 0.6
    assert (label.agreement.artifact, label.agreement.accuracy_artifact) == (1.0, 0.75)
    assert embedding.agreement.accuracy_original is None  # labels go to the first output that they fit
    assert found.check(min_agreement=0.9) == [
        "output 'logits' agrees in 50.0000% of rows, less than 90.0000%"
    ]


def test_labels_must_fit() -> None:
    with pytest.raises(DataError, match="3 labels up to 2 fit no output over 4 samples: 'logits'"):
        measure(classifier(), labels=np.array([0, 1, 2]))
    with pytest.raises(DataError, match="up to 10 fit no output over 2 samples"):
        meters([TensorSpec("y", "float32", (1, 10))], 2, np.array([0, 10]))


def test_sequence_outputs_agree_by_step() -> None:
    meter = OutputMeter(TensorSpec("y", "float32", (1, 4, 3)), 1)
    original = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]][None]
    artifact = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]][None]
    meter.update(original, original, artifact)
    agreement = meter.result().agreement
    assert (agreement.rows, agreement.artifact) == (4, 0.5)


def test_maps_have_no_classes_along_the_last_axis() -> None:
    meter = OutputMeter(TensorSpec("y", "float32", (1, 3, 4, 4)), 1)
    value = np.ones((1, 3, 4, 4), np.float32)
    meter.update(value, value, value)
    found = meter.result()
    assert (found.agreement, found.similarity) == (None, None)
    assert found.error.total.count == 48


def test_rank_correlation_of_similarities() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 5)).astype(np.float32)

    def similarity(change: np.ndarray) -> float:
        meter = OutputMeter(TensorSpec("y", "float32", (1, 5)), 12)
        for row, changed in zip(rows, change, strict=True):
            meter.update(row[None], row[None], changed[None])
        found = meter.result().similarity
        assert found.vectors == 12
        return found.rank_correlation

    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32)
    assert similarity(3 * rows) == pytest.approx(1)
    assert similarity(rows @ rotation) == pytest.approx(1, abs=1e-3)  # cosines differ, similarities do not
    assert abs(similarity(rng.permutation(rows))) < 0.5


def test_bounds() -> None:
    found = measure(classifier(), {"logits": 0.5})
    scale = found.outputs[0].error.total.max_abs / found.outputs[0].error.total.relative
    assert found.check() == []
    assert found.check(max_error=0.5 / scale * 1.01) == []
    broken = found.check(max_error=0.5 / scale * 0.99)
    assert len(broken) == 1
    assert broken[0].startswith("output 'logits' errs by")


def test_an_agreement_that_cannot_be_measured_is_broken() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]>g (float[3] x) => (float y) { y = ReduceSum<keepdims=0>(x) }'
    )
    graph = ir.serde.deserialize_model(model)
    found = validate(graph, graph, Reference(graph), synthetic_samples(graph, 2, 0), planned=Plan("cpu", ()))
    assert found.outputs[0].agreement is None
    assert found.outputs[0].similarity is None
    assert found.check(max_error=0.1) == []
    assert "cannot be measured" in found.check(min_agreement=0.5)[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_artifact(value: float) -> None:
    found = measure(classifier(), {"logits": value})
    logits = found.outputs[0]
    assert logits.nonfinite == logits.error.total.mismatches == 4 * 20
    assert logits.error.total.relative == math.inf
    assert found.check(max_error=1e9)
    assert "80 values not finite" in found.summary()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["outputs"][0]["nonfinite"] == 80


def test_an_artifact_of_the_wrong_shape_is_refused() -> None:
    model = classifier()

    def wrong(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**Reference(model)(inputs), "logits": np.zeros((1, 10), np.float32)}

    with pytest.raises(
        DataError, match=r"shape \[1, 10\] for output 'logits', the original has shape \[2, 10\]"
    ):
        measure(model, run=wrong)


def test_no_samples() -> None:
    with pytest.raises(DataError, match="no samples"):
        measure(classifier(), count=0)


def test_taps_in_groups_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(classifier(), {"p1": 0.5})
    monkeypatch.setattr(measure_module, "TAP_BYTES", 1500)
    assert measure(classifier(), {"p1": 0.5}) == whole


def test_a_graph_runs_once_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []
    run = Reference.__call__

    def counted(reference: Reference, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = run(reference, inputs)
        ran.append(tuple(results))
        return results

    model = classifier()
    samples = synthetic_samples(model, 3, 0)
    monkeypatch.setattr(Reference, "__call__", counted)
    assert len(validate(model, model, Perturbed(model, {}), samples, planned=KEPT).layers) > 4
    assert len(ran) == 3 * 3  # original, lowered, and the artifact that stands in here


def test_results_over_samples_come_in_their_order() -> None:
    model = classifier()
    samples = synthetic_samples(model, 9, 0)
    reference = Reference(model)
    for found, sample in zip(reference.over(samples), samples, strict=True):
        for name, expected in reference(sample).items():
            np.testing.assert_array_equal(found[name], expected)
    assert list(reference.over([])) == []


def test_layers_are_capped_planned_nodes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "MAX_LAYERS", 4)
    found = measure(classifier())
    assert [layer.value for layer in found.layers] == ["s0", "p0", "p1", "logits"]
    assert found.layers_left_out == 5


def test_spread_and_groups() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread([5, 6], 4) == [5, 6]
    assert spread([5, 6], 0) == []
    assert list(by_bytes("abcde", [3, 3, 9, 1, 1], 6)) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(by_bytes("", [], 6)) == []


def test_without_layers_choices_are_still_listed() -> None:
    model = classifier()
    found = validate(
        model, model, Reference(model), synthetic_samples(model, 2, 0), planned=KEPT, layers=False
    )
    assert found.layers == ()
    assert found.layer_samples == 0
    assert [(choice.node, choice.method, choice.local) for choice in found.choices] == [
        ("node_p0", "keep", None),
        ("node_p1", "keep", None),
    ]


def test_progress_ends_at_the_total() -> None:
    model, seen = classifier(), []
    validate(
        model,
        model,
        Reference(model),
        synthetic_samples(model, 3, 0),
        planned=KEPT,
        progress=lambda *step: seen.append(step),
    )
    assert seen[-1] == ("samples", 3, 3)


def lowered_by(model: ir.Model, **methods: str) -> tuple[ir.Model, Plan]:
    plan = default_plan(model, get_target("cpu"), Calibration(), methods)
    lowered = model.clone()
    apply_plan(lowered, plan)
    return lowered, plan


@pytest.mark.parametrize(("family", "name"), [("softmax", "online"), ("softmax", "poly-exp")])
def test_local_error_is_that_of_the_choice_alone(family: str, name: str) -> None:
    model = classifier()
    lowered, plan = lowered_by(model, **{family: name, "norm": "keep"})
    found = measure(model, plan=plan, lowered=lowered, run=Reference(lowered))
    samples = synthetic_samples(model, 4, 0)
    taps = Reference(model, ["s0", "s1", "p0", "p1"])
    values = [taps(sample) for sample in samples]
    choices = {choice.node: choice for choice in found.choices}
    for i in range(2):
        choice = choices[f"node_p{i}"]
        inputs = np.stack([value[f"s{i}"] for value in values])
        exact = np.stack([value[f"p{i}"] for value in values]).astype(np.float64)
        method = registry.make(family, choice.method, choice.options)
        alone = errors(exact, method.evaluate(inputs))
        assert choice.contract == method.contract.value
        assert choice.local.count == exact.size
        assert choice.local.max_abs == pytest.approx(alone.max_abs, abs=2e-6)
        assert (choice.low, choice.high) == (inputs.min(), inputs.max())
        bound = method.bound()
        assert (choice.bound, choice.bound_kind) == (bound.value, bound.kind)
        scale = exact if bound.kind == "relative" else 1.0
        assert (np.abs(method.evaluate(inputs) - exact) <= bound.value * scale + 1e-6).all()
    kept = choices["node_h0"]
    assert (kept.method, kept.local, kept.bound) == ("keep", None, None)
    layers = {layer.value: layer for layer in found.layers}
    assert layers["p0"].method == name
    assert layers["p0"].op.startswith("lowerkit::")
    assert layers["p0"].error.method == choices["node_p0"].local  # nothing has accumulated before it


def test_canonical_graph_names_what_the_original_spells_out() -> None:
    """The original computes softmax by hand; the plan speaks of the canonical Softmax."""
    spelled = """<ir_version: 10, opset_import: ["": 23]> g (float[2,8] x) => (float[2,8] y) {
        e = Exp(x)
        axes = Constant<value_ints=[-1]>()
        t = ReduceSum<keepdims=1>(e, axes)
        y = Div(e, t)
    }"""
    named = """<ir_version: 10, opset_import: ["": 23]> g (float[2,8] x) => (float[2,8] y) {
        y = Softmax<axis=-1>(x)
    }"""
    original, canonical = (
        ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
        for text in (spelled, named)
    )
    canonical.graph.node(0).name = "softmax"
    lowered, plan = lowered_by(canonical, softmax="poly-exp")
    samples = synthetic_samples(original, 3, 0)
    found = validate(original, lowered, Reference(lowered), samples, planned=plan, graphs=(canonical,))
    assert found.choices[0].local.count == 3 * 16
    assert found.layers[0].value == "y"
    assert found.outputs[0].error.method.max_abs == pytest.approx(found.choices[0].local.max_abs, abs=1e-6)
    without = validate(original, lowered, Reference(lowered), samples, planned=plan)
    assert without.choices[0].local is None
