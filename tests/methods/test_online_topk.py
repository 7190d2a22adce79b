"""Online softmax with TopK: the values of the two operators, and their indices up to ties of rounded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import lower, top_of

import lowerkit
from lowerkit.errors import PlanError
from lowerkit.numerics.rows import softmax_rows
from lowerkit.passes.lower import apply_plan
from lowerkit.passes.softmax.online_topk import OnlineTopK
from lowerkit.plan import Choice, Plan
from lowerkit.reference import Reference

INF, NAN = np.inf, np.nan
#: Few different values, so that there are ties.
logits = st.one_of(st.integers(-3, 3).map(float), st.floats(-200, 200, width=32), st.just(-INF))
rows = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=logits)


def both(x: np.ndarray, k: int, axis: int = -1) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Before and after, in onnxruntime."""
    before = Reference(top_of(x, k, axis=axis))({"x": x})
    return before, Reference(lower(OnlineTopK(), top_of(x, k, axis=axis)))({"x": x})


def check(x: np.ndarray, values: np.ndarray, indices: np.ndarray, rtol: float) -> None:
    """Values are the largest weights, and indices those of the largest logits, the lower of equal ones first."""
    exact, k = softmax_rows(x), values.shape[-1]
    order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    nan = np.isnan(exact).any(axis=-1)
    np.testing.assert_array_equal(indices[~nan], order[~nan])
    np.testing.assert_allclose(values, np.take_along_axis(exact, order, -1), rtol=rtol, atol=1e-37)


@given(rows, st.data())
def test_it_is_softmax_and_topk(x: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, x.shape[-1]))
    before, after = both(x, k)
    check(x, after["y"], after["i"], 3e-5)
    check(x, *OnlineTopK().select(x, k), 1e-12)
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-6, atol=1e-37)
    # Indices differ where the weights are equal in float32 and the logits are not.
    weights = np.take_along_axis(softmax_rows(x), after["i"], -1)
    others = np.take_along_axis(softmax_rows(x), before["i"], -1)
    np.testing.assert_allclose(weights, others, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("axis", [0, 1, -1, -3])
@pytest.mark.parametrize("k", [1, 4])
def test_any_axis(axis: int, k: int) -> None:
    x = np.random.default_rng(0).normal(0, 5, (4, 5, 6)).astype(np.float32)
    before, after = both(x, k, axis)
    np.testing.assert_array_equal(after["i"], before["i"])
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-6)


def test_ugly_rows_are_those_of_onnxruntime() -> None:
    x = np.array(
        [
            [NAN, 1, 2, 3],
            [1, 2, 3, NAN],
            [INF, 1, 2, 3],
            [-INF] * 4,
            [2, -INF, -INF, 1],
            [1e4, 0, -1e4, 1e4],
            [3e38, -3e38, 0, 1],
            [5, 5, 5, 5],
        ],
        np.float32,
    )
    for k in (1, 2, 4):
        before, after = both(x, k)
        np.testing.assert_allclose(after["y"], before["y"], rtol=1e-6)
        kept = [0, 1, 2, 3, 4, 7]  # in the others weights are 0 of which the logits differ
        np.testing.assert_array_equal(after["i"][kept], before["i"][kept])
        np.testing.assert_array_equal(np.isnan(OnlineTopK().evaluate(x, k=k)), np.isnan(before["y"]))
    x = np.array([[[7.0]], [[-3e38]]], np.float32)
    _, after = both(x, 1)
    np.testing.assert_array_equal(after["y"], np.ones_like(x))
    np.testing.assert_array_equal(after["i"], np.zeros(x.shape, np.int64))


def test_weights_that_round_alike_go_by_their_logits() -> None:
    x = np.array([[-300, -200, 0]], np.float32)
    before, after = both(x, 3)
    np.testing.assert_array_equal(after["y"], before["y"])
    assert before["i"].tolist() == [[2, 0, 1]]
    assert after["i"].tolist() == [[2, 1, 0]]


HEAD = '<ir_version: 11, opset_import: ["" : 23]> g (float[3,4] x, int64[1] n) => '
TAIL = "<int64[1] k = {2}>"
REFUSED = {
    "no TopK": ("(float[3,4] y) { [n] s = Softmax(x) y = Neg(s) }", "used by a TopK, not by Neg"),
    "an output": (
        "(float[3,2] y, float[3,4] s) %s { [n] s = Softmax(x) y, i = TopK(s, k) }",
        "used by one TopK and nothing else",
    ),
    "another use": (
        "(float[3,2] y, float[3,4] z) %s { [n] s = Softmax(x) y, i = TopK(s, k) z = Neg(s) }",
        "used by one TopK and nothing else",
    ),
    "two": (
        "(float[3,2] y, float[3,2] z) %s { [n] s = Softmax(x) y, i = TopK(s, k) z, j = TopK(s, k) }",
        "used by one TopK and nothing else",
    ),
    "another axis": (
        "(float[2,4] y) %s { [n] s = Softmax(x) y, i = TopK<axis = 0>(s, k) }",
        "a TopK along its own axis, 1, not 0",
    ),
    "smallest": ("(float[3,2] y) %s { [n] s = Softmax(x) y, i = TopK<largest = 0>(s, k) }", "largest=1"),
    "unsorted": ("(float[3,2] y) %s { [n] s = Softmax(x) y, i = TopK<sorted = 0>(s, k) }", "sorted=1"),
    "varying k": ("(float[3,m] y) { [n] s = Softmax(x) y, i = TopK(s, n) }", "a constant k"),
    "no k": (
        "(float[3,0] y) <int64[1] k = {0}> { [n] s = Softmax(x) y, i = TopK(s, k) }",
        "from 1 to 4, not 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    text, words = REFUSED[case]
    proto = onnx.parser.parse_model(HEAD + text.replace("%s", TAIL))
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    with pytest.raises(PlanError, match=f"node 'n' .*softmax method 'online-topk' needs .*{words}"):
        apply_plan(model, Plan("cpu", (Choice("n", "Softmax", "online-topk"),)))


@pytest.mark.parametrize("outputs", [("y", "i"), ("y",), ("i",)])
def test_both_nodes_go_and_what_is_asked_for_stays(outputs: tuple[str, ...]) -> None:
    x = np.random.default_rng(1).normal(0, 3, (3, 9)).astype(np.float32)
    model = top_of(x, 4)
    for value in list(model.graph.outputs):
        if value.name not in outputs:
            model.graph.outputs.remove(value)
    before = Reference(model.clone())({"x": x})
    lower(OnlineTopK(), model)
    (node,) = model.graph
    assert (node.name, node.op_type, len(node.outputs)) == ("n", "OnlineSoftmaxTopK", 2)
    assert [value.name for value in model.graph.outputs] == list(outputs)
    after = Reference(model)({"x": x})
    for name in outputs:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6)


def test_end_to_end_on_the_cpu_target(tmp_path: Path) -> None:
    """A classifier with its five best classes: values, indices, report and choices."""
    rng = np.random.default_rng(2)
    x, k = rng.normal(0, 1, (8, 16)).astype(np.float32), 5
    weights = onnx.numpy_helper.from_array(rng.normal(0, 1, (16, 40)).astype(np.float32), "w")
    proto = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 23]> g (float[8,16] x) => (float[8,5] best, int64[8,5] which) '
        "<int64[1] k = {5}> { z = MatMul(x, w) s = Softmax(z) best, which = TopK(s, k) }"
    )
    proto.graph.initializer.append(weights)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    np.savez(tmp_path / "data.npz", x=x)
    artifact = lowerkit.compile(
        path, tmp_path / "out", calibration=tmp_path / "data.npz", methods={"softmax": "online-topk"}
    )
    got = artifact.run({"x": x})
    logits = x @ onnx.numpy_helper.to_array(weights)
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(got["which"], order)
    np.testing.assert_allclose(got["best"], np.take_along_axis(softmax_rows(logits), order, -1), rtol=2e-5)
    validation = lowerkit.validate(artifact, tmp_path / "data.npz")
    (choice,) = validation.choices
    assert choice.method == "online-topk"
    assert choice.local is not None
    assert choice.local.max_abs < 1e-6
    assert [layer.value for layer in validation.layers] == ["z", "best"]
