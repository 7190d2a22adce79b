"""Attention as one kernel of the cpu target, and products merged for it, against float64 and onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lowerkit.graph.expand import expand
from lowerkit.graph.load import load_model
from lowerkit.passes import registry
from lowerkit.reference import Reference
from lowerkit.targets.cpu.fuse_attention import NAME, fuse_attention
from lowerkit.targets.cpu.merge_products import merge_products
from lowerkit.targets.cpu.target import CpuTarget

MASKED = np.float32(-np.inf)


def attention(
    path: Path, shapes: dict[str, tuple[int, ...]], mask: np.dtype | None = None, **attributes: object
) -> ir.Model:
    """One Attention on q, k, v (and a mask m) of the given shapes, expanded as the cpu target wants it."""
    kinds = dict.fromkeys(shapes, onnx.TensorProto.FLOAT)
    if mask is not None:
        kinds["m"] = onnx.helper.np_dtype_to_tensor_dtype(mask)
    inputs = [onnx.helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in shapes.items()]
    node = onnx.helper.make_node("Attention", list(shapes), ["y"], name="attention", **attributes)
    q, v = shapes["q"], shapes["v"]
    group = int(attributes.get("q_num_heads", 1)) // int(attributes.get("kv_num_heads", 1))  # type: ignore[call-overload]
    shape = (*q[:-1], v[-1] * group)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph([node], "g", inputs, [output])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10), path
    )
    model = load_model(path)
    expand(model, CpuTarget.expands)
    return model


def compiled(model: ir.Model, inputs: dict[str, np.ndarray], directory: Path) -> np.ndarray:
    directory.mkdir(exist_ok=True)
    target = CpuTarget()
    target.emit(model, {}, directory)
    (y,) = target.open(directory, {"threads": 2})(inputs).values()
    return y


def operators(model: ir.Model) -> list[str]:
    fuse_attention(model)
    merge_products(model)
    return [node.op_type for node in model.graph]


def exact(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, mask: np.ndarray | float = 0.0
) -> np.ndarray:
    """softmax(scale q k' + mask) v in float64, on [batch, heads, tokens, channels]."""
    with np.errstate(invalid="ignore"):
        scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) * scale + mask
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return (weights / weights.sum(axis=-1, keepdims=True)) @ v.astype(np.float64)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


#: batch, heads, heads of keys, queries, keys, channels, channels of values. The last has two blocks of keys.
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 1, 7, 9, 5, 3),
    (1, 4, 2, 8, 47, 16, 9),
    (2, 2, 2, 49, 48, 8, 16),
    (1, 12, 12, 13, 49, 32, 32),
    (1, 1, 1, 101, 17, 24, 40),
    (1, 2, 1, 5, 1031, 4, 7),
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("layout", ["by heads", "by tokens"])
def test_attention_of_any_size(sizes: tuple[int, ...], layout: str, tmp_path: Path) -> None:
    batch, heads, kv, queries, keys, size, width = sizes
    q, k = normal(batch, heads, queries, size) * 3, normal(batch, kv, keys, size, seed=1)
    v, m = normal(batch, kv, keys, width, seed=2), normal(queries, keys, seed=3)
    expected = exact(q, k.repeat(heads // kv, 1), v.repeat(heads // kv, 1), 0.3, m)
    inputs = {"q": q, "k": k, "v": v}
    attributes: dict[str, object] = {"scale": 0.3}
    if layout == "by tokens":
        inputs = {name: x.transpose(0, 2, 1, 3).reshape(batch, x.shape[2], -1) for name, x in inputs.items()}
        attributes |= {"q_num_heads": heads, "kv_num_heads": kv}
        expected = expected.transpose(0, 2, 1, 3).reshape(batch, queries, -1)
    inputs["m"] = m
    shapes = {name: x.shape for name, x in inputs.items()}
    model = attention(tmp_path / "a.onnx", shapes, m.dtype, **attributes)
    fused = operators(model.clone())
    assert fused == [NAME] or (heads, layout) == (1, "by tokens")
    assert NAME in fused
    got = compiled(model, inputs, tmp_path / "out")
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=4e-6 * np.abs(v).max())


def test_queries_keys_and_values_may_be_one_tensor(tmp_path: Path) -> None:
    x = normal(2, 3, 49, 8)
    text = "t = Transpose <perm = [0, 1, 3, 2]> (x) s = MatMul(x, t) p = Softmax(s) y = MatMul(p, x)"
    shape = ",".join(map(str, x.shape))
    text = (
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[{shape}] x) => (float[{shape}] y) {{ {text} }}'
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "a.onnx")
    model = load_model(tmp_path / "a.onnx")
    assert operators(model.clone()) == [NAME]
    got = compiled(model, {"x": x}, tmp_path / "out")
    np.testing.assert_allclose(got, exact(x, x, x, 1.0), rtol=2e-5, atol=4e-6 * np.abs(x).max())


@pytest.mark.parametrize("keys", [12, 1100])
def test_masks_and_numbers_that_are_none(keys: int, tmp_path: Path) -> None:
    """What is hidden, infinite or NaN, in one block of keys and in two."""
    q, k, v = normal(2, 1, 9, 4), normal(2, 1, keys, 4, seed=1), normal(2, 1, keys, 5, seed=2)
    m = np.where(normal(2, 1, 9, keys, seed=3) > 0.5, MASKED, 0).astype(np.float32)
    m[0, 0, 0] = MASKED  # hidden throughout: NaN
    m[0, 0, 1, : keys - 1] = MASKED  # only the last key is seen
    m[0, 0, 2, 1:] = MASKED  # only the first
    m[0, 0, 3] = np.finfo(np.float32).min  # equal weights
    m[0, 0, 4, 3] = np.nan
    m[0, 0, 5, 2] = np.inf
    m[1, 0, :, keys // 2] = 60  # one key far above the others
    inputs = {"q": q, "k": k, "v": v, "m": m}
    model = attention(tmp_path / "a.onnx", {n: x.shape for n, x in inputs.items()}, m.dtype)
    expected = Reference(model)(inputs)["y"]
    assert np.isnan(expected[0, 0, [0, 4, 5]]).all()
    assert operators(model.clone()) == [NAME]
    got = compiled(model, inputs, tmp_path / "out")
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("keys", [11, 1100])
def test_queries_that_no_key_is_shown_to_get_zero(keys: int, tmp_path: Path) -> None:
    q, k, v = normal(1, 2, 8, 4), normal(1, 2, keys, 4, seed=1), normal(1, 2, keys, 4, seed=2)
    m = normal(1, 1, 8, keys, seed=3) > 0
    m[0, 0, 2] = m[0, 0, 7] = False
    inputs = {"q": q, "k": k, "v": v, "m": m}
    model = attention(tmp_path / "a.onnx", {n: x.shape for n, x in inputs.items()}, m.dtype)
    expected = Reference(model)(inputs)["y"]
    assert (expected[:, :, [2, 7]] == 0).all()
    assert NAME in operators(model.clone())
    np.testing.assert_allclose(compiled(model, inputs, tmp_path / "out"), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["poly-exp", "online", "two-pass", "unified-max", "relu"])
def test_softmax_methods_inside_of_attention(name: str, tmp_path: Path) -> None:
    """Those that have an exponential are fused; the others stay, and are right too."""
    inputs = {
        "q": normal(1, 2, 10, 8) * 2,
        "k": normal(1, 2, 10, 8, seed=1),
        "v": normal(1, 2, 10, 8, seed=2),
    }
    model = attention(tmp_path / "a.onnx", {n: x.shape for n, x in inputs.items()})
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    registry.make("softmax", name, {}).rewrite(model, softmax)
    expected = Reference(model)(inputs)["y"]
    assert (NAME in operators(model.clone())) == (name != "relu")
    np.testing.assert_allclose(compiled(model, inputs, tmp_path / "out"), expected, rtol=2e-5, atol=2e-6)


def test_inner_values_that_are_wanted_stay(tmp_path: Path) -> None:
    shapes = dict.fromkeys("qkv", (1, 2, 6, 8))
    model = attention(tmp_path / "a.onnx", shapes)
    for wanted in ("Softmax", "Mul"):
        tapped = model.clone()
        tapped.graph.outputs.append(next(n for n in tapped.graph if n.op_type == wanted).outputs[0])
        assert (NAME in operators(tapped)) == (wanted == "Mul")  # the scaled queries are not inside
    inputs = {name: normal(*shape, seed=len(name)) for name, shape in shapes.items()}
    probe = CpuTarget().probe(model, {}, ["y/scores"])
    scores = probe(inputs)["y/scores"]
    np.testing.assert_allclose(
        scores, inputs["q"] @ inputs["k"].swapaxes(-1, -2) / 8**0.5, rtol=1e-5, atol=1e-5
    )


def projections(
    path: Path, *, shared: bool, bias: bool, tokens: int = 9, width: int = 24, heads: int = 3
) -> ir.Model:
    """Attention on projections of x; keys and values of another tensor where they are not `shared`."""
    rng = np.random.default_rng(5)
    nodes, weights = [], []
    for name in "qkv":
        source = "x" if shared or name == "q" else "z"
        array = rng.standard_normal((width, width)).astype(np.float32) / width**0.5
        weights.append(onnx.numpy_helper.from_array(array, f"w{name}"))
        nodes.append(
            onnx.helper.make_node("MatMul", [source, f"w{name}"], [f"p{name}" if bias else name], name=name)
        )
        if bias:
            weights.append(
                onnx.numpy_helper.from_array(rng.standard_normal(width).astype(np.float32), f"b{name}")
            )
            nodes.append(onnx.helper.make_node("Add", [f"p{name}", f"b{name}"], [name], name=f"a{name}"))
    nodes.append(
        onnx.helper.make_node(
            "Attention", list("qkv"), ["y"], name="y", q_num_heads=heads, kv_num_heads=heads
        )
    )
    inputs = ["x"] if shared else ["x", "z"]
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (2, tokens, width)) for n in inputs
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        values,
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, tokens, width))],
        weights,
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10), path
    )
    model = load_model(path)
    expand(model, CpuTarget.expands)
    return model


@pytest.mark.parametrize(("shared", "count"), [(True, 1), (False, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_projections_are_merged(shared: bool, count: int, bias: bool, tmp_path: Path) -> None:
    model = projections(tmp_path / "p.onnx", shared=shared, bias=bias)
    inputs = {
        value.name or "": normal(*value.shape.numpy(), seed=7) for value in model.graph.inputs if value.shape
    }
    expected = Reference(model)(inputs)["y"]
    found = operators(model.clone())
    assert found.count("MatMul") == count
    assert found.count(NAME) == 1
    np.testing.assert_allclose(compiled(model, inputs, tmp_path / "out"), expected, rtol=2e-5, atol=5e-6)


def test_a_projection_that_something_else_reads_is_not_merged(tmp_path: Path) -> None:
    model = projections(tmp_path / "p.onnx", shared=True, bias=True)
    model.graph.outputs.append(next(node for node in model.graph if node.name == "ak").outputs[0])
    assert operators(model).count("MatMul") == 2
