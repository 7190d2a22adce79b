"""The command line: every refusal is one line on stderr, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowerkit import cli

VIT = Path(__file__).parent.parent / "examples" / "models" / "vit_digits.onnx"


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def lowerkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["lowerkit", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        with warnings.catch_warnings():
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def save(
    path: Path,
    node: onnx.NodeProto,
    output: list,
    weights: dict[str, np.ndarray] | None = None,
    **shapes: list,
) -> Path:
    """A model of one node; inputs by name and shape, and the shape of output `y`."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shapes.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph([node], "g", inputs, [result], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def matmul(path: Path, weight: np.ndarray | None = None, batch: int | str = 2) -> Path:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")
    weights = {"w": np.ones((3, 4), np.float32) if weight is None else weight}
    return save(path, node, [batch, 4], weights, x=[batch, 3])


def refused(result: Result, *words: str) -> None:
    """Exit code 2, one line on stderr that names what is at fault, no traceback."""
    assert result.code == 2, result
    lines = [line for line in result.err.splitlines() if "warning:" not in line]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("lowerkit: error: ")
    for word in words:
        assert word in lines[0]


def not_onnx(folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_text("I am a letter, not a model.\n")
    return path


def truncated(folder: Path) -> Path:
    path = folder / "m.onnx"
    content = VIT.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def external(folder: Path, location: str) -> Path:
    path = folder / "models" / "m.onnx"
    path.parent.mkdir()
    matmul(path)
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", "48")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    (folder / "outside.bin").write_bytes(bytes(48))
    return path


def unknown_opset(folder: Path) -> Path:
    path = matmul(folder / "m.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())
    return path


def unsupported_operator(folder: Path) -> Path:
    node = helper.make_node("Det", ["x"], ["y"], name="odd_one")
    return save(folder / "m.onnx", node, [5], x=[5, 3, 3])


BAD_MODELS = {
    "missing": (lambda f: f / "none.onnx", ["none.onnx"]),
    "a folder": (lambda f: f, []),
    "not onnx": (not_onnx, ["m.onnx"]),
    "truncated": (truncated, ["m.onnx"]),
    "external data missing": (lambda f: external(f, "gone.bin"), ["gone.bin"]),
    "external data outside": (lambda f: external(f, "../outside.bin"), ["outside"]),
    "unknown opset": (unknown_opset, ["99"]),
    "unsupported operator": (unsupported_operator, ["odd_one", "Det"]),
    "dynamic dimension": (lambda f: matmul(f / "m.onnx", batch="batch"), ["'x'", "--shape x:"]),
    "NaN weight": (
        lambda f: matmul(f / "m.onnx", np.array([[np.nan] * 4] * 3, np.float32)),
        ["'w'", "NaN"],
    ),
    "infinite weight": (lambda f: matmul(f / "m.onnx", np.full((3, 4), np.inf, np.float32)), ["'w'"]),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models_are_refused(tmp_path: Path, lowerkit: Cli, case: str) -> None:
    make, words = BAD_MODELS[case]
    model = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    refused(lowerkit("compile", model, "-o", tmp_path / "deep" / "out"), *words)
    assert sorted(tmp_path.rglob("*")) == before


SAMPLE = np.ones((2, 3), np.float32)
BAD_DATA = {
    "wrong name": ({"z": SAMPLE}, ["z", "x"]),
    "wrong shape": ({"x": np.ones((2, 5), np.float32)}, ["x", "5"]),
    "wrong dtype": ({"x": SAMPLE.astype(np.complex64)}, ["x", "complex64"]),
    "NaN": ({"x": np.full((2, 3), np.nan, np.float32)}, ["x"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_calibration_is_refused(tmp_path: Path, lowerkit: Cli, case: str) -> None:
    arrays, words = BAD_DATA[case]
    np.savez(tmp_path / "d.npz", **arrays)
    model = matmul(tmp_path / "m.onnx")
    result = lowerkit("compile", model, "-o", tmp_path / "out", "--calibration", tmp_path / "d.npz")
    refused(result, *words)
    assert not (tmp_path / "out").exists()


def test_unwritable_and_existing_output(tmp_path: Path, lowerkit: Cli) -> None:
    model = matmul(tmp_path / "m.onnx")
    refused(lowerkit("compile", model, "-o", model / "out"), "cannot write")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("dear")
    refused(lowerkit("compile", model, "-o", tmp_path / "there"), "already exists", "--force")
    refused(lowerkit("compile", model, "-o", tmp_path / "there", "--force"), "is not an artifact")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target", "abacus"], ["abacus", "cpu"]),
        (["--softmax", "guess"], ["guess", "online"]),
        (["--shape", "x"], ["--shape x"]),
        (["--shape", "q:1,2"], ["'q'"]),
        (["--option", "colour=red"], ["colour"]),
        (["--option", "nonsense"], ["nonsense"]),
        (["--plan", "none.toml"], ["none.toml"]),
    ],
)
def test_bad_flags_are_refused(tmp_path: Path, lowerkit: Cli, flags: list[str], words: list[str]) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], name="attention")
    model = save(tmp_path / "m.onnx", node, [2, 3], x=[2, 3])
    refused(lowerkit("compile", model, "-o", tmp_path / "out", *flags), *words)
    assert not (tmp_path / "out").exists()


def test_a_plan_for_another_model_is_refused(tmp_path: Path, lowerkit: Cli) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], name="attention")
    model = save(tmp_path / "m.onnx", node, [2, 3], x=[2, 3])
    plan = lowerkit("plan", model)
    assert plan.code == 0
    (tmp_path / "p.toml").write_text(plan.out.replace("attention", "elsewhere"))
    refused(lowerkit("compile", model, "-o", tmp_path / "out", "--plan", tmp_path / "p.toml"), "elsewhere")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small artifact, made by the installed command itself."""
    folder = tmp_path_factory.mktemp("compiled")
    node = helper.make_node("Softmax", ["x"], ["y"], name="attention")
    save(folder / "m.onnx", node, [2, 3], x=[2, 3])
    np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32))
    command = [
        sys.executable,
        "-m",
        "lowerkit",
        "compile",
        "m.onnx",
        "-o",
        "out",
        "--calibration",
        "data.npz",
    ]
    done = subprocess.run(
        [*command, "--dump-stages"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_compile_leaves_the_promised_files(compiled: Path) -> None:
    names = {path.name for path in (compiled / "out").iterdir()}
    promised = {"manifest.json", "plan.toml", "original.onnx", "lowered.onnx", "report.json", "report.html"}
    assert promised | {"model.so", "run.py", "stages"} <= names
    stages = sorted(path.name for path in (compiled / "out" / "stages").iterdir())
    assert stages[0] == "00-original.onnx"
    assert stages[-1].endswith("-lowered.onnx")
    for stage in (compiled / "out" / "stages").iterdir():
        onnx.checker.check_model(str(stage), full_check=True)


def test_run_writes_what_the_model_computes(compiled: Path, tmp_path: Path, lowerkit: Cli) -> None:
    output = tmp_path / "result.npz"
    result = lowerkit("run", compiled / "out", "--input", compiled / "data.npz", "--output", output)
    assert result.code == 0, result.err
    with np.load(compiled / "data.npz") as data, np.load(output) as found:
        exp = np.exp(data["x"].astype(np.float64))
        np.testing.assert_allclose(found["y"], exp / exp.sum(1, keepdims=True), atol=1e-6)


def test_validate_judges_bounds(compiled: Path, lowerkit: Cli) -> None:
    data = ("--data", compiled / "data.npz")
    good = lowerkit("validate", compiled / "out", *data, "--max-error", "1e-5")
    assert good.code == 0, good.err
    broken = lowerkit("validate", compiled / "out", *data, "--max-error", "1e-12")
    assert broken.code == 1
    assert "bound broken" in broken.err
    as_json = lowerkit("validate", compiled / "out", *data, "--json")
    assert json.loads(as_json.out)["samples"] == 3
    refused(lowerkit("validate", compiled / "out", *data, "--max-error", "1", "--min-agreement", "1"))


def test_plan_round_trip_and_determinism(compiled: Path, tmp_path: Path, lowerkit: Cli) -> None:
    """The artifact's own plan, fed back in another process, gives the same bytes."""
    result = lowerkit(
        *("compile", compiled / "m.onnx", "-o", tmp_path / "out"),
        *("--calibration", compiled / "data.npz", "--plan", compiled / "out" / "plan.toml", "--dump-stages"),
    )
    assert result.code == 0, result.err
    manifest = json.loads((compiled / "out" / "manifest.json").read_text())
    for name in ["manifest.json", *manifest["files"]]:
        assert (tmp_path / "out" / name).read_bytes() == (compiled / "out" / name).read_bytes(), name


def test_edited_artifact_is_refused(compiled: Path, tmp_path: Path, lowerkit: Cli) -> None:
    import shutil

    shutil.copytree(compiled / "out", tmp_path / "out")
    plan = tmp_path / "out" / "plan.toml"
    plan.write_text(plan.read_text() + "\n")
    refused(lowerkit("run", tmp_path / "out", "--input", "x.npz", "--output", "y.npz"), "plan.toml")


@pytest.mark.parametrize("command", ["inspect", "plan", "passes", "targets"])
def test_json_and_tables(compiled: Path, lowerkit: Cli, command: str) -> None:
    arguments = [compiled / "m.onnx"] if command in ("inspect", "plan") else []
    machine, people = lowerkit(command, *arguments, "--json"), lowerkit(command, *arguments)
    assert machine.code == people.code == 0, machine.err + people.err
    assert json.loads(machine.out)
    assert people.out.strip()
    with pytest.raises(json.JSONDecodeError):
        json.loads(people.out)


def test_help_teaches_every_command(lowerkit: Cli) -> None:
    for command in ([], ["inspect"], ["plan"], ["compile"], ["run"], ["validate"], ["passes"], ["targets"]):
        result = lowerkit(*command, "--help")
        assert result.code == 0
        assert len(result.out.splitlines()) > 5
    assert lowerkit("--version").out.startswith("lowerkit ")
    assert lowerkit("compile").code == 2


def test_importing_is_light() -> None:
    heavy = ["tvm", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "matplotlib"]
    code = f"import sys, lowerkit; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_survive_their_own_imports() -> None:
    """A submodule of the name of a function would take its place once imported."""
    import lowerkit

    for _ in range(2):
        for name in lowerkit.__all__:
            assert getattr(lowerkit, name) is not None
        doors = (lowerkit.load, lowerkit.inspect, lowerkit.compile, lowerkit.validate)
        assert all(callable(door) for door in doors)


def activations(folder: Path) -> tuple[Path, Path]:
    """A model of six functions in a row, and calibration data for it."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[2,64] x) => (float[2,64] y) {'
        "one = Constant <value = float {1.0}> () s = Sigmoid(x) silu = Mul(x, s) t = Tanh(silu) e = Exp(t)"
        "more = Add(e, one) root = Sqrt(more) r = Reciprocal(root) p = Softplus(r) y = Erf(p) }"
    )
    onnx.save(model, folder / "m.onnx")
    x = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    np.savez(folder / "c.npz", x=x)
    return folder / "m.onnx", folder / "c.npz"


def test_methods_of_any_family_with_options(lowerkit: Cli, tmp_path: Path) -> None:
    model, data = activations(tmp_path)
    methods = {
        "silu": "table:max_error=1e-4",
        "tanh": "rational",
        "exp": "poly:degree=5",
        "rsqrt": "piecewise-linear",
        "softplus": "interval-poly:degree=5,fitting=least-squares",
        "erf": "composite",
    }
    flags = [flag for pair in methods.items() for flag in ("--method", "=".join(pair))]
    out = tmp_path / "out"
    result = lowerkit("compile", model, "-o", out, "--calibration", data, *flags, "--json")
    assert result.code == 0, result.err
    report = json.loads((out / "report.json").read_text())
    assert {choice["method"] for choice in report["choices"]} == {
        m.partition(":")[0] for m in methods.values()
    }
    for choice in report["choices"]:
        assert choice["local"] is not None
        assert choice["local"]["max_abs"] <= 1.1 * choice["bound"] + 1e-6
    again = lowerkit(
        "compile", model, "-o", tmp_path / "again", "--plan", out / "plan.toml", "--calibration", data
    )
    assert again.code == 0, again.err
    assert (tmp_path / "again" / "lowered.onnx").read_bytes() == (out / "lowered.onnx").read_bytes()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "tanh"], "not of the form FAMILY=METHOD"),
        (["--method", "tanh=table", "--method", "tanh=poly"], "two methods are given for family 'tanh'"),
        (["--method", "swish=table"], "no family of methods is called 'swish'"),
        (["--method", "tanh=spline"], "no tanh method 'spline'"),
        (["--method", "tanh=table:max_error=1e-12"], "out of reach: the least bound"),
        (["--method", "tanh=table:segments=131072"], "from 2 to 65536, not 131072"),
        (["--method", "tanh=table:segments"], "not of the form NAME:OPTION=VALUE"),
        (["--method", "tanh=interval-poly:low=-0.1,high=0.1"], "leaves the domain of tanh method"),
        (["--method", "tanh=poly:degrees=4"], "has no option 'degrees'"),
    ],
)
def test_methods_that_cannot_be_are_refused(
    lowerkit: Cli, tmp_path: Path, flags: list[str], words: str
) -> None:
    model, data = activations(tmp_path)
    refused(lowerkit("compile", model, "-o", tmp_path / "out", "--calibration", data, *flags), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("power", [3, 0, -2])
def test_odd_powers_are_refused(lowerkit: Cli, tmp_path: Path, power: int) -> None:
    model = save(tmp_path / "s.onnx", helper.make_node("Softmax", ["x"], ["y"]), [2, 3], x=[2, 3])
    refused(
        lowerkit("compile", model, "-o", tmp_path / "out", "--softmax", f"power:power={power}"),
        "power",
        "even",
    )
