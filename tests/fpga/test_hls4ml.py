"""Designs and ONNX models through hls4ml with lowerkit's kernels: its predictions are the oracle's, bit for bit.

Three tests hold what hls4ml's own layers get wrong without a word, each beside what lowerkit's kernels give.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import parse

from lowerkit import artifact as files
from lowerkit.errors import ArtifactError, UnsupportedError
from lowerkit.passes import registry
from lowerkit.plan import Plan
from lowerkit.reference import Reference
from lowerkit.targets.fpga.design import Design, Layer, Port, codes_of, simulate
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.hls4ml import open_design, register, take_over
from lowerkit.targets.fpga.kernels import elementwise
from lowerkit.targets.fpga.lang import cpp
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.target import FpgaTarget

hls4ml = pytest.importorskip("hls4ml")

#: What hls4ml takes for every value where nothing else is said.
DEFAULT = Fixed(16, 6)
ROWS, WIDTH, COLUMNS = 4, 8, 5


def weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Normal numbers, by name."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def designed(model: ir.Model, samples: list[np.ndarray]) -> Design:
    """The design of a graph with the one input x, calibrated on samples."""
    target = FpgaTarget()
    return target.design(model, target.complete(model, [{"x": s} for s in samples], {}))


def assert_bit_exact(design: Design, inputs: dict[str, np.ndarray], folder: Path, **settings: Any) -> None:
    """hls4ml's predictions equal the oracle's numbers, and these are not all the same."""
    model = open_design(design, folder / "project", **settings)
    model.compile()
    given = [np.ascontiguousarray(inputs[p.value]) for p in design.inputs]
    found = model.predict(given[0] if len(given) == 1 else given)
    expected = simulate(design, codes_of(design, inputs))
    for port, got in zip(design.outputs, found if len(design.outputs) > 1 else [found], strict=True):
        want = port.format.dequantise(expected[port.value])
        assert len(np.unique(want)) > 1
        np.testing.assert_array_equal(got, want.reshape(len(want), -1))


def test_an_mlp_is_bit_exact(tmp_path: Path) -> None:
    model = parse(
        """(float[1,12] x) => (float[1,4] y) {
            h = Gemm(x, a, b)
            r = Relu(h)
            l = Gemm(r, c, d)
            y = Softmax<axis=-1>(l)
        }""",
        **weights(0, a=(12, 10), b=(10,), c=(10, 4), d=(4,)),
    )
    rng = np.random.default_rng(1)
    design = designed(model, [rng.normal(size=(1, 12)).astype(np.float32) for _ in range(16)])
    # Twice as wide as the calibrated range, so that inputs saturate too.
    x = rng.normal(0, 2, (200, 12)).astype(np.float32)
    assert_bit_exact(design, {"x": x}, tmp_path, backend="Vivado")


def test_a_transformer_block_is_bit_exact(tmp_path: Path) -> None:
    model = parse(
        """(float[1,4,8] x) => (float[1,4,8] y) {
            n = LayerNormalization(x, g, e)
            q = MatMul(n, wq)
            k = MatMul(n, wk)
            t = Transpose<perm=[0,2,1]>(k)
            s = MatMul(q, t)
            p = Softmax<axis=-1>(s)
            a = MatMul(p, n)
            r = Add(a, x)
            h = MatMul(r, wh)
            i = Add(h, bh)
            u = Gelu(i)
            o = MatMul(u, wo)
            y = Add(o, r)
        }""",
        **weights(2, g=(8,), e=(8,), wq=(8, 8), wk=(8, 8), wh=(8, 16), bh=(16,), wo=(16, 8)),
    )
    rng = np.random.default_rng(3)
    design = designed(model, [rng.normal(size=(1, 4, 8)).astype(np.float32) for _ in range(16)])
    x = rng.normal(0, 2, (100, 4, 8)).astype(np.float32)
    assert_bit_exact(design, {"x": x}, tmp_path)


def test_every_kind_of_format_passes_its_bits(tmp_path: Path) -> None:
    """Unsigned ones, points outside of the bits, a single bit; ties and numbers out of range among the inputs."""
    formats = [Fixed(8, 3), Fixed(7, 0, False), Fixed(10, -4), Fixed(6, 9), Fixed(1, 1, False), Fixed(40, 12)]
    inputs, outputs, layers = [], [], []
    for i, form in enumerate(formats):
        kernel, schedule = elementwise.requantise(f"l{i}", (6,), form, form)
        inputs.append(Port(f"x{i}", (6,), form))
        outputs.append(Port(f"y{i}", (6,), form))
        layers.append(Layer(f"l{i}", "", "Cast", kernel, (f"x{i}",), (f"y{i}",), schedule))
    values = {port.value: port for port in (*inputs, *outputs)}
    design = Design("casts", tuple(inputs), tuple(outputs), values, {}, tuple(layers))
    rng = np.random.default_rng(4)
    numbers = {}
    for port in inputs:
        halves = rng.integers(2 * port.format.range.low - 4, 2 * port.format.range.high + 5, (60, 6))
        numbers[port.value] = halves * port.format.step / 2
    assert_bit_exact(design, numbers, tmp_path)


def artifact(folder: Path, target: str, options: Mapping[str, Any]) -> tuple[ir.Model, Path]:
    """A graph, and a folder with what every artifact has of it."""
    model = parse("(float[1,12] x) => (float[1,4] y) { y = Gemm(x, a, b) }", **weights(8, a=(12, 4), b=(4,)))
    folder.mkdir()
    for name in (files.ORIGINAL, files.LOWERED):
        files.save_model(model, folder / name)
    plan = Plan(target, (), options)
    (folder / files.PLAN).write_text(plan.to_toml())
    files.write_manifest(folder, {"name": "model.onnx"}, model, plan)
    return model, folder


def test_an_artifact_opens_as_the_design_that_was_compiled(tmp_path: Path) -> None:
    options = {"formats": {"x": "ap_fixed<12,3>", "y": "ap_fixed<14,5>"}, "weight_width": 8}
    model, folder = artifact(tmp_path / "artifact", "fpga", options)
    graph = open_design(folder, tmp_path / "project")
    layers = [layer for layer in graph.get_layers() if layer.class_name == "LowerkitKernel"]
    expected = FpgaTarget().design(model, options).layers
    assert [cpp.function(layer.kernel()) for layer in layers] == [cpp.function(la.kernel) for la in expected]
    assert str(graph.get_input_variables()[0].type.precision) == "fixed<12,3,RND_CONV,SAT,0>"


def test_an_artifact_of_another_target_is_refused(tmp_path: Path) -> None:
    _, folder = artifact(tmp_path / "artifact", "cpu", {})
    with pytest.raises(ArtifactError, match="compiled for the target cpu, not for fpga"):
        open_design(folder, tmp_path / "project")


# ONNX models through hls4ml's own converter.


def named(model: ir.Model) -> onnx.ModelProto:
    """As hls4ml wants it: nodes with names, constants with shapes."""
    proto = ir.serde.serialize_model(model)
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type.lower()}_{i}"
    for tensor in proto.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        proto.graph.value_info.append(value)
    return proto


def converted(
    proto: onnx.ModelProto, folder: Path, result: Mapping[str, str] | None = None, **settings: Any
) -> Any:
    """hls4ml's graph of an ONNX model, with the types that it proposes for fixed<16,6>, but for some results."""
    config = hls4ml.utils.config_from_onnx_model(
        proto, granularity="name", backend="Vitis", default_precision="fixed<16,6>"
    )
    for name, precision in (result or {}).items():
        config["LayerName"][name]["Precision"]["result"] = precision
    return hls4ml.converters.convert_from_onnx_model(
        proto, output_dir=str(folder), backend="Vitis", hls_config=config, **settings
    )


OWN = """(float[1,4,8] x) => (float[1,4,8] s, float[1,4,5] c, float[1,4,4] m, float[1,4,8] g, float[1,4,8] l) {
    s = Softmax<axis=-1>(x)
    c = MatMul(x, w)
    t = Transpose<perm=[0,2,1]>(x)
    m = MatMul(x, t)
    n = LayerNormalization(x, a, b)
    g = Gelu(n)
    l = Softmax<axis=-1>(x)
}"""


def samples() -> np.ndarray:
    """Numbers that the default format holds exactly: [20, 4, 8]."""
    x = np.random.default_rng(6).normal(size=(20, ROWS, WIDTH))
    return DEFAULT.dequantise(DEFAULT.quantise(x)).astype(np.float32)


def interpreted(graph: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """The codes of every value of hls4ml's graph, by the kernels of its layers in the interpreter."""
    values = {"x": DEFAULT.quantise(x)}
    for layer in graph.get_layers():
        if layer.class_name == "LowerkitNode":
            kernel = layer.kernel()
            given = {
                array.name: values[name].reshape(-1, *array.shape)
                for array, name in zip(kernel.inputs, layer.inputs, strict=True)
            }
            (values[layer.outputs[0]],) = run(kernel, given).values()
    return values


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Each output of OWN after `take_over`: how far hls4ml's predictions are from the float model's.

    They are the interpreter's, bit for bit.
    """
    model = parse(OWN, **weights(5, w=(WIDTH, COLUMNS), a=(WIDTH,), b=(WIDTH,)))
    lowered = next(node for node in model.graph if node.outputs[0].name == "l")
    registry.make("softmax", "shift", {}).rewrite(model, lowered)
    register()
    register()  # A second call changes nothing.
    graph = converted(take_over(ir.serde.serialize_model(model)), tmp_path_factory.mktemp("own"))
    assert {layer.class_name for layer in graph.get_layers()} == {"Input", "LowerkitNode"}
    graph.compile()
    x = samples()
    codes, reference = interpreted(graph, x), Reference(model)
    found = {}
    for value, got in zip(model.graph.outputs, graph.predict(x), strict=True):
        name = value.name or ""
        np.testing.assert_array_equal(got, DEFAULT.dequantise(codes[name]).reshape(len(x), -1))
        want = np.stack([reference({"x": x[i : i + 1]})[name].ravel() for i in range(len(x))])
        found[name] = np.abs(got - want)
    return found


def test_a_product_of_two_activations_is_not_emitted_by_hls4ml(
    own: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = parse("(float[1,4,8] a, float[1,8,4] b) => (float[1,4,4] y) { y = MatMul(a, b) }")
    graph = converted(named(model), tmp_path)
    graph.write()
    assert graph.graph["matmul_0"].get_attr("function_cpp") is None
    # The top function calls nothing, so that nothing writes the output.
    assert "nnet::" not in (tmp_path / "firmware" / "myproject.cpp").read_text()
    assert own["m"].max() < 4 * DEFAULT.step


def test_softmax_of_three_axes_is_one_of_all_elements_in_hls4ml(
    own: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = parse("(float[1,4,8] x) => (float[1,4,8] y) { y = Softmax<axis=-1>(x) }")
    graph = converted(named(model), tmp_path)
    graph.compile()
    sums = graph.predict(samples()).reshape(-1, ROWS, WIDTH).sum(axis=-1)
    # Rows that should sum to 1 share one between them.
    assert np.all(sums.sum(axis=-1) < 1.5)
    assert own["s"].max() < 2 * DEFAULT.step


def test_a_product_with_a_constant_reads_beyond_its_weights_in_hls4ml(
    own: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = parse(
        "(float[1,4,8] x) => (float[1,4,5] y) { y = MatMul(x, w) }", **weights(7, w=(WIDTH, COLUMNS))
    )
    graph = converted(named(model), tmp_path)
    (layer,) = [layer for layer in graph.get_layers() if layer.class_name != "Input"]
    # A convolution with as many filters as the whole output has numbers, and a matrix of the right size.
    assert layer.get_output_variable().size() == ROWS * ROWS * COLUMNS
    assert layer.get_weights("weight").data_length == WIDTH * COLUMNS
    assert layer.get_attr("n_chan") * layer.get_attr("n_filt") == WIDTH * ROWS * COLUMNS
    assert own["c"].max() < 2 * DEFAULT.step


def test_operators_that_hls4ml_has_not_are_read(own: dict[str, np.ndarray]) -> None:
    # GELU's slope is below 1.13, and its input is off by a step of the format and what LayerNorm's kernel rounds.
    assert own["g"].max() < 4 * DEFAULT.step


def test_a_lowered_graph_keeps_its_methods(own: dict[str, np.ndarray]) -> None:
    # The reference is the method's own function, in steps of 2^-15.
    assert own["l"].max() < DEFAULT.step


# Refusals.


def test_a_method_that_is_not_told_is_refused(tmp_path: Path) -> None:
    model = parse("(float[1,4,8] x) => (float[1,4,8] y) { y = Softmax<axis=-1>(x) }")
    registry.make("softmax", "shift", {}).rewrite(model, model.graph[0])
    proto = take_over(ir.serde.serialize_model(model))
    del proto.graph.node[0].metadata_props[:]
    register()
    with pytest.raises(UnsupportedError, match="does not say its method"):
        converted(proto, tmp_path)


def test_an_operator_of_another_domain_is_refused(tmp_path: Path) -> None:
    proto = named(parse("(float[1,4,8] x) => (float[1,4,8] y) { y = Gelu(x) }"))
    proto.graph.node[0].domain = "com.example"
    register()
    with pytest.raises(UnsupportedError, match="another domain"):
        converted(proto, tmp_path)


def test_streams_are_refused(tmp_path: Path) -> None:
    model = parse("(float[1,4,8] x) => (float[1,4,8] y) { y = Gelu(x) }")
    register()
    with pytest.raises(UnsupportedError, match=r"layer 'gelu_0': .*arrays, not streams\. Set io_type"):
        converted(named(model), tmp_path, io_type="io_stream")


def test_a_transpose_that_would_change_formats_is_refused(tmp_path: Path) -> None:
    model = parse("(float[1,4,8] x) => (float[1,8,4] y) { t = Gelu(x)  y = Transpose<perm=[0,2,1]>(t) }")
    register()
    with pytest.raises(UnsupportedError, match=r"Set its result precision to ap_fixed<12,6>"):
        converted(take_over(named(model)), tmp_path, {"gelu_0": "fixed<12,6>", "transpose_1": "fixed<16,6>"})


def test_an_old_softmax_is_refused() -> None:
    model = parse("(float[2,8] x) => (float[2,8] y) { y = Softmax<axis=1>(x) }", opset=11)
    with pytest.raises(UnsupportedError, match="opset 11"):
        take_over(ir.serde.serialize_model(model))


def test_outputs_that_graphs_of_hls4ml_cannot_say_are_refused(tmp_path: Path) -> None:
    kernel, schedule = elementwise.relu("l0", (6,), DEFAULT, DEFAULT)
    x, y, v = (Port(name, (6,), DEFAULT) for name in "xyv")
    layer = Layer("l0", "", "Relu", kernel, ("x",), ("y",), schedule)
    ports = {port.value: port for port in (x, y, v)}
    for outputs, views, reason in (
        ((y, v), {"v": "y"}, "'v' is another one's twin"),
        ((y, v), {"v": "x"}, "'v' is an input"),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            open_design(Design("d", (x,), outputs, ports, views, (layer,)), tmp_path)


def test_layers_that_share_a_kernel_are_refused(tmp_path: Path) -> None:
    kernel, schedule = elementwise.relu("unit", (6,), DEFAULT, DEFAULT)
    x, y = (Port(name, (6,), DEFAULT) for name in "xy")
    layer = Layer("l0", "first", "MatMul", kernel, ("x",), ("y",), schedule, job=0)
    with pytest.raises(UnsupportedError, match="node 'first': several layers share its kernel"):
        open_design(Design("d", (x,), (y,), {"x": x, "y": y}, {}, (layer,)), tmp_path)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an artifact"):
        open_design(tmp_path, tmp_path / "project")


def test_hls4ml_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, lowerkit.targets.fpga.hls4ml, lowerkit.targets.fpga.target; print('hls4ml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
