"""The cpu target: see the package's docstring."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.errors import ModelError, PlanError
from lowerkit.targets.base import CostTable, Progress, Runner, Target
from lowerkit.targets.cpu import features, runner, support
from lowerkit.targets.cpu.import_tvm import import_tvm


class CpuTarget(Target):
    """Compiles to machine code with TVM.

    Options: `cpu`, what to compile for; `threads`, 0 for all; `tune`, seconds to search for faster schedules;
    `tuning`, a file with what an earlier search found.
    """

    name = "cpu"
    summary = "machine code for this kind of processor, compiled by TVM"
    defaults: ClassVar[Mapping[str, str]] = {"softmax": "poly-exp", "gelu": "poly", "norm": "keep"}
    expands = frozenset({"Attention"})
    native = frozenset(
        {
            "ConvBf16",
            "ConvInt8",
            "ConvInt8Static",
            "MatMulBf16",
            "MatMulInt8",
            "MatMulInt8Static",
            "MatMulWeightInt4",
            "MatMulWeightInt8",
            "OnlineSoftmax",
            "OnlineSoftmaxTopK",
            "PolySoftmax",
            "TwoPassSoftmax",
            "UnifiedMaxSoftmax",
        }
    )
    options: ClassVar[Mapping[str, Any]] = {
        "cpu": features.default_cpu(),
        "threads": 0,
        "tune": 0,
        "tuning": "",
    }

    def blocker(self, node: ir.Node) -> str | None:
        """Why TVM cannot run `node`, or would compute something else."""
        return support.reason(node)

    def emit(
        self,
        model: ir.Model,
        options: Mapping[str, Any],
        directory: Path,
        progress: Progress | None = None,
    ) -> Mapping[str, Any]:
        """Write `model.so`, `lowerkit.h`, `example.c`, `runtime.json` and `run.py`; changes `model`."""
        options = self.complete(model, (), options)
        cpu, threads = _checked(options)
        flags = features.level(cpu).flags
        # TVM takes a second to import, and opening an artifact does not need it.
        import_tvm()
        import tvm

        from lowerkit.targets.cpu import tuning
        from lowerkit.targets.cpu.build import PUBLIC, RUNTIME, build_library, check_weights
        from lowerkit.targets.cpu.importer import import_model, output_types
        from lowerkit.targets.cpu.kernels import converters

        check_weights(model)
        inputs = [_spec(value) for value in model.graph.inputs]
        names = [value.name for value in model.graph.outputs]
        with tvm.target.Target(features.tvm_target(cpu)):  # kernels ask it how wide vectors are
            module = import_model(model, converters(cpu))
        tuned = tuning.from_options(self.merged(options), cpu, threads)
        outputs = [
            {"name": name, "dtype": dtype, "shape": shape}
            for name, (shape, dtype) in zip(names, output_types(module), strict=True)
        ]
        sizes = build_library(module, cpu, directory / runner.LIBRARY, inputs, outputs, tuned)
        metadata = {
            "inputs": inputs,
            "outputs": outputs,
            "machine": platform.machine(),
            "cpu": cpu,
            "flags": list(flags),
            "threads": threads,
            "bytes": sizes,
            "tvm": importlib.metadata.version("apache-tvm"),
        }
        for name in PUBLIC:
            shutil.copyfile(RUNTIME / name, directory / name)
        shutil.copyfile(runner.__file__, directory / "run.py")
        (directory / runner.METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        if tuned is None:
            return options
        (directory / tuning.RECORDS).write_text(tuned.to_json(), encoding="utf-8")
        return {**options, "tune": 0, "tuning": tuning.digest(tuned.to_json())}

    def complete(
        self,
        model: ir.Model,
        samples: Sequence[Mapping[str, np.ndarray]],
        options: Mapping[str, Any],
        *,
        synthetic: bool = False,
    ) -> dict[str, Any]:
        """`cpu = "native"` becomes the best level of this machine, so that the plan says which."""
        merged = self.merged(options)
        native = merged["cpu"] == features.NATIVE
        return {**options, "cpu": features.native_cpu()} if native else dict(options)

    def costs(self, directory: Path) -> tuple[CostTable, ...]:
        """What the library takes of disk and memory."""
        sizes = json.loads((directory / runner.METADATA).read_bytes())["bytes"]
        row = ("model.so", sizes["code"], sizes["constants"], sizes["arena"])
        columns = ("library", "B of code", "B of constants", "B of intermediate values")
        return (CostTable("code and constants are in the file, the values in memory", columns, (row,)),)

    def open(self, directory: Path, options: Mapping[str, Any]) -> Runner:
        """A runner that needs numpy alone; only `threads` of the options matters here."""
        return runner.CpuRunner(directory, _checked(options)[1])

    def probe(self, model: ir.Model, options: Mapping[str, Any], taps: Sequence[str]) -> Runner:
        """Compile `model` once more with the values named in `taps` as further outputs."""
        values = {value.name: value for node in model.graph for value in node.outputs}
        present = {value.name for value in model.graph.outputs}
        for name in dict.fromkeys(taps):
            if name in present:
                continue
            if name not in values:
                raise ModelError(f"the graph has no value '{name}'")
            model.graph.outputs.append(values[name])
        with tempfile.TemporaryDirectory(prefix="lowerkit-") as directory:
            # Fusion ends at the taps, so that a probe has other functions than those that were tuned.
            self.emit(model, {**options, "tune": 0, "tuning": ""}, Path(directory))
            return self.open(Path(directory), options)


def _checked(options: Mapping[str, Any]) -> tuple[str, int]:
    merged = CpuTarget.merged(options)
    cpu, threads = merged["cpu"], merged["threads"]
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 0:
        raise PlanError(f"option threads must be 0 (all) or a positive number, not {threads!r}")
    if not isinstance(cpu, str):
        raise PlanError(f"option cpu must be a name, not {cpu!r}")
    return cpu, threads


def _spec(value: ir.Value) -> dict[str, Any]:
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        raise ModelError(f"value '{value.name}' has no static shape and type")
    return {"name": value.name, "dtype": value.dtype.numpy().name, "shape": list(value.shape.numpy())}
