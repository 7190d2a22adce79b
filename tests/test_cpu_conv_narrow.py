"""Convolutions in int8 and bfloat16: every shape of window, against float64, their bodies and other processors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
import tvm
from test_cpu_gemm import EMULATED_PAIRS, EMULATED_QUADS, expanded, fused, module_of
from test_cpu_gemm import run as run_module
from tvm import relax

from lowerkit.graph.domain import add_function
from lowerkit.graph.shapes import infer_shapes
from lowerkit.passes.quantize.base import dynamic_steps
from lowerkit.passes.quantize.bodies import CONV_BF16, CONV_INT8, CONV_INT8_STATIC
from lowerkit.passes.quantize.windows import convolve
from lowerkit.reference import Reference
from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.build import lower
from lowerkit.targets.cpu.importer import import_model
from lowerkit.targets.cpu.kernels import conv_bf16, conv_int8, converters
from lowerkit.targets.cpu.kernels.gemm.dots import BF16_PAIRS, PLAIN_INT8, QUADS
from lowerkit.targets.cpu.kernels.gemm.machine import Machine, machine
from lowerkit.targets.cpu.kernels.gemm.runs import RUNS
from lowerkit.targets.cpu.kernels.gemm.template import expand
from lowerkit.targets.cpu.program import Call, leaves
from lowerkit.targets.cpu.target import CpuTarget

OPERATORS = {"int8": CONV_INT8, "static": CONV_INT8_STATIC, "bf16": CONV_BF16}
SCALE, ZERO = np.array(0.02, np.float32), np.array(117, np.uint8)
WINDOW = {"pads": [0, 0, 0, 0], "strides": [1, 1], "dilations": [1, 1], "group": 1}
#: x [N, C, H, W], weight [O, C / group, kh, kw], what is not as in `WINDOW`.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1x1": ((1, 16, 7, 9), (48, 16, 1, 1), {}),
    "1x1, odd channels, 2 images": ((2, 17, 7, 8), (49, 17, 1, 1), {}),
    "1x1, one pixel": ((1, 47, 1, 1), (9, 47, 1, 1), {}),
    "1x1, stride": ((1, 9, 7, 10), (8, 9, 1, 1), {"strides": [2, 3]}),
    "1x1, border": ((2, 8, 3, 5), (7, 8, 1, 1), {"pads": [1, 0, 2, 3]}),
    "3x3": ((1, 8, 9, 13), (17, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    "3x3, uneven, 2 images": ((2, 9, 8, 7), (47, 9, 3, 3), {"pads": [0, 1, 2, 3], "strides": [2, 1]}),
    "3x3 of 3 channels, 3 images": ((3, 3, 11, 8), (16, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "1x3": ((1, 49, 1, 13), (8, 49, 1, 3), {"pads": [0, 1, 0, 1]}),
    "dilated": ((1, 8, 11, 12), (9, 8, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 0, 2]}),
    "one channel": ((2, 1, 8, 9), (1, 1, 7, 5), {"pads": [3, 2, 3, 2]}),
    "by channel": ((2, 17, 7, 9), (17, 1, 3, 3), {"group": 17, "pads": [1, 1, 1, 1]}),
    "groups": ((1, 6, 7, 8), (8, 3, 3, 3), {"group": 2, "strides": [1, 2]}),
}
FEW = ("1x1, odd channels, 2 images", "3x3, uneven, 2 images", "dilated")


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution: its operands, and what it should be in float64."""

    kind: str
    x: np.ndarray
    weights: tuple[np.ndarray, ...]
    window: dict[str, Any]

    @property
    def expected(self) -> np.ndarray:
        """By the operator's definition."""
        if self.kind == "bf16":
            rounded = self.x.astype(ml_dtypes.bfloat16).astype(np.float64)
            return convolve(rounded, self.weights[0].astype(np.float64), **self.window)
        *_, weight, scale = self.weights
        steps, step = in_float32(self.x) if self.kind == "int8" else calibrated(self.x)
        return convolve(steps, weight.astype(np.float64), **self.window) * step * scale[:, None, None]


def in_float32(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`dynamic_steps` of images with a step that is rounded to float32, as the operator has it."""
    low, high = np.minimum(x.min((1, 2, 3)), 0), np.maximum(x.max((1, 2, 3)), 0)
    step = ((high - low) / np.float32(255)).astype(np.float32)[:, None, None, None]
    step = np.where(step == 0, np.float32(1), step)
    zero = np.clip(np.rint(-low[:, None, None, None] / step), 0, 255)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero).astype(np.float64), step.astype(np.float64)


def calibrated(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.clip(np.rint(x / SCALE) + np.float32(ZERO), 0, 255).astype(np.float64) - ZERO, SCALE


def case(kind: str, name: str) -> Case:
    shape, kernel, window = CASES[name]
    rng = np.random.default_rng(len(name))
    x = rng.standard_normal(shape).astype(np.float32)
    window = {**WINDOW, **window}
    if kind == "bf16":
        return Case(kind, x, (rng.standard_normal(kernel).astype(ml_dtypes.bfloat16),), window)
    own = rng.integers(-128, 128, kernel).astype(np.int8), rng.random(kernel[0], np.float32)
    return Case(kind, x, own if kind == "int8" else (SCALE, ZERO, *own), window)


def graph_of(cases: list[Case]) -> ir.Model:
    """Convolutions with their bodies, each followed by a HardSwish: inputs x0, x1, ..., outputs y0, y1, ..."""
    inputs, weights, nodes, outputs = [], [], [], []
    for number, each in enumerate(cases):
        dtype = ir.TensorType(ir.DataType.FLOAT)
        x = ir.Value(name=f"x{number}", type=dtype, shape=ir.Shape(each.x.shape))
        own = []
        for i, array in enumerate(each.weights):
            tensor = ir.tensor(array, name=f"w{number}_{i}")
            kind = ir.TensorType(tensor.dtype)
            own.append(ir.Value(name=tensor.name, const_value=tensor, type=kind, shape=ir.Shape(array.shape)))
        node = ir.node(
            OPERATORS[each.kind].name, [x, *own], each.window, domain="lowerkit", name=f"n{number}"
        )
        last = ir.node("HardSwish", [node.outputs[0]], name=f"h{number}")
        node.outputs[0].name, last.outputs[0].name = f"c{number}", f"y{number}"
        inputs, weights, nodes = [*inputs, x], [*weights, *own], [*nodes, node, last]
        last.outputs[0].type, last.outputs[0].shape = dtype, ir.Shape(each.expected.shape)
        outputs.append(last.outputs[0])
    opsets = {"": 23, "lowerkit": 1}
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports=opsets, name="g")
    model = ir.Model(graph, ir_version=11)
    for kind in dict.fromkeys(each.kind for each in cases):
        add_function(model, OPERATORS[kind])
    infer_shapes(model)
    return model


def swish(y: np.ndarray) -> np.ndarray:
    return y * np.clip(y / 6 + 0.5, 0, 1)


def close(found: np.ndarray, wanted: np.ndarray, what: object) -> None:
    size = np.abs(np.where(np.isfinite(wanted), wanted, 0)).max(initial=1e-3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=5e-6 * size, err_msg=str(what))


def run(model: ir.Model, inputs: list[np.ndarray], cpu: str, directory: Path) -> list[np.ndarray]:
    target = CpuTarget()
    target.emit(model, {"cpu": cpu}, directory)
    found = target.open(directory, {"threads": 2})({f"x{i}": x for i, x in enumerate(inputs)})
    return [found[f"y{i}"] for i in range(len(inputs))]


@pytest.mark.skipif("x86-64-v2" not in features.levels(), reason="the levels are those of x86-64")
@pytest.mark.parametrize(
    ("cpu", "lanes", "names"),
    [("x86-64-v3", 8, tuple(CASES)), ("x86-64-v2", 4, FEW), ("x86-64-v3", 16, FEW)],
)
def test_every_window(
    cpu: str, lanes: int, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = features.levels()
    if set(known[cpu].flags) - features.machine_flags():
        pytest.skip(f"this processor is below {cpu}")
    wide = machine(cpu)
    monkeypatch.setitem(known, cpu, dataclasses.replace(known[cpu], lanes=lanes))
    if lanes == 16:  # its instruction would be AVX-512's
        wide = dataclasses.replace(machine(cpu), int8=PLAIN_INT8)
        for module in ("kernels", "schedule"):
            name = "machine.machine" if module == "kernels" else "machine"
            monkeypatch.setattr(f"lowerkit.targets.cpu.{module}.{name}", lambda _: wide)
    cases = [case(kind, name) for name in names for kind in OPERATORS]
    found = run(graph_of(cases), [each.x for each in cases], cpu, tmp_path)
    for y, each in zip(found, cases, strict=True):
        close(y, swish(each.expected), (each.kind, each.x.shape, each.window))


def test_the_same_as_the_bodies(tmp_path: Path) -> None:
    cases = [
        case(kind, name) for name in ("1x1, border", "3x3, uneven, 2 images", "groups") for kind in OPERATORS
    ]
    model = graph_of(cases)
    wanted = Reference(model.clone())({f"x{i}": each.x for i, each in enumerate(cases)})
    found = run(model, [each.x for each in cases], features.default_cpu(), tmp_path)
    for i, each in enumerate(cases):
        close(found[i], wanted[f"y{i}"], (each.kind, each.window))


def test_the_definition_is_the_methods_own() -> None:
    x = case("int8", "3x3").x
    steps, step = in_float32(x)
    wanted, wanted_step = dynamic_steps(x, 3)
    np.testing.assert_allclose(step, wanted_step, rtol=1e-6)
    assert np.abs(steps - wanted).max() <= 1  # ties of a step that is rounded


def test_images_that_are_hard_to_quantise(tmp_path: Path) -> None:
    each = case("int8", "3x3")
    x = np.random.default_rng(0).standard_normal((8, 8, 47, 49)).astype(np.float32)  # in more than one piece
    x[0], x[1], x[2] = 0, 3, -1e-3
    x[3] *= 3e33
    x[4, 7, 46, 48], x[5, 0, 0, 0], x[6, 3, 2, 1] = np.nan, np.inf, -np.inf
    fine = [0, 1, 2, 3, 7]
    hard = dataclasses.replace(each, x=x)
    with np.errstate(invalid="ignore"):
        model = graph_of([hard])
    (y,) = run(model, [x], features.default_cpu(), tmp_path)
    for image in fine:
        one = dataclasses.replace(each, x=x[image : image + 1])
        close(y[image], swish(one.expected)[0], image)
    assert not np.isfinite(y[4:7]).any()


def test_quantising_and_what_follows_are_part_of_convolutions() -> None:
    cpu, rng = features.default_cpu(), np.random.default_rng(0)
    window = "pads = [0, 0, 0, 0], strides = [1, 1], dilations = [1, 1], group = 1"
    proto = onnx.parser.parse_model(f"""<ir_version: 11, opset_import: ["": 23, "lowerkit": 1]>
        g (float[1, 3, 20, 20] x) => (float[1, 48, 1, 1] y) {{
            a = Conv (x, w0)
            b = HardSwish (a)
            c = lowerkit.ConvInt8Static <{window}> (b, scale, zero, w1, w_scale)
            d = Add (c, bias)
            e = HardSwish (d)
            y = GlobalAveragePool (e)
        }}""")
    weights = {
        "w0": rng.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "w1": rng.integers(-127, 128, (48, 16, 1, 1)).astype(np.int8),
        "w_scale": np.ones(48, np.float32),
        "bias": np.ones((48, 1, 1), np.float32),
        "scale": SCALE,
        "zero": ZERO,
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in weights.items())
    with tvm.target.Target(features.tvm_target(cpu)):
        module = import_model(ir.serde.deserialize_model(proto), converters(cpu))
    program, _ = lower(module, cpu)
    names = [step.function for step in leaves(program.steps) if isinstance(step, Call)]
    assert [name.split("_")[2] for name in names[:2]] == ["conv2d", "gemm"]
    # The mean is an output, and in the original order therefore.
    assert len(names) <= 4, names


def elsewhere(**dots: Any) -> Machine:
    return dataclasses.replace(machine("x86-64-v4-bf16"), **dots)


@pytest.mark.parametrize("name", ["1x1", "3x3, uneven, 2 images", "dilated", "3x3 of 3 channels, 3 images"])
@pytest.mark.parametrize("kind", list(OPERATORS))
def test_on_other_processors(kind: str, name: str) -> None:
    quads = dataclasses.replace(QUADS, llvm=EMULATED_QUADS)
    processor = elsewhere(int8=quads, bf16=dataclasses.replace(BF16_PAIRS, llvm=EMULATED_PAIRS))
    each = case(kind, name)
    known = {**conv_int8.converters(processor), **conv_bf16.converters(processor)}

    def build(bb: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        weights = [w.view(np.uint16) if kind == "bf16" else w for w in each.weights]
        return known[OPERATORS[kind].name](bb, [x, *map(relax.const, weights)], each.window)

    module, count = expanded(fused(module_of(build, each.x), processor), processor)
    assert count == 1
    close(run_module(module, each.x), each.expected, name)


def test_windows_are_expanded() -> None:
    processor, each = machine(features.default_cpu()), case("static", "dilated")

    def build(bb: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        converter = conv_int8.converters(processor)["ConvInt8Static"]
        return converter(bb, [x, *map(relax.const, each.weights)], each.window)

    module = fused(module_of(build, each.x), processor)
    close(run_module(module, each.x), each.expected, "as TVM writes it")
    found = [f for _, f in module.functions_items() if RUNS in str(f)]
    assert len(found) == 1
    assert expand(found[0], processor) is not None
