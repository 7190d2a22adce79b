"""The Python door: load, inspect, plan, compile, validate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowerkit import artifact as artifact_files
from lowerkit import pipeline
from lowerkit.artifact import Artifact
from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.graph.inspect import Inspection, inspect_model
from lowerkit.graph.load import load_model
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.pipeline import Progress, Stages
from lowerkit.plan import Plan
from lowerkit.report.write import write_report
from lowerkit.targets.base import Target, get_target
from lowerkit.validate.samples import read_labels, read_samples
from lowerkit.validate.validate import Validation
from lowerkit.validate.validate import validate as validate_models

if TYPE_CHECKING:
    from lowerkit.calibrate import Calibration

Shapes = Mapping[str, Sequence[int]]


def load(path: str | Path, shape: Shapes | None = None) -> ir.Model:
    """Read and check an ONNX file; every dimension static, `shape` fixing the symbolic ones.

    Raises ModelError.
    """
    return load_model(path, shape)


def inspect(path: str | Path, target: str | None = None, shape: Shapes | None = None) -> Inspection:
    """What is in a model and what `target` would have to do about it. Raises ModelError."""
    original = load_model(path, shape)
    chosen = get_target(target) if target is not None else None
    return inspect_model(original, pipeline.canonical_graph(original, chosen, Stages()), chosen)


def plan(
    path: str | Path,
    target: str = "cpu",
    *,
    calibration: str | Path | None = None,
    shape: Shapes | None = None,
    methods: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan that `compile` would follow; arguments as there."""
    chosen = get_target(target)
    canonical = pipeline.canonical_graph(load_model(path, shape), chosen, Stages())
    pipeline.check_target(canonical, chosen, lowered=False)
    samples, synthetic = pipeline.gather_samples(canonical, _path(calibration))
    observed = pipeline.calibrate_plannable(canonical, samples, synthetic=synthetic)
    return default_plan(canonical, chosen, observed, methods, options)


def compile(
    path: str | Path,
    output: str | Path,
    target: str = "cpu",
    *,
    plan: Plan | None = None,
    calibration: str | Path | None = None,
    shape: Shapes | None = None,
    methods: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
    dump_stages: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Lower the model at `path` to `target` and write an artifact directory at `output`.

    Args:
        plan: what to do with each node; the target's defaults when None.
        calibration: an .npz of samples, one array per graph input; synthetic inputs when None.
        shape: input name -> static shape, for inputs with symbolic dimensions.
        methods: family (`softmax`, `gelu`, `norm`) -> method name, over the target's defaults.
        options: target options, e.g. `{"threads": 2}`.
        force: replace an artifact that is already at `output`.
        dump_stages: keep the graph after every stage under `output/stages/`.

    Raises:
        LowerkitError: for anything that cannot be done right; nothing is left at `output` then.
    """
    if plan is not None and methods:
        raise PlanError("a plan and method choices exclude each other", hint="edit the plan's methods instead")
    chosen = get_target(target)
    source = Path(path)
    with artifact_files.staging(Path(output), force=force) as directory:
        stages = Stages(progress, directory / "stages" if dump_stages else None)
        stages.start("load")
        original = load_model(source, shape)
        canonical = pipeline.canonical_graph(original, chosen, stages)
        pipeline.check_target(canonical, chosen, lowered=False)
        stages.start("calibrate")
        samples, synthetic = pipeline.gather_samples(canonical, _path(calibration))
        observed = pipeline.calibrate_plannable(canonical, samples, synthetic=synthetic)
        stages.start("plan")
        plan = _with_options(plan, chosen, options) or default_plan(
            canonical, chosen, observed, methods, options
        )
        stages.start("rewrite")
        lowered = canonical.clone()
        apply_plan(lowered, plan)
        stages.dump("lowered", lowered)
        pipeline.check_target(lowered, chosen, lowered=True)
        stages.start("emit")
        chosen.emit(lowered.clone(), plan.options, directory)
        artifact_files.save_model(original, directory / artifact_files.ORIGINAL)
        artifact_files.save_model(lowered, directory / artifact_files.LOWERED)
        (directory / artifact_files.PLAN).write_text(plan.to_toml(), encoding="utf-8")
        digest = hashlib.sha256((directory / artifact_files.ORIGINAL).read_bytes()).hexdigest()
        artifact_files.write_manifest(directory, {"name": source.name, "sha256": digest}, original, plan)
        stages.start("validate")
        staged = Artifact.load(directory)
        _self_check(staged, chosen, lowered, samples, observed)
    return Artifact.load(output)
