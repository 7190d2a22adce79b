"""The cpu target end to end on small graphs: what it computes, refuses, writes and needs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lowerkit.errors import ArtifactError, DataError, PlanError, ToolError, UnsupportedError
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target
from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.runner import CpuRunner
from lowerkit.targets.cpu.target import CpuTarget

TARGET = CpuTarget()

MLP = """
<ir_version: 10, opset_import: ["" : 23]>
mlp (float[2,24] x, float[24,40] w, float[40] b, float[40,5] v) => (float[2,5] y, float[2,40] h)
{
    p = MatMul(x, w)
    q = Add(p, b)
    h = Relu(q)
    l = MatMul(h, v)
    y = Softmax<axis = -1>(l)
}
"""


def parse(text: str, constants: dict[str, np.ndarray] | None = None) -> ir.Model:
    """A model from its text; `constants` become initializers instead of inputs."""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for name, array in (constants or {}).items():
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return model


def compiled(model: ir.Model, directory: Path, **options: object) -> CpuRunner:
    TARGET.emit(model.clone(), options, directory)
    return TARGET.open(directory, options)  # type: ignore[return-value]


def check(
    text: str, inputs: dict[str, np.ndarray], tmp_path: Path, tolerance: float = 1e-5, **kw: object
) -> None:
    """The artifact's outputs equal onnxruntime's in names, shapes, types and, within `tolerance`, values."""
    model = parse(text, kw.get("constants"))  # type: ignore[arg-type]
    expected = Reference(model)(inputs)
    got = compiled(model, tmp_path)(inputs)
    assert list(got) == list(expected)
    for name, want in expected.items():
        assert got[name].shape == want.shape
        assert got[name].dtype == want.dtype
        np.testing.assert_allclose(got[name], want, rtol=tolerance, atol=tolerance)


def mlp_constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"w": (24, 40), "b": (40,), "v": (40, 5)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mlp")
    TARGET.emit(parse(MLP, mlp_constants()), {}, directory)
    return directory


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((2, 24)).astype(np.float32)


def test_computes_what_onnxruntime_computes(mlp: Path, x: np.ndarray) -> None:
    expected = Reference(parse(MLP, mlp_constants()))({"x": x})
    got = CpuRunner(mlp)({"x": x})
    assert list(got) == ["y", "h"]
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_is_registered() -> None:
    assert isinstance(get_target("cpu"), CpuTarget)


def test_outputs_own_their_memory(mlp: Path, x: np.ndarray) -> None:
    runner = CpuRunner(mlp)
    first = runner({"x": x})
    kept = {name: array.copy() for name, array in first.items()}
    runner({"x": -x})
    for name, array in first.items():
        assert array.base is None
        np.testing.assert_array_equal(array, kept[name])


def test_takes_arrays_of_any_layout(mlp: Path, x: np.ndarray) -> None:
    runner = CpuRunner(mlp)
    expected = runner({"x": x})["y"]
    fortran = np.asfortranarray(x)
    offset = np.frombuffer(b"\0" * 4 + x.tobytes(), np.float32)[1:].reshape(x.shape)
    for view in (fortran, offset, np.repeat(x, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(runner({"x": view})["y"], expected)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((2, 24), np.float32), "z": np.zeros(1)}, "input 'z' is unknown"),
        ({"x": np.zeros((2, 24))}, "must be float32, not float64"),
        ({"x": np.zeros((2, 24), ">f4")}, "must be float32, not >f4"),
        ({"x": np.zeros((3, 24), np.float32)}, r"must have shape \[2, 24\], not \[3, 24\]"),
    ],
)
def test_refuses_wrong_inputs(mlp: Path, inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=words):
        CpuRunner(mlp)(inputs)


def test_compiles_to_the_same_bytes_in_any_process(mlp: Path, tmp_path: Path) -> None:
    model = tmp_path / "mlp.onnx"
    ir.save(parse(MLP, mlp_constants()), model)
    code = (
        "import sys, pathlib, onnx_ir as ir; from lowerkit.targets.cpu.target import CpuTarget;"
        "CpuTarget().emit(ir.load(sys.argv[1]), {}, pathlib.Path(sys.argv[2]))"
    )
    again = tmp_path / "again"
    again.mkdir()
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code, str(model), str(again)], check=True, env=env)
    digests = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}
        for directory in (mlp, again)
    ]
    assert digests[0] == digests[1]


def run_python(code: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})


RUN = (
    "import sys, numpy as np; from lowerkit.targets.cpu.runner import CpuRunner;"
    "y = CpuRunner(sys.argv[1])({'x': np.ones((2, 24), np.float32)})['y']; assert abs(y.sum() - 2) < 1e-5;"
)


def test_runs_without_the_compiler(mlp: Path) -> None:
    done = run_python(
        RUN + "assert not {'tvm', 'tvm_ffi', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)", mlp
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", [RUN + "import tvm; ", "import tvm; " + RUN])
def test_lives_beside_the_compiler(mlp: Path, first: str) -> None:
    compile_something = (
        "from tvm import te; a = te.placeholder((4,)); b = te.compute((4,), lambda i: a[i] + 1);"
        "tvm.tirx.build(te.create_prim_func([a, b]));"
    )
    done = run_python(first + compile_something + RUN, mlp)
    assert done.returncode == 0, done.stderr


def standalone(directory: Path, inputs: Path, outputs: Path) -> subprocess.CompletedProcess[str]:
    """run.py of an artifact where lowerkit and tvm cannot be imported."""
    block = (
        "import sys, runpy\n"
        "for name in ('lowerkit', 'tvm', 'tvm_ffi', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return run_python(block, directory / "run.py", inputs, outputs)


def test_standalone_runner_needs_numpy_alone(mlp: Path, x: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=x)
    done = standalone(mlp, tmp_path / "in.npz", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz", allow_pickle=False) as got:
        expected = CpuRunner(mlp)({"x": x})
        assert got.files == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)


def test_standalone_runner_refuses_in_one_line(mlp: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 3), np.float32))
    done = standalone(mlp, tmp_path / "in.npz", tmp_path / "out.npz")
    assert done.returncode == 2
    assert done.stderr == "error: input 'x' must have shape [2, 24], not [2, 3]\n"


WIDE = """
<ir_version: 10, opset_import: ["" : 23]>
wide (float[256,512] x, float[512,512] w) => (float[256,512] y)
{
    a = MatMul(x, w)
    b = Tanh(a)
    c = MatMul(b, w)
    d = Tanh(c)
    y = MatMul(d, w)
}
"""


def test_threads_share_the_work_and_change_no_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    inputs = {"x": rng.standard_normal((256, 512)).astype(np.float32)}
    weights = {"w": rng.standard_normal((512, 512)).astype(np.float32)}
    TARGET.emit(parse(WIDE, weights), {}, tmp_path)
    results, share = {}, {}
    # In one process, so that pools of different sizes live side by side.
    for threads in (1, 2, 1):
        runner = CpuRunner(tmp_path, threads)
        runner(inputs)
        process, own = time.process_time(), time.thread_time()
        for _ in range(20):
            results[threads] = runner(inputs)["y"]
        share[threads] = (time.thread_time() - own) / (time.process_time() - process)
    # The part of the processor time that was spent in the calling thread, the rest being its workers'.
    assert share[1] > 0.85
    assert share[2] < 0.75
    np.testing.assert_array_equal(results[1], results[2])


def test_an_artifact_compiled_in_the_place_of_another_is_the_one_that_runs(tmp_path: Path) -> None:
    inputs = {"x": np.arange(3, dtype=np.float32)}
    first = compiled(parse(HEADER + "g (float[3] x) => (float[3] y) { y = Neg(x) }"), tmp_path)
    np.testing.assert_array_equal(first(inputs)["y"], -inputs["x"])
    second = compiled(parse(HEADER + "g (float[3] x) => (float[3] y) { y = Add(x, x) }"), tmp_path)
    np.testing.assert_array_equal(second(inputs)["y"], 2 * inputs["x"])
    np.testing.assert_array_equal(first(inputs)["y"], -inputs["x"])


def test_calls_from_many_threads_do_not_mix(mlp: Path) -> None:
    runner = CpuRunner(mlp, 2)
    inputs = [np.full((2, 24), value, np.float32) for value in range(8)]
    expected = [runner({"x": value})["y"] for value in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(lambda v: runner({"x": v})["y"], inputs), expected, strict=True):
                np.testing.assert_array_equal(got, want)


def test_refuses_another_machine_and_missing_files(mlp: Path, tmp_path: Path) -> None:
    for file in mlp.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "runtime.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "machine": "pdp11"}))
    with pytest.raises(ToolError, match="is for pdp11"):
        CpuRunner(tmp_path)
    path.write_text(json.dumps(metadata))
    (tmp_path / "model.so").write_bytes(b"no library")
    with pytest.raises(ArtifactError, match="cannot load"):
        CpuRunner(tmp_path)
    (tmp_path / "model.so").unlink()
    with pytest.raises(ArtifactError, match=r"model.so is missing"):
        CpuRunner(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"cannot read .*runtime.json"):
        CpuRunner(tmp_path)


def test_refuses_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"no gcc.*apt-get install gcc libc6-dev"):
        TARGET.emit(parse(MLP, mlp_constants()), {}, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": -1}, "threads must be"),
        ({"threads": True}, "threads must be"),
        ({"cpu": "i486"}, "cpu = 'i486' is not known.*x86-64-v3"),
        ({"turbo": 1}, "no option 'turbo'.*cpu, threads"),
    ],
)
def test_refuses_wrong_options(options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=words):
        TARGET.emit(parse(MLP, mlp_constants()), options, tmp_path)


@pytest.mark.parametrize("cpu", features.LEVELS["x86_64"])
def test_every_level_compiles_and_runs_or_is_refused(cpu: str, tmp_path: Path, x: np.ndarray) -> None:
    model = parse(MLP, mlp_constants())
    TARGET.emit(model.clone(), {"cpu": cpu}, tmp_path)
    lacking = set(features.level(cpu).flags) - features.machine_flags()
    if not lacking:
        got = TARGET.open(tmp_path, {"cpu": cpu})({"x": x})["y"]
        np.testing.assert_allclose(got, Reference(model)({"x": x})["y"], rtol=1e-5, atol=1e-6)
    else:
        with pytest.raises(ToolError, match=rf"is for {cpu}, and this processor lacks ({'|'.join(lacking)})"):
            TARGET.open(tmp_path, {"cpu": cpu})


def test_native_is_the_best_level_that_runs_here() -> None:
    model = parse(MLP, mlp_constants())
    chosen = TARGET.complete(model, [], {"cpu": "native", "threads": 3})
    assert chosen["threads"] == 3
    flags = features.machine_flags()
    runs = [name for name, level in features.levels().items() if set(level.flags) <= flags]
    assert chosen["cpu"] == runs[-1]
    assert TARGET.complete(model, [], {"threads": 3}) == {"threads": 3}


def test_levels_say_what_templates_may_use() -> None:
    assert [features.has(cpu, "vnni") for cpu in features.LEVELS["x86_64"]] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert [features.has(cpu, "bf16") for cpu in features.LEVELS["x86_64"]] == [
        False,
        False,
        False,
        False,
        True,
    ]
    assert features.tvm_target("x86-64-v3") == {"kind": "llvm", "mcpu": "x86-64-v3"}
    assert features.tvm_target("x86-64-v4-bf16")["mattr"] == ["+avx512vnni", "+avx512bf16"]


def test_probe_returns_intermediate_values(x: np.ndarray) -> None:
    model = parse(MLP, mlp_constants())
    taps = ["q", "h", "l", "q"]
    expected = Reference(model, taps=["q", "l"])({"x": x})
    got = TARGET.probe(model, {}, taps)({"x": x})
    assert sorted(got) == ["h", "l", "q", "y"]
    for name, array in got.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5)


def test_refuses_operators_of_other_domains(tmp_path: Path) -> None:
    model = parse(
        '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'
        "g (float[2,3] x) => (float[2,3] y) { y = com.microsoft.Gelu(x) }"
    )
    with pytest.raises(UnsupportedError, match=r"Gelu.*com\.microsoft"):
        TARGET.emit(model, {}, tmp_path)


def test_refuses_weights_beyond_what_a_library_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is compiled; equal weights are stored once, and count once."""
    from lowerkit.targets.cpu import build

    w = np.ones((16, 16), np.float32)
    text = """<ir_version: 10, opset_import: ["" : 23]>
g (float[2,16] x, float[16,16] v, float[16,16] w) => (float[2,16] y) { a = MatMul(x, v) y = MatMul(a, w) }"""
    monkeypatch.setattr(build, "_LARGEST", 1500)
    build.check_weights(parse(text, {"v": w, "w": w}))
    too_many = parse(text, {"v": w, "w": 2 * w})
    with pytest.raises(UnsupportedError, match=r"constants take 2048 bytes.*at most 1500.*fewer bits"):
        build.check_weights(too_many)
    monkeypatch.setattr(build, "build_library", None)  # not reached
    with pytest.raises(UnsupportedError, match="constants take 2048 bytes"):
        CpuTarget().emit(too_many, {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_names_the_node_that_the_front_end_refuses(tmp_path: Path) -> None:
    model = parse('<ir_version: 10, opset_import: ["" : 23]> g (float[2,3] x) => (float y) { y = Det(x) }')
    node = next(iter(model.graph))
    node.name = "determinant"
    with pytest.raises(UnsupportedError, match="determinant"):
        TARGET.emit(model, {}, tmp_path)


HEADER = '<ir_version: 10, opset_import: ["" : 23]> '
ODD_GRAPHS = {
    "an input is an output": ("g (float[3] x) => (float[3] x, float[3] y) { y = Neg(x) }", {"x": (3,)}),
    "only the input is an output": ("g (float[3] x) => (float[3] x) { }", {"x": (3,)}),
    "scalars": ("g (float x) => (float y) { y = Exp(x) }", {"x": ()}),
    "no inputs": ("g () => (float[2] y) { y = Constant<value = float[2] {1, 2}>() }", {}),
    "a constant is an output": (
        "g (float[2] x) => (float[2] c, float[2] y) "
        "{ c = Constant<value = float[2] {1, 2}>() y = Add(x, c) }",
        {"x": (2,)},
    ),
    "two outputs of one value": (
        "g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x) z = Identity(y) }",
        {"x": (2,)},
    ),
    "an axis of length 0": ("g (float[0,3] x) => (float[0,3] y) { y = Neg(x) }", {"x": (0, 3)}),
    "a sum of nothing": (
        "g (float[2,0] x) => (float[2] y) { y = ReduceSum<keepdims = 0>(x, a) }",
        {"x": (2, 0)},
    ),
    "axes of length 1": ("g (float[1,1,1] x) => (float[1,1,1] y) { y = Softmax(x) }", {"x": (1, 1, 1)}),
    "an output twice": (
        "g (float[2] x) => (float[2] y, float[2] z, float[2] v) { y = Neg(x) z = Identity(x) v = Identity(y) }",
        {"x": (2,)},
    ),
    "an output that is read again": (
        "g (float[2,3] x) => (float[2,3] y, float[1,6] z) { y = Neg(x) f = Flatten<axis = 0>(y) z = Exp(f) }",
        {"x": (2, 3)},
    ),
    "an output of another shape": (
        "g (float[2,3] x) => (float[1,6] z) { y = Neg(x) z = Flatten<axis = 0>(y) }",
        {"x": (2, 3)},
    ),
    "an unused input": ("g (float[2] x, float[2] u) => (float[2] y) { y = Neg(x) }", {"x": (2,), "u": (2,)}),
}


@pytest.mark.parametrize("name", ODD_GRAPHS)
def test_odd_graphs(name: str, tmp_path: Path) -> None:
    text, shapes = ODD_GRAPHS[name]
    constants = {}
    if "a)" in text:
        text, constants = text.replace("x) =>", "x, int64[1] a) =>"), {"a": np.array([1], np.int64)}
    rng = np.random.default_rng(4)
    inputs = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    check(HEADER + text, inputs, tmp_path, constants=constants)


@pytest.mark.parametrize("dtype", ["float", "double", "float16", "int64", "int32", "int8", "uint8", "bool"])
def test_types_of_inputs_and_outputs(dtype: str, tmp_path: Path) -> None:
    kind = ir.DataType[dtype.upper()].numpy()
    inputs = {"x": (np.arange(40).reshape(5, 8) % 3).astype(kind)}
    text = f"{HEADER} g ({dtype}[5,8] x) => ({dtype}[10,8] y) {{ z = Flatten(x) y = Concat<axis = 0>(x, z) }}"
    check(text, inputs, tmp_path)
