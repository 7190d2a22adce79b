"""The artifact directory appears whole or not at all, and is checked on every load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lowerkit import artifact as files
from lowerkit.artifact import Artifact, staging
from lowerkit.errors import ArtifactError
from lowerkit.plan import Choice, Plan

PLAN = Plan("cpu", (Choice("relu", "Relu", "keep"),), {"threads": 1})


def small_model() -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Relu", [x], name="relu")
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", x.shape, x.type
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10)


def write(directory: Path) -> None:
    model = small_model()
    files.save_model(model, directory / files.ORIGINAL)
    files.save_model(model, directory / files.LOWERED)
    (directory / files.PLAN).write_text(PLAN.to_toml())
    (directory / "sub").mkdir()
    (directory / "sub" / "weights.bin").write_bytes(bytes(range(256)))
    (directory / "report.json").write_text("{}")
    files.write_manifest(directory, {"name": "relu.onnx"}, model, PLAN)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    with staging(tmp_path / "out", force=False) as directory:
        write(directory)
    return tmp_path / "out"


def test_load_reads_what_was_written(made: Path) -> None:
    artifact = Artifact.load(made)
    assert artifact.target == "cpu"
    assert artifact.plan == PLAN
    assert [(spec.name, spec.dtype, spec.shape) for spec in artifact.inputs] == [("x", "float32", (2, 3))]
    assert [spec.name for spec in artifact.outputs] == ["y"]
    assert [node.op_type for node in artifact.model().graph] == ["Relu"]
    assert set(artifact.manifest["files"]) == {
        "original.onnx",
        "lowered.onnx",
        "plan.toml",
        "sub/weights.bin",
    }


def test_same_content_gives_the_same_manifest(tmp_path: Path, made: Path) -> None:
    with staging(tmp_path / "again", force=False) as directory:
        write(directory)
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (made / "manifest.json").read_bytes()


@pytest.mark.parametrize("name", ["original.onnx", "lowered.onnx", "plan.toml", "sub/weights.bin"])
def test_one_flipped_bit_is_found(made: Path, name: str) -> None:
    content = bytearray((made / name).read_bytes())
    content[len(content) // 2] ^= 1
    (made / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        Artifact.load(made)


def test_missing_file_is_named(made: Path) -> None:
    (made / "lowered.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"lowered\.onnx is missing"):
        Artifact.load(made)


def test_edited_manifest_is_found(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["options"]["threads"] = 64
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="edited"):
        Artifact.load(made)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 99}'])
def test_broken_manifest(made: Path, content: str) -> None:
    (made / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match="manifest"):
        Artifact.load(made)


def test_not_an_artifact(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", Path(__file__)):
        with pytest.raises(ArtifactError, match="not an artifact"):
            Artifact.load(path)


def test_rewriting_the_report_keeps_the_artifact_valid(made: Path) -> None:
    (made / "report.json").write_text('{"new": true}')
    Artifact.load(made)


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staging(tmp_path / "a" / "b" / "out", force=False) as directory:
            (directory / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_what_force_would_replace(tmp_path: Path, made: Path) -> None:
    with pytest.raises(ValueError, match="no"), staging(made, force=True):
        raise ValueError("no")
    Artifact.load(made)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_existing_output_needs_force(made: Path) -> None:
    with pytest.raises(ArtifactError, match=r"already exists\. .*--force"), staging(made, force=False):
        pass
    with staging(made, force=True) as directory:
        write(directory)
    Artifact.load(made)


def test_force_never_deletes_what_is_not_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an artifact"), staging(tmp_path / "home", force=True):
        pass
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"), staging(tmp_path / "file" / "out", force=False):
        pass


def test_artifact_is_readable_by_others(made: Path) -> None:
    assert made.stat().st_mode & 0o055 == 0o055


def test_specs_use_numpy_dtype_names() -> None:
    (spec,) = files.specs(list(small_model().graph.inputs))
    assert np.zeros(spec.shape, spec.dtype).shape == (2, 3)
