"""What lowerkit emits itself and how it schedules the rest, against onnxruntime and float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm
from tvm import s_tir, te
from tvm_ffi import structural_walk

from lowerkit.numerics.rows import softmax_rows
from lowerkit.passes import registry
from lowerkit.reference import Reference
from lowerkit.targets.cpu.schedules.blocks import NotApplicable
from lowerkit.targets.cpu.schedules.contraction import schedule_contraction
from lowerkit.targets.cpu.schedules.elementwise import schedule_elementwise
from lowerkit.targets.cpu.schedules.rows import schedule_rows
from lowerkit.targets.cpu.target import CpuTarget

TYPES = {np.dtype(np.float32): "float", np.dtype(np.int64): "int64", np.dtype(np.float64): "double"}


def model_of(
    body: str,
    inputs: dict[str, np.ndarray],
    outputs: dict[str, tuple[int, ...]],
    constants: dict[str, np.ndarray] | None = None,
    dtype: str = "float",
) -> ir.Model:
    """A graph with `body` between `inputs` and `outputs`; `constants` are initializers."""

    def declare(name: str, shape: tuple[int, ...], kind: str) -> str:
        return f"{kind}[{','.join(map(str, shape))}] {name}"

    given = {**inputs, **(constants or {})}
    head = ", ".join(declare(name, array.shape, TYPES[array.dtype]) for name, array in given.items())
    tail = ", ".join(declare(name, shape, dtype) for name, shape in outputs.items())
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({head}) => ({tail}) {{ {body} }}'
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for value in model.graph.outputs:
        value.shape = None  # what the graph computes, not what the text declares
    for value in list(model.graph.inputs):
        if value.name in (constants or {}):
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(constants[value.name], name=value.name)
            model.graph.register_initializer(value)
    return model


def run(model: ir.Model, inputs: dict[str, np.ndarray], directory: Path) -> dict[str, np.ndarray]:
    target = CpuTarget()
    target.emit(model, {}, directory)
    return target.open(directory, {"threads": 2})(inputs)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "depth", "width"),
    [
        (128, 64, 96),
        (1, 40, 50),
        (2, 1, 16),
        (7, 33, 17),
        (13, 20, 100),
        (5, 24, 3),
        (197, 16, 48),
        (40, 12, 665),
    ],
)
@pytest.mark.parametrize("constant", [True, False])
def test_matrix_products(rows: int, depth: int, width: int, constant: bool, tmp_path: Path) -> None:
    a, b, c = normal(2, rows, depth), normal(depth, width, seed=1), normal(width, seed=2)
    weights = {"b": b, "c": c} if constant else {}
    inputs = {"a": a} if constant else {"a": a, "b": b, "c": c}
    model = model_of(
        "p = MatMul(a, b) q = Add(p, c) r = Sigmoid(q) y = Mul(q, r)",
        inputs,
        {"y": (2, rows, width)},
        weights,
    )
    linear = a.astype(np.float64) @ b + c
    np.testing.assert_allclose(
        run(model, inputs, tmp_path)["y"], linear / (1 + np.exp(-linear)), rtol=1e-4, atol=2e-5
    )


CONVOLUTIONS = {
    # input, weight, attributes
    "1x1, whole vectors": ((1, 24, 6, 16), (40, 24, 1, 1), ""),
    "1x1, odd width": ((1, 24, 7, 7), (32, 24, 1, 1), ""),
    "1x1, odd width, odd channels": ((1, 5, 7, 7), (9, 5, 1, 1), ""),
    "3x3, padded": ((2, 8, 10, 24), (16, 8, 3, 3), "pads = [1, 1, 1, 1]"),
    "3x3, uneven padding, odd width": ((1, 8, 10, 13), (16, 8, 3, 3), "pads = [0, 1, 2, 3]"),
    "3x3, stride 2": ((1, 3, 20, 20), (16, 3, 3, 3), "pads = [1, 1, 1, 1], strides = [2, 2]"),
    "3x3, stride 2, few channels": ((1, 3, 20, 20), (10, 3, 3, 3), "pads = [1, 1, 1, 1], strides = [2, 2]"),
    "3x3, dilated": ((1, 4, 15, 15), (16, 4, 3, 3), "dilations = [2, 2]"),
    "1xk": ((1, 12, 1, 20), (16, 12, 1, 3), "pads = [0, 1, 0, 1]"),
    "by channel": ((1, 16, 9, 24), (16, 1, 5, 5), "group = 16, pads = [2, 2, 2, 2]"),
    "by channel, odd width, stride 2": ((1, 16, 9, 9), (16, 1, 3, 3), "group = 16, strides = [2, 2]"),
    "grouped": ((1, 8, 6, 6), (12, 4, 3, 3), "group = 2"),
    "1x1, odd width, half a panel": ((1, 12, 5, 5), (24, 12, 1, 1), ""),
    "1x1, odd width, a cut panel": ((1, 12, 5, 5), (72, 12, 1, 1), ""),
    "larger than its input": ((1, 4, 2, 2), (16, 4, 3, 3), "pads = [1, 1, 1, 1]"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, tmp_path: Path) -> None:
    shape, weight, attributes = CONVOLUTIONS[name]
    x, constants = normal(*shape), {"w": normal(*weight, seed=1), "b": normal(weight[0], seed=2)}
    attributes = f"<{attributes}>" if attributes else ""
    model = model_of(f"c = Conv{attributes}(x, w, b) y = Relu(c)", {"x": x}, {"y": (1, 1, 1, 1)}, constants)
    expected = Reference(model)({"x": x})["y"]
    assert (expected > 0).any()
    np.testing.assert_allclose(run(model, {"x": x}, tmp_path)["y"], expected, rtol=1e-4, atol=1e-5)


REDUCTIONS = {
    "last axis, whole vectors": ("y = ReduceMean<keepdims = 1>(x, a)", (4, 6, 32), [2]),
    "last axis, cut vectors": ("y = ReduceMean<keepdims = 0>(x, a)", (4, 6, 37), [-1]),
    "two last axes": ("y = ReduceMean<keepdims = 1>(x, a)", (2, 5, 8, 12), [2, 3]),
    "middle axis": ("y = ReduceSum<keepdims = 0>(x, a)", (3, 50, 40), [1]),
    "first axis, cut vectors": ("y = ReduceMax<keepdims = 0>(x, a)", (9, 45), [0]),
    "everything": ("y = ReduceSum<keepdims = 0>(x, a)", (6, 7, 8), [0, 1, 2]),
    "squares of differences": (
        "m = ReduceMean<keepdims = 1>(x, a) d = Sub(x, m) q = Mul(d, d) y = ReduceMean<keepdims = 0>(q, a)",
        (10, 48),
        [1],
    ),
    "softmax over channels": ("y = Softmax<axis = 1>(x)", (2, 7, 5, 8), None),
    "softmax, cut vectors": ("y = Softmax<axis = -1>(x)", (3, 197), None),
    "max pool": (
        "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
        (1, 4, 9, 16),
        None,
    ),
    "average pool": ("y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)", (1, 4, 8, 12), None),
    "global pool": ("y = GlobalAveragePool(x)", (1, 10, 6, 8), None),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, tmp_path: Path) -> None:
    body, shape, axes = REDUCTIONS[name]
    x = normal(*shape)
    constants = {} if axes is None else {"a": np.array(axes, np.int64)}
    model = model_of(body, {"x": x}, {"y": (1,)}, constants)
    expected = Reference(model)({"x": x})["y"]
    np.testing.assert_allclose(run(model, {"x": x}, tmp_path)["y"], expected, rtol=2e-5, atol=2e-6)


UGLY = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [-np.inf] * 7 + [1],
        [-np.inf] * 8,
        [np.finfo(np.float32).min] * 8,
        [3e38, -3e38, 0, 1, 2, 3, 4, 5],
        [np.inf, 1, 2, 3, 4, 5, 6, 7],
        [np.nan, 1, 2, 3, 4, 5, 6, 7],
        [1e-40, -1e-40, 2e-40, 0, -0.0, 1e-38, 1e-45, 0],
    ],
    np.float32,
)


@pytest.mark.parametrize("axis", [-1, 0])
def test_softmax_of_ugly_rows(axis: int, tmp_path: Path) -> None:
    x = np.tile(UGLY, (1, 4)) if axis == -1 else np.tile(UGLY, (1, 4)).T.copy()
    model = model_of(f"y = Softmax<axis = {axis}>(x)", {"x": x}, {"y": x.shape})
    with np.errstate(over="ignore", invalid="ignore"):
        wide = x.astype(np.float64)
        e = np.exp(wide - wide.max(axis=axis, keepdims=True))
        expected = e / e.sum(axis=axis, keepdims=True)
    np.testing.assert_allclose(run(model, {"x": x}, tmp_path)["y"], expected, rtol=1e-5, atol=1e-7)


def lowered_softmax(name: str, x: np.ndarray, axis: int, **options: float) -> ir.Model:
    """The graph of one Softmax after the method `name` took its place."""
    if name == "online-topk":
        text, k = f"s = Softmax<axis = {axis}>(x) y, i = TopK<axis = {axis}>(s, k)", min(3, x.shape[axis])
        model = model_of(text, {"x": x}, {"y": (1,)}, {"k": np.array([k], np.int64)})
    else:
        model = model_of(f"y = Softmax<axis = {axis}>(x)", {"x": x}, {"y": x.shape})
    node = next(iter(model.graph))
    registry.make("softmax", name, options).rewrite(model, node)
    return model


@pytest.mark.parametrize("name", [name for family, name in registry.methods() if family == "softmax"])
@pytest.mark.parametrize("axis", [-1, 0])
def test_softmax_methods_do_what_their_bodies_say(name: str, axis: int, tmp_path: Path) -> None:
    for index, x in enumerate((np.tile(UGLY, (1, 4)), normal(3, 5, 37) * 30, normal(6, 1))):
        x = x if axis == -1 else np.moveaxis(x, -1, 0).copy()
        model = lowered_softmax(name, x, axis)
        expected = Reference(model)({"x": x})["y"]
        directory = tmp_path / str(index)
        directory.mkdir()
        got = run(model, {"x": x}, directory)["y"]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


#: Rows in one block, in several (8192, 65536) and in several that do not divide it (12000).
@pytest.mark.parametrize("width", [1, 2, 37, 128, 5003, 8192, 12000, 65536])
@pytest.mark.parametrize("center", [0.0, -17.3])
def test_unified_maximum_is_softmax_inside_and_outside_of_its_reach(
    width: int, center: float, tmp_path: Path
) -> None:
    shifts = [0, 1, -30, 30, 59, -59, 61, -61, 75, 88, -88, 100, -100, 500, -500, 1e4, -1e4, 1e30]
    shift = np.array(shifts, np.float32)[:, None]
    x = normal(len(shifts), width) * 4 + np.float32(center) + shift
    x[0, -1] = x[1, 0] = 1e4  # one block far above the others
    x[3, : width // 2] -= 200  # and some far below
    x[2, 1:] = np.where(normal(1, max(width - 1, 0), seed=1) > 0, x[2, 1:], -np.inf)
    got = run(lowered_softmax("unified-max", x, -1, center=center), {"x": x}, tmp_path)["y"]
    exact = softmax_rows(x)
    theirs = Reference(model_of("y = Softmax(x)", {"x": x}, {"y": x.shape}))({"x": x})["y"]
    # Differences to the center or the maximum are rounded before they are exponents, so that far ones cost
    # some units; sums of widths that no vector divides are of one element after the other.
    exponents = np.abs(x - center).clip(0, 60) + np.abs(
        np.log(exact, where=exact > 0, out=np.zeros_like(exact))
    )
    units = 16 + exponents + (width / 16 if width % 8 else 0)
    np.testing.assert_array_less(np.abs(got - exact), 2.0**-24 * exact * units + 2e-12)
    np.testing.assert_array_less(np.abs(got - theirs), 2.0**-24 * exact * (units + width / 128) * 2 + 2e-12)


@pytest.mark.parametrize("width", [4, 8192, 65536])
def test_unified_maximum_of_ugly_rows(width: int, tmp_path: Path) -> None:
    x = np.repeat(UGLY, 2, axis=0)
    x = np.concatenate([x, normal(len(x), width - 8)], axis=1) if width > 8 else x[:, :width].copy()
    x[[4, 5]] = -np.inf
    x[len(x) - 1, -1], x[len(x) - 2, -1] = np.nan, np.inf
    model = lowered_softmax("unified-max", x, -1)
    expected = Reference(model_of("y = Softmax(x)", {"x": x}, {"y": x.shape}))({"x": x})["y"]
    got = run(model, {"x": x}, tmp_path)["y"]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert np.isnan(got[[4, 5, -2, -1]]).all()
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-12)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5,), 0), ((1, 1), 1), ((3, 37), -1), ((37, 3), 0), ((2, 9, 5), 1), ((2, 8192), 1), ((2, 12000), 1)],
)
@pytest.mark.parametrize("whole", [True, False])
def test_the_largest_weights_and_where_they_are(
    shape: tuple[int, ...], axis: int, whole: bool, tmp_path: Path
) -> None:
    x = np.round(normal(*shape) * 4)  # with ties
    x[normal(*shape, seed=1) > 1] = -np.inf
    x[(0,) * len(shape)] = 2
    rows = np.moveaxis(x, axis, -1)
    k = rows.shape[-1] if whole else min(3, rows.shape[-1])
    text = f"s = Softmax<axis = {axis}>(x) y, i = TopK<axis = {axis}>(s, k)"
    model = model_of(text, {"x": x}, {"y": (1,)}, {"k": np.array([k], np.int64)})
    last = next(node for node in model.graph if node.op_type == "TopK").outputs[1]
    last.dtype = ir.DataType.INT64
    model.graph.outputs.append(last)
    registry.make("softmax", "online-topk", {}).rewrite(model, next(iter(model.graph)))
    got = run(model, {"x": x}, tmp_path)
    order = np.argsort(-rows, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(got["i"], np.moveaxis(order, -1, axis))
    exact = np.moveaxis(np.take_along_axis(softmax_rows(rows), order, -1), -1, axis)
    np.testing.assert_allclose(got["y"], exact, rtol=5e-6, atol=1e-37)


@pytest.mark.parametrize(("shape", "axis"), [((4, 6, 32), -1), ((4, 6, 33), 2), ((3, 5, 8), 1), ((7, 1), -1)])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalisation(shape: tuple[int, ...], axis: int, bias: bool, tmp_path: Path) -> None:
    inner = shape[axis:] if axis >= 0 else shape[-1:]
    # A mean that is large beside the deviation: one pass over x and x*x would lose the variance.
    x = normal(*shape) + np.float32(3000)
    constants = {"s": normal(*inner, seed=1), **({"b": normal(*inner, seed=2)} if bias else {})}
    call = "LayerNormalization<axis = %d, epsilon = 1e-3>(%s)" % (axis, ", ".join(["x", *constants]))  # noqa: UP031
    model = model_of(f"y = {call}", {"x": x}, {"y": shape}, constants)
    wide, over = x.astype(np.float64), tuple(range(axis % len(shape), len(shape)))
    centred = wide - wide.mean(axis=over, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=over, keepdims=True) + 1e-3) * constants["s"]
    expected = expected + constants.get("b", 0)
    # The mean of numbers near 3000 is itself known to about one part in 2**23.
    np.testing.assert_allclose(run(model, {"x": x}, tmp_path)["y"], expected, rtol=1e-3, atol=2e-3)


def test_layer_normalisation_of_constant_and_ugly_rows(tmp_path: Path) -> None:
    x = np.stack([np.full(16, 5.0), np.zeros(16), np.r_[np.nan, np.ones(15)], np.r_[np.inf, np.ones(15)]])
    x = x.astype(np.float32)
    constants = {"s": np.ones(16, np.float32), "b": np.full(16, 0.25, np.float32)}
    model = model_of("y = LayerNormalization(x, s, b)", {"x": x}, {"y": x.shape}, constants)
    expected = Reference(model)({"x": x})["y"]
    assert np.isnan(expected[2:]).all()
    np.testing.assert_allclose(run(model, {"x": x}, tmp_path)["y"], expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_counts_from_the_end_and_never_leaves_its_memory(axis: int, tmp_path: Path) -> None:
    x = normal(5, 5, 5)
    inside = np.array([[0, -1], [4, -5]], np.int64)
    wild = np.array([[5, -6], [2**40, -(2**40)]], np.int64)
    model = model_of(f"y = Gather<axis = {axis}>(x, i)", {"x": x, "i": inside}, {"y": (1, 1, 1, 1)})
    run(model.clone(), {"x": x, "i": inside}, tmp_path)
    runner = CpuTarget().open(tmp_path, {})
    np.testing.assert_array_equal(runner({"x": x, "i": inside})["y"], np.take(x, inside, axis=axis))
    assert np.isnan(runner({"x": x, "i": wild})["y"]).all()



def function(*tensors: te.Tensor) -> s_tir.Schedule:
    return s_tir.Schedule(te.create_prim_func(list(tensors)))


def loops_of(schedule: s_tir.Schedule, kind: int) -> int:
    """How many loops of a kind (1 parallel, 2 vectorised, 3 unrolled) there are."""
    found = []
    structural_walk(
        schedule.mod["main"].body,
        lambda node: found.append(node) if isinstance(node, tvm.tirx.For) and node.kind == kind else None,
    )
    return len(found)


def test_each_rule_takes_what_it_is_for_and_nothing_else() -> None:
    a, b = te.placeholder((64, 32), name="a"), te.placeholder((32, 64), name="b")
    k = te.reduce_axis((0, 32), "k")
    product = te.compute((64, 64), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="matmul")
    total = te.compute((64,), lambda i: te.sum(a[i, k], axis=k), name="total")
    double = te.compute((64, 32), lambda i, j: a[i, j] * 2, name="double")
    cases = {
        schedule_contraction: function(a, b, product),
        schedule_rows: function(a, total),
        schedule_elementwise: function(a, double),
    }
    for rule, schedule in cases.items():
        rule(schedule, 8)
        assert loops_of(schedule, 2) >= 1, rule.__name__
    assert loops_of(cases[schedule_contraction], 1) == 1
    assert loops_of(cases[schedule_contraction], 3) >= 2
    for rule, wrong in (
        (schedule_contraction, function(a, double)),
        (schedule_contraction, function(a, total)),
        (schedule_elementwise, function(a, total)),
    ):
        with pytest.raises(NotApplicable):
            rule(wrong, 8)
