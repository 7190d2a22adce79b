"""Attention methods: bodies, what they approximate, what they refuse, and how one asks for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers import parse
from hypothesis import given, settings
from hypothesis import strategies as st
from single import body, model_of

import lowerkit
from lowerkit import api
from lowerkit.errors import PlanError
from lowerkit.passes import registry
from lowerkit.passes.attention.base import LinearAttention
from lowerkit.passes.attention.cosine import CosineAttentionMethod
from lowerkit.passes.attention.favor import FavorAttentionMethod, _projection
from lowerkit.passes.attention.soft import SoftAttentionMethod
from lowerkit.plan import Plan

METHODS: list[LinearAttention] = [
    CosineAttentionMethod(),
    FavorAttentionMethod(),
    FavorAttentionMethod(features=5, seed=3),
    SoftAttentionMethod(),
    SoftAttentionMethod(landmarks=3),
]
CONVEX = METHODS[:3]
each_method = pytest.mark.parametrize("method", METHODS, ids=str)
each_convex = pytest.mark.parametrize("method", CONVEX, ids=str)
nan, inf = np.nan, np.inf


def heads(tokens: int, keys: int, size: int, scale: float = 1.0, seed: int = 0) -> list[np.ndarray]:
    """Q, K and V of two samples with three heads."""
    rng = np.random.default_rng(seed)
    shapes = [(2, 3, tokens, size), (2, 3, keys, size), (2, 3, keys, size + 1)]
    return [(rng.normal(size=shape) * scale).astype(np.float32) for shape in shapes]


def square(keys: int, size: int, scale: float = 1.0, seed: int = 0) -> list[np.ndarray]:
    """The same with values of the queries' size and number, the shape that `body` checks."""
    q, k, _ = heads(keys, keys, size, scale, seed)
    return [q, k, heads(keys, keys, size, 1.0, seed + 1)[0]]


@each_method
@settings(max_examples=20)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(-6, 1), st.floats(0, 1), st.integers(0, 9))
def test_body_is_the_model_up_to_rounding(
    method: LinearAttention, tokens: int, size: int, exponent: int, scale: float, seed: int
) -> None:
    q, k, v = square(tokens, size, 2.0**exponent, seed)
    y = body(method, "Attention", q, {"scale": scale}, [k, v])
    expected = method.evaluate(q, k=k, v=v, scale=scale)
    # Inverses of kernels with near landmarks are large, and cancel in the product.
    tolerance = 2e-4 if isinstance(method, SoftAttentionMethod) else 2e-5
    assert np.abs(y - expected).max() <= tolerance * max(1, np.abs(expected).max())


@each_convex
@settings(max_examples=20)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 12), st.floats(0.1, 30), st.integers(0, 99))
def test_outputs_are_convex_combinations(
    method: LinearAttention, tokens: int, keys: int, size: int, scale: float, seed: int
) -> None:
    q, k, v = heads(tokens, keys, size, scale, seed)
    q[..., 0], k[..., 0] = np.abs(q[..., 0]) + 0.1, np.abs(k[..., 0]) + 0.1  # weights that are not all 0
    weights = method.evaluate(q, k=k, v=np.broadcast_to(np.eye(keys), (2, 3, keys, keys)))
    assert weights.min() >= 0
    # A sum of small weights by cosine may be below its least divisor.
    assert weights.sum(axis=-1).max() <= 1 + 1e-9
    if not isinstance(method, CosineAttentionMethod) or keys == tokens:
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-3)
    np.testing.assert_allclose(weights @ v.astype(float), method.evaluate(q, k=k, v=v), rtol=1e-9, atol=1e-9)


def test_cosine_weights_are_those_of_the_paper() -> None:
    q, k, v = heads(7, 11, 5)
    i, j = np.arange(7)[:, None], np.arange(11)[None]
    scores = (
        np.maximum(q, 0) @ np.maximum(k, 0).swapaxes(2, 3).astype(float) * np.cos(np.pi / 2 * (i - j) / 11)
    )
    expected = scores / np.maximum(scores.sum(axis=-1, keepdims=True), 1e-6) @ v
    np.testing.assert_allclose(CosineAttentionMethod().evaluate(q, k=k, v=v), expected, rtol=1e-5, atol=1e-7)


def test_cosine_of_queries_that_meet_no_key_is_zero() -> None:
    q, k, v = square(4, 3)
    q[:] = -np.abs(q)
    assert not body(CosineAttentionMethod(), "Attention", q, {}, [k, v]).any()


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    scores = q.astype(float) @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: np.ndarray = weights / weights.sum(axis=-1, keepdims=True) @ v
    return result


def test_favor_nears_softmax_attention_with_more_features() -> None:
    q, k, v = heads(12, 12, 8, 0.7)
    expected = softmax_attention(q, k, v)
    errors = [
        np.mean(
            [np.abs(FavorAttentionMethod(m, s).evaluate(q, k=k, v=v) - expected).mean() for s in range(8)]
        )
        for m in (8, 128, 2048)
    ]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
    assert errors[2] < 0.02


def test_favor_projection_is_orthogonal_in_blocks_and_fixed() -> None:
    projection = _projection(8, 20, 0).astype(np.float64)
    for block in (projection[:, :8], projection[:, 8:16], projection[:, 16:]):
        gram = block.T @ block
        np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-5)
    np.testing.assert_array_equal(projection, _projection(8, 20, 0))
    assert np.abs(projection - _projection(8, 20, 1)).max() > 0.1
    lengths = np.linalg.norm(_projection(16, 4096, 0), axis=0) ** 2
    assert abs(lengths.mean() - 16) < 0.5


def test_soft_is_its_kernel_where_every_token_is_a_landmark() -> None:
    q, _, v = heads(10, 10, 6, 2.0)
    distance = ((q[..., :, None, :] - q[..., None, :, :]).astype(float) ** 2).sum(axis=-1)
    expected = np.exp(-distance / 2 / np.sqrt(6)) @ v
    found = SoftAttentionMethod(landmarks=10).evaluate(q, k=q, v=v)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_soft_of_landmarks_that_are_all_alike() -> None:
    """Where the start of the paper would end at 0."""
    q = np.ones((1, 1, 8, 4), np.float32)
    found = body(SoftAttentionMethod(landmarks=4), "Attention", q, {}, [q, q])
    np.testing.assert_allclose(found, 8, rtol=1e-4)  # a sum of 8 values with weight 1


@each_method
def test_scales_and_long_rows(method: LinearAttention) -> None:
    q, k, v = (x[:1, :1] for x in square(1, 4))
    assert np.isfinite(body(method, "Attention", q, {"scale": 0.0}, [k, v])).all()
    long = np.random.default_rng(1).normal(size=(1, 1, 65_536, 2)).astype(np.float32)
    y = body(method, "Attention", long, {}, [long, long]) if method.name != "soft" else long
    assert np.isfinite(y).all()
    large = 1e4 * np.eye(4, dtype=np.float32)[None, None]
    assert np.isfinite(body(method, "Attention", large, {}, [large, large])).all()


@each_convex
def test_nan_of_a_query_stays_in_its_token_and_of_a_key_in_its_head(method: LinearAttention) -> None:
    q, k, v = square(5, 3)
    q[0, 0, 1, 0] = nan
    k[1, 1, 2, 0] = nan
    for y in (body(method, "Attention", q, {}, [k, v]), method.evaluate(q, k=k, v=v)):
        bad = np.isnan(y).all(axis=-1)
        assert bad[0, 0].tolist() == [False, True, False, False, False]
        assert bad[1, 1].all()
        assert bad.sum() == 6
        assert np.isnan(y).sum() == 18


def refusal(method: LinearAttention, attributes: dict[str, Any], *inputs: np.ndarray) -> str | None:
    return method.refuses(model_of("Attention", inputs[0], attributes, inputs[1:]).graph.node("n"))


@each_method
def test_what_has_no_weights_to_act_on_is_refused(method: LinearAttention) -> None:
    q, k, v = square(5, 4)
    mask = np.zeros((5, 5), np.float32)
    assert refusal(method, {}, q, k, v) is None
    assert refusal(method, {}, q, k, v, mask) == "cannot apply a mask: it computes no weights"
    assert refusal(method, {"is_causal": 1}, q, k, v) == "cannot be causal: it computes no weights"
    assert refusal(method, {"softcap": 2.0}, q, k, v) == "has no attribute softcap"
    flat = [x[:, 0] for x in (q, k, v)]
    words = "needs queries, keys and values of static shape [batch, heads, tokens, size]"
    assert refusal(method, {"q_num_heads": 1, "kv_num_heads": 1}, *flat) == words
    words = "needs as many heads of keys and values as of queries"
    assert refusal(method, {}, q, k[:, :1], v[:, :1]) == words


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("favor", {"features": 0}, "features must be an integer from 1 to 4096, not 0"),
        ("favor", {"seed": -1}, "seed must be an integer from 0 to 4294967295, not -1"),
        ("soft", {"landmarks": 2.5}, r"landmarks must be an integer from 1 to 1024, not 2\.5"),
        ("cosine", {"features": 1}, "has no option 'features'"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        registry.make("attention", name, options)


def two_layers(folder: Path, mask: str = "") -> Path:
    """A file with two attentions, [a] and [b], the second perhaps with a mask."""
    model = parse(
        f"""(float[1,2,6,8] x, float[6,6] mask) => (float[1,2,6,8] y) {{
        [a] a = Attention(x, x, x) [s] s = Add(a, x) [b] b = Attention(s, x, s{mask}) [y] y = Add(b, mask0) }}""",
        mask0=np.ones((1, 8), np.float32),
    )
    ir.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def choices(plan: Plan) -> list[tuple[str, str]]:
    return [(choice.op, choice.method) for choice in plan.choices]


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("name", ["cosine", "favor", "soft"])
def test_attention_that_was_asked_for_is_compiled(name: str, tmp_path: Path) -> None:
    """Compiling compares the code with onnxruntime; validating makes the graphs anew."""
    model = two_layers(tmp_path)
    artifact = lowerkit.compile(model, tmp_path / "out", methods={"attention": name})
    assert choices(artifact.plan) == [("Attention", name)] * 2
    lowered = artifact.model("lowered.onnx")
    assert not {"Attention", "Softmax"} & {node.op_type for node in lowered.graph}
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(2, 2, 6, 8)), "mask": np.zeros((12, 6))}
    np.savez(tmp_path / "d.npz", **{key: array.astype(np.float32) for key, array in data.items()})
    result = lowerkit.validate(artifact, tmp_path / "d.npz")
    assert [choice.contract for choice in result.choices] == ["replace", "replace"]


def test_without_asking_plans_are_as_before(tmp_path: Path) -> None:
    model = two_layers(tmp_path)
    default = api.plan(model)
    assert choices(default) == [("Softmax", "poly-exp")] * 2
    assert api.plan(model, methods={"attention": "keep"}) == default


def test_a_plan_may_name_some_and_keep_others(tmp_path: Path) -> None:
    model = two_layers(tmp_path)
    asked = api.plan(model, methods={"attention": "cosine"})
    first, second = asked.choices
    kept = dataclasses.replace(second, method="keep", options={})
    only = dataclasses.replace(asked, choices=(first,))
    both = dataclasses.replace(asked, choices=(first, kept))
    for index, plan in enumerate((only, both)):
        again = Plan.from_toml(plan.to_toml())
        artifact = lowerkit.compile(model, tmp_path / f"out{index}", plan=again)
        ops = [node.op_type for node in artifact.model("lowered.onnx").graph]
        assert (ops.count("CosineAttention"), ops.count("Softmax"), ops.count("Attention")) == (1, 1, 0)
        assert artifact.plan == again


def test_masked_attention_is_refused_by_name(tmp_path: Path) -> None:
    model = two_layers(tmp_path, ", mask")
    with pytest.raises(PlanError, match=r"node 'b'.*attention method 'cosine' cannot apply a mask"):
        lowerkit.compile(model, tmp_path / "out", methods={"attention": "cosine"})
