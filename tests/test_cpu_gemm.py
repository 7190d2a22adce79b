"""The cpu target's matrix products, of every kind and shape, against float64 and against exact integers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax, tirx
from tvm.ir import Expr

from lowerkit.errors import UnsupportedError
from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.build import lower
from lowerkit.targets.cpu.kernels.gemm.dots import BF16_PAIRS, QUADS, Dot
from lowerkit.targets.cpu.kernels.gemm.machine import Machine, machine
from lowerkit.targets.cpu.kernels.gemm.operators import converters, matmul
from lowerkit.targets.cpu.kernels.gemm.panels import even, layout
from lowerkit.targets.cpu.kernels.gemm.polynomials import in_parallel
from lowerkit.targets.cpu.kernels.gemm.template import expand
from lowerkit.targets.cpu.program import Call, leaves
from lowerkit.targets.cpu.target import CpuTarget

AVX2 = "x86-64-v3"
OPERATORS = {
    "bf16": "MatMulBf16",
    "int8": "MatMulInt8",
    "int8-static": "MatMulInt8Static",
    "weight-int8": "MatMulWeightInt8",
    "weight-int4": "MatMulWeightInt4",
}
#: M, K, N: one row, few rows, cut tiles, cut vectors, cut steps.
SHAPES = [(1, 97, 47), (2, 9, 8), (3, 7, 49), (5, 1, 1), (8, 49, 9), (9, 48, 48), (47, 8, 7), (97, 47, 97)]
FEW = [(1, 48, 9), (7, 49, 47), (13, 9, 48)]


@dataclasses.dataclass(frozen=True)
class Case:
    """A product: its operands, and what it should be in float64."""

    kind: str
    x: np.ndarray
    weights: tuple[np.ndarray, ...]
    expected: np.ndarray


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q - z and the scales of rows, by the operator's definition."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    step = ((high - low) / np.float32(255)).astype(np.float32)
    step = np.where(step == 0, np.float32(1), step)
    zero = np.clip(np.rint(-low / step), 0, 255)
    return np.clip(np.rint(x / step) + zero, 0, 255) - zero, step


def case(kind: str, rows: int, depth: int, width: int, x: np.ndarray | None = None) -> Case:
    rng = np.random.default_rng(rows + depth + width)
    x = rng.standard_normal((rows, depth)).astype(np.float32) if x is None else x
    wide = x.astype(np.float64)
    if kind == "float32":
        weight = normal(depth, width, seed=width)
        return Case(kind, x, (weight,), wide @ weight)
    if kind == "bf16":
        weight = normal(depth, width, seed=width).astype(ml_dtypes.bfloat16)
        return Case(
            kind, x, (weight,), x.astype(ml_dtypes.bfloat16).astype(np.float64) @ weight.astype(np.float64)
        )
    if kind == "weight-int4":
        group = next(g for g in (32, 16, 7, 3, 1, depth) if depth % g == 0)
        weight = rng.integers(-8, 8, (depth, width)).astype(ml_dtypes.int4)
        scale = rng.random((depth // group, width), np.float32)
        return Case(kind, x, (weight, scale), wide @ (weight.astype(np.float64) * scale.repeat(group, 0)))
    weight = rng.integers(-128, 128, (depth, width)).astype(np.int8)
    scale = rng.random(width, np.float32)
    if kind == "weight-int8":
        return Case(kind, x, (weight, scale), wide @ weight * scale)
    if kind == "int8":
        q, step = quantised(x)
        return Case(kind, x, (weight, scale), q.astype(np.float64) @ weight * step * scale)
    step, zero = np.array(0.02, np.float32), np.array(117, np.uint8)
    q = np.clip(np.rint(x / step) + np.float32(117), 0, 255) - 117
    expected = q.astype(np.float64) @ weight * step * scale
    return Case(kind, x, (step, zero, weight, scale), expected)


def graph_of(cases: list[Case]) -> ir.Model:
    """A graph with a node for each case: inputs x0, x1, ... and outputs y0, y1, ..."""
    inputs, weights, nodes = [], [], []
    for number, each in enumerate(cases):
        dtype = ir.TensorType(ir.DataType.FLOAT)
        x = ir.Value(name=f"x{number}", type=dtype, shape=ir.Shape(each.x.shape))
        inputs.append(x)
        own = []
        for i, array in enumerate(each.weights):
            tensor = ir.tensor(array, name=f"w{number}_{i}")
            kind = ir.TensorType(tensor.dtype)
            own.append(ir.Value(name=tensor.name, const_value=tensor, type=kind, shape=ir.Shape(array.shape)))
        weights += own
        domain, operator = ("", "MatMul") if each.kind == "float32" else ("lowerkit", OPERATORS[each.kind])
        order = [x, *own]
        node = ir.Node(domain, operator, order, name=f"n{number}")
        y = node.outputs[0]
        y.name, y.shape, y.dtype = f"y{number}", ir.Shape(each.expected.shape), ir.DataType.FLOAT
        nodes.append(node)
    outputs = [node.outputs[0] for node in nodes]
    opsets = {"": 23, "lowerkit": 1}
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports=opsets, name="g")
    return ir.Model(graph, ir_version=10)


def close(y: np.ndarray, expected: np.ndarray, case: Case) -> None:
    size = np.abs(np.where(np.isfinite(expected), expected, 0)).max(initial=1e-3)
    np.testing.assert_allclose(
        y, expected, rtol=1e-5, atol=3e-6 * size, err_msg=f"{case.kind} {case.x.shape}"
    )


@pytest.mark.parametrize(
    ("cpu", "shapes", "every"),
    [
        (AVX2, SHAPES, 4),
        ("x86-64-v2", FEW, 3),
        pytest.param(AVX2, SHAPES, 1, marks=pytest.mark.slow),
        pytest.param("x86-64-v2", SHAPES, 1, marks=pytest.mark.slow),
    ],
)
def test_every_kind(cpu: str, shapes: list[tuple[int, int, int]], every: int, tmp_path: Path) -> None:
    kinds = ("float32", *OPERATORS)
    cases = [case(kind, *shape) for i, kind in enumerate(kinds) for shape in shapes[i % every :: every]]
    cases += [case("float32", *shape) for shape in shapes]
    target = CpuTarget()
    target.emit(graph_of(cases), {"cpu": cpu}, tmp_path)
    run = target.open(tmp_path, {"threads": 2})
    out = run({f"x{i}": each.x for i, each in enumerate(cases)})
    for i, each in enumerate(cases):
        close(out[f"y{i}"], each.expected, each)


def test_rows_that_are_hard_to_quantise(tmp_path: Path) -> None:
    x = np.zeros((9, 47), np.float32)
    x[1] = 3.0
    x[2] = -1e-3
    x[3, 5] = 1e-44  # the step of this range is 0
    x[4] = np.linspace(-3e33, 3e33, 47)
    x[5] = normal(47)
    x[6], x[7], x[8] = normal(3, 47)
    x[6, 46], x[7, 3], x[8, 0] = np.nan, np.inf, -np.inf
    each = case("int8", 6, 47, 31, x[:6])
    target = CpuTarget()
    target.emit(graph_of([dataclasses.replace(each, x=x, expected=np.zeros((9, 31)))]), {}, tmp_path)
    y = target.open(tmp_path, {"threads": 1})({"x0": x})["y0"]
    close(y[:6], each.expected, each)
    assert (y[0] == 0).all()
    assert not np.isfinite(y[6:]).any()


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    x, weight = normal(7, 9), normal(9, 49, seed=1)
    x[2, 3], x[4, 0], weight[5, 6] = np.nan, np.inf, 1e38
    x[6] = 1e5  # times 1e38 overflows
    expected = (x.astype(np.float64) @ weight).astype(np.float64)
    each = Case("float32", x, (weight,), expected)
    target = CpuTarget()
    target.emit(graph_of([each]), {}, tmp_path)
    y = target.open(tmp_path, {"threads": 1})({"x0": x})["y0"]
    assert np.isnan(y[2]).all()
    assert not np.isfinite(y[4]).any()
    assert np.isposinf(y[6, 6])
    fine = [0, 1, 3, 5]
    np.testing.assert_allclose(y[fine], expected[fine], rtol=1e-4, atol=1e-5)


# Below the operators: modules of Relax, and processors that are not here.


def module_of(build: Callable[[relax.BlockBuilder, relax.Var], relax.Expr], x: np.ndarray) -> tvm.IRModule:
    bb = relax.BlockBuilder()
    variable = relax.Var("x", relax.TensorType(x.shape, "float32"))
    with bb.function("main", [variable]):
        with bb.dataflow():
            out = bb.emit_output(build(bb, variable))
        bb.emit_func_output(out)
    return bb.get()


def fused(module: tvm.IRModule, processor: Machine) -> tvm.IRModule:
    t = relax.transform
    legalise = t.LegalizeOps({"relax.matmul": matmul(processor)})
    return tvm.transform.Sequential([legalise, t.AnnotateTIROpPattern(), t.FuseOps(), t.FuseTIR()])(module)


def expanded(module: tvm.IRModule, processor: Machine) -> tuple[tvm.IRModule, int]:
    """The module with templates in place, and how many there are."""
    count = 0
    for name, function in module.functions_items():
        new = expand(function, processor) if isinstance(function, tirx.PrimFunc) else None
        if new is not None:
            module[name] = new
            count += 1
    return module, count


def run(module: tvm.IRModule, x: np.ndarray, cpu: str = AVX2) -> np.ndarray:
    compiled = tvm.compile(module, tvm.target.Target(features.tvm_target(cpu)))
    machine = relax.VirtualMachine(compiled, tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()


def of_operator(each: Case, processor: Machine) -> Callable[[relax.BlockBuilder, relax.Var], relax.Expr]:
    def build(bb: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        arrays = [w.astype(np.int8) if w.dtype == ml_dtypes.int4 else w for w in each.weights]
        if each.kind == "bf16":
            arrays = [arrays[0].view(np.uint16)]
        return converters(processor)[OPERATORS[each.kind]](bb, [x, *map(relax.const, arrays)], {})

    return build


@pytest.mark.parametrize("kind", [*OPERATORS, "float32"])
def test_templates_compute_what_they_replace(kind: str) -> None:
    processor, each = machine(AVX2), case(kind, 7, 33, 25)

    def plain(bb: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        return relax.op.matmul(x, relax.const(each.weights[0]))

    build = plain if kind == "float32" else of_operator(each, processor)
    definition = run(fused(module_of(build, each.x), processor), each.x)
    module, count = expanded(fused(module_of(build, each.x), processor), processor)
    assert count == 1
    close(definition, each.expected, each)
    close(run(module, each.x), each.expected, each)


#: The same function as the instruction, in instructions that every processor has.
EMULATED_QUADS = (
    """
define <16 x i32> @lowerkit_vpdpbusd(<16 x i32> %c, <16 x i32> %a, <16 x i32> %b) {
  %x8 = bitcast <16 x i32> %a to <64 x i8>
  %y8 = bitcast <16 x i32> %b to <64 x i8>
  %x = zext <64 x i8> %x8 to <64 x i32>
  %y = sext <64 x i8> %y8 to <64 x i32>
  %p = mul <64 x i32> %x, %y
"""
    + "".join(
        f"  %p{i} = shufflevector <64 x i32> %p, <64 x i32> poison, <16 x i32> "
        f"<{', '.join(f'i32 {4 * lane + i}' for lane in range(16))}>\n"
        f"  %s{i} = add <16 x i32> %{'c' if i == 0 else f's{i - 1}'}, %p{i}\n"
        for i in range(4)
    )
    + "  ret <16 x i32> %s3\n}"
)
EMULATED_PAIRS = """
define <16 x float> @lowerkit_vdpbf16ps(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) {
  %m = and <16 x i32> %a, splat (i32 -65536)
  %n = and <16 x i32> %b, splat (i32 -65536)
  %l = shl <16 x i32> %a, splat (i32 16)
  %k = shl <16 x i32> %b, splat (i32 16)
  %a1 = bitcast <16 x i32> %m to <16 x float>
  %b1 = bitcast <16 x i32> %n to <16 x float>
  %a0 = bitcast <16 x i32> %l to <16 x float>
  %b0 = bitcast <16 x i32> %k to <16 x float>
  %p1 = fmul <16 x float> %a1, %b1
  %s1 = fadd <16 x float> %c, %p1
  %p0 = fmul <16 x float> %a0, %b0
  %s0 = fadd <16 x float> %s1, %p0
  ret <16 x float> %s0
}"""


def elsewhere(int8: Dot = QUADS, bf16: Dot = BF16_PAIRS) -> Machine:
    return dataclasses.replace(machine("x86-64-v4-bf16"), int8=int8, bf16=bf16)


@pytest.mark.parametrize("shape", [(1, 9, 50), (5, 13, 33)])
def test_quads_of_bytes_bit_for_bit(shape: tuple[int, int, int]) -> None:
    processor = elsewhere(int8=dataclasses.replace(QUADS, llvm=EMULATED_QUADS))
    each = case("int8", *shape)
    q, step = quantised(each.x)
    sums = (q.astype(np.int64) @ each.weights[0]).astype(np.float32)
    module, count = expanded(fused(module_of(of_operator(each, processor), each.x), processor), processor)
    assert count == 1
    np.testing.assert_array_equal(run(module, each.x), sums * step * each.weights[1])


@pytest.mark.parametrize("shape", [(1, 9, 50), (5, 13, 33)])
def test_pairs_of_bfloat16_bit_for_bit(shape: tuple[int, int, int]) -> None:
    processor = elsewhere(bf16=dataclasses.replace(BF16_PAIRS, llvm=EMULATED_PAIRS))
    each = case("bf16", *shape)
    x, weight = each.x.astype(ml_dtypes.bfloat16).astype(np.float32), each.weights[0].astype(np.float32)
    sums = np.zeros(each.expected.shape, np.float32)
    for first in range(0, shape[1], 2):
        for k in reversed(range(first, min(first + 2, shape[1]))):
            sums += x[:, k, None] * weight[k]
    module, count = expanded(fused(module_of(of_operator(each, processor), each.x), processor), processor)
    assert count == 1
    np.testing.assert_array_equal(run(module, each.x), sums)


@pytest.mark.parametrize(("kind", "instruction"), [("int8", "vpdpbusd"), ("bf16", "vdpbf16ps")])
def test_instructions_of_other_processors(kind: str, instruction: str) -> None:
    cpu, each = "x86-64-v4-bf16", case(kind, 16, 64, 48)
    module, _ = expanded(
        fused(module_of(of_operator(each, machine(cpu)), each.x), machine(cpu)), machine(cpu)
    )
    function = next(f for name, f in module.functions_items() if "gemm" in name.name_hint)
    named = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    text = tvm.compile(named, tvm.target.Target(features.tvm_target(cpu))).mod.inspect_source("asm")
    assert text.count(f"\t{instruction}\t%zmm") + text.count(f"\t{instruction}\t(") >= 24
    assert "lowerkit_" not in text  # the wrapper is inlined


FOLLOWED = {
    "bias, by rows, residual": lambda p, rows, bias, other: p * rows + bias + other,
    "chosen by sign": lambda p, rows, bias, other: relax.op.where(
        relax.op.less(p, other), relax.op.exp(relax.op.minimum(p, other)), p * p + bias
    ),
    "long": lambda p, rows, bias, other: (
        relax.op.tanh(p + bias) * relax.op.sigmoid(p) + other / (p * p + rows * rows)
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize(("shape", "batched"), [((2, 3, 7, 17, 21), True), ((1, 1, 49, 8, 48), False)])
def test_what_follows(name: str, shape: tuple[int, ...], batched: bool) -> None:
    *batch, rows, depth, width = shape
    x = normal(*batch, rows, depth)
    weight = normal(*(batch if batched else []), depth, width, seed=1)
    factor, bias, other = (
        np.abs(normal(*s, seed=2)) + 0.1 for s in ([rows, 1], [width], [*batch, rows, width])
    )

    def build(bb: relax.BlockBuilder, variable: relax.Var) -> relax.Expr:
        constants = [relax.const(array.astype(np.float32)) for array in (factor, bias, other)]
        right = relax.const(weight)
        if batched:  # computed, so that it is no constant
            right = bb.emit(relax.op.add(right, relax.op.multiply(relax.op.sum(variable), relax.const(0.0))))
        return FOLLOWED[name](bb.emit(relax.op.matmul(variable, right)), *constants)

    processor = machine(AVX2)
    module, count = expanded(fused(module_of(build, x), processor), processor)
    assert count == 1
    p = x.astype(np.float64) @ weight
    expected = {
        "bias, by rows, residual": lambda: p * factor + bias + other,
        "chosen by sign": lambda: np.where(p < other, np.exp(np.minimum(p, other)), p * p + bias),
        "long": lambda: np.tanh(p + bias) / (1 + np.exp(-p)) + other / (p * p + factor * factor),
    }[name]()
    np.testing.assert_allclose(run(module, x), expected, rtol=2e-4, atol=2e-5)


def chain(coefficients: Sequence[float], x: Expr) -> Expr:
    """Horner's scheme, highest power first."""
    p: Expr = tirx.const(coefficients[0], "float32")
    for coefficient in coefficients[1:]:
        p = p * x + tirx.const(coefficient, "float32")
    return p


def value_and_depth(node: Expr, x: float) -> tuple[float, int]:
    """What an expression of sums and products of one variable gives, and its operations in a row."""
    if isinstance(node, tirx.FloatImm | tirx.Var):
        return (float(node.value) if isinstance(node, tirx.FloatImm) else x), 0
    (a, first), (b, second) = (value_and_depth(side, x) for side in (node.a, node.b))
    return (a + b if isinstance(node, tirx.Add) else a * b), 1 + max(first, second)


@pytest.mark.parametrize("products", [1, 4, 5, 6, 7, 8, 12, 15, 16])
def test_long_chains_are_computed_in_parallel(products: int) -> None:
    coefficients = [float(c) for c in normal(products + 1, seed=products)]
    for x in (-1.5, 0.0, 0.3, 1.0):
        value, found = value_and_depth(in_parallel(chain(coefficients, tirx.Var("x", "float32"))), x)
        np.testing.assert_allclose(value, np.polyval(coefficients, x), rtol=1e-12, atol=1e-12)
        assert found <= (2 * products if products < 5 else 2 * math.ceil(math.log2(products + 1)))


def test_chains_of_chains_stay_right() -> None:
    x = tirx.Var("x", "float32")
    inner, outer = [1.0, 2, 3, 4, 5, 6, 7], [0.5, -1, 2, 1, 3, 1]
    found, _ = value_and_depth(in_parallel(chain(outer, chain(inner, x)) * x + tirx.const(1, "float32")), 0.5)
    np.testing.assert_allclose(found, 0.5 * np.polyval(outer, np.polyval(inner, 0.5)) + 1, rtol=1e-12)


@given(st.integers(1, 2000), st.integers(1, 50))
def test_even_pieces(total: int, most: int) -> None:
    runs = even(total, most)
    sizes = [run.size for run in runs for _ in range(run.count)]
    assert sum(sizes) == total
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-total // most)
    at = piece = 0
    for run in runs:
        assert (run.first, run.start) == (piece, at)
        piece, at = piece + run.count, at + run.count * run.size


@given(
    st.integers(1, 20), st.integers(1, 40), st.integers(1, 100), st.sampled_from(["float32", "bf16", "int8"])
)
def test_panels_hold_every_weight_once(rows: int, depth: int, width: int, kind: str) -> None:
    where = layout(machine(AVX2), kind, rows, depth, width)
    weight = np.arange(1, depth * width + 1).reshape(depth, width).astype(where.dot.panel)
    panels = where.pack(weight)
    assert panels.shape == (where.size,)
    assert sorted(panels[panels != 0]) == sorted(weight[weight != 0])


def test_other_shapes_are_left_to_tvm(tmp_path: Path) -> None:
    x, weight = normal(2, 5, 7), normal(3, 1, 7, 4, seed=1)
    each = Case("float32", x, (weight,), x.astype(np.float64) @ weight)
    target = CpuTarget()
    target.emit(graph_of([each]), {}, tmp_path)
    close(target.open(tmp_path, {"threads": 1})({"x0": x})["y0"], each.expected, each)


def test_weights_that_are_computed_are_refused_by_name(tmp_path: Path) -> None:
    model = graph_of([case("weight-int8", 3, 7, 9)])
    weight = model.graph.initializers.pop("w0_0")
    weight.const_value = None
    model.graph.inputs.append(weight)
    with pytest.raises(UnsupportedError, match=r"'n0'.*weights or scales are not constant"):
        CpuTarget().emit(model, {}, tmp_path)


def test_products_of_one_tensor_quantise_it_once() -> None:
    each = case("int8", 5, 9, 17)
    product = of_operator(each, machine(AVX2))
    module = module_of(lambda bb, x: relax.op.concat([bb.emit(product(bb, x)) for _ in range(3)]), each.x)
    program, _ = lower(module, AVX2)
    calls = [step.function for step in leaves(program.steps) if isinstance(step, Call)]
    assert sum("quantise_rows" in name for name in calls) == 1
