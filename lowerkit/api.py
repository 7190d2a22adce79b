"""The Python door: load, inspect, plan, compile, validate."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lowerkit import artifact as artifact_files
from lowerkit import pipeline
from lowerkit.artifact import Artifact
from lowerkit.errors import ArtifactError, LowerkitWarning, PlanError, UnsupportedError
from lowerkit.graph.inspect import Inspection, inspect_model
from lowerkit.graph.load import load_model
from lowerkit.passes.base import Contract
from lowerkit.passes.quantize.mixed import depends_on_samples
from lowerkit.pipeline import Stages
from lowerkit.plan import Plan
from lowerkit.report.write import write_report
from lowerkit.targets.base import Progress, Runner, Target, get_target
from lowerkit.validation.results import Validation
from lowerkit.validation.rounding import rounding_noise
from lowerkit.validation.samples import read_labels, read_samples, write_arrays
from lowerkit.validation.validate import validate as validate_models

Shapes = Mapping[str, Sequence[int]]
#: How much further an artifact may be off than the reference is from itself when its weights' last bits change.
_TIMES_NOISE = 4


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
    original = load_model(path, shape)
    canonical = pipeline.canonical_graph(original, chosen, Stages(), methods=methods)
    pipeline.check_target(canonical, chosen, lowered=False)
    trained = original if depends_on_samples(methods) else None
    samples, synthetic = pipeline.gather_samples(canonical, _path(calibration), trained)
    lowered = pipeline.lower(
        canonical, chosen, samples, synthetic=synthetic, methods=methods, options=options, check=False
    )
    completed = chosen.complete(lowered.model, samples, lowered.plan.options, synthetic=synthetic)
    return dataclasses.replace(lowered.plan, options=completed)


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
        methods: family (see `lowerkit passes`) -> method, over the target's defaults; its options after a
            colon, as in `{"gelu": "table:segments=64"}`.
        options: target options, e.g. `{"threads": 2}`.
        force: replace an artifact that is already at `output`.
        dump_stages: keep the graph after every stage under `output/stages/`.

    Raises:
        LowerkitError: for anything that cannot be done right; nothing is left at `output` then.
    """
    if plan is not None and methods:
        raise PlanError(
            "a plan and method choices exclude each other", hint="edit the plan's methods instead"
        )
    chosen = get_target(target)
    source = Path(path)
    with artifact_files.staging(Path(output), force=force) as directory:
        stages = Stages(progress, directory / "stages" if dump_stages else None)
        stages.start("load")
        original = load_model(source, shape)
        canonical = pipeline.canonical_graph(original, chosen, stages, plan, methods)
        pipeline.check_target(canonical, chosen, lowered=False)
        trained = original if depends_on_samples(methods) else None
        samples, synthetic = pipeline.gather_samples(canonical, _path(calibration), trained)
        lowering = pipeline.lower(
            canonical,
            chosen,
            samples,
            _with_options(plan, chosen, options) if plan is not None else None,
            synthetic=synthetic,
            methods=methods,
            options=options,
            stages=stages,
        )
        lowered, plan = lowering.model, lowering.plan
        plan = dataclasses.replace(
            plan, options=chosen.complete(lowered, samples, plan.options, synthetic=synthetic)
        )
        stages.dump("lowered", lowered)
        pipeline.check_target(lowered, chosen, lowered=True)
        stages.start("emit")
        settled = chosen.emit(lowered.clone(), plan.options, directory, progress)
        plan = dataclasses.replace(plan, options=settled)
        artifact_files.save_model(original, directory / artifact_files.ORIGINAL)
        artifact_files.save_model(lowered, directory / artifact_files.LOWERED)
        (directory / artifact_files.PLAN).write_text(plan.to_toml(), encoding="utf-8")
        digest = hashlib.sha256((directory / artifact_files.ORIGINAL).read_bytes()).hexdigest()
        facts = {"name": source.name, "sha256": digest}
        artifact = artifact_files.write_manifest(directory, facts, original, plan)
        stages.start("validate")
        checked = _self_check(artifact, chosen, original, lowering.graphs, lowered, samples, synthetic)
    _warn_of_replacements(checked)
    return Artifact.load(output)


def run(
    artifact: Artifact | str | Path,
    data: str | Path,
    output: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Run every sample in `data` and write `output`, an .npz of the outputs joined along the first axis.

    Outputs without axes are stacked. Raises DataError, ArtifactError.
    """
    artifact = _artifact(artifact)
    samples = read_samples(data, artifact.inputs)
    runner = artifact.open(**(options or {}))
    results: dict[str, list[np.ndarray]] = {spec.name: [] for spec in artifact.outputs}
    for index, sample in enumerate(samples):
        for name, value in runner(sample).items():
            results[name].append(np.atleast_1d(value))
        if progress is not None:
            progress("run", index + 1, len(samples))
    joined = {name: np.concatenate(values) for name, values in results.items()}
    write_arrays(output, joined)
    return joined


def validate(
    artifact: Artifact | str | Path,
    data: str | Path,
    labels: str | Path | None = None,
    *,
    layers: bool = True,
    progress: Progress | None = None,
) -> Validation:
    """Measure original against lowered against artifact on `data`, and rewrite the artifact's report.

    Args:
        data: an .npz of samples, one array per graph input.
        labels: an .npz with one integer array, `labels`, for accuracy before and after.
        layers: measure each layer too, which compiles a probe with the target's compiler.

    Raises:
        LowerkitError: the artifact or the data cannot be used, or the artifact is not what it has to be bit for
            bit (the report is written before).
    """
    artifact = _artifact(artifact)
    target = get_target(artifact.target)
    original, lowered = artifact.model(artifact_files.ORIGINAL), artifact.model(artifact_files.LOWERED)
    validation = validate_models(
        original,
        lowered,
        artifact.run,
        read_samples(data, artifact.inputs),
        planned=artifact.plan,
        graphs=_graphs(original, target, artifact.plan) if layers else (),
        labels=read_labels(labels) if labels is not None else None,
        probe=_probe(target, lowered, artifact.plan) if layers else None,
        oracle=_oracle(target, lowered, artifact.plan),
        layers=layers,
        progress=progress,
    )
    _report(validation, artifact, target)
    _refuse_inexact(validation)
    return validation


def _graphs(original: ir.Model, target: Target, plan: Plan) -> tuple[ir.Model, ...]:
    """The graphs that a plan speaks of."""
    canonical = pipeline.canonical_graph(original, target, Stages(), plan)
    return pipeline.lower(canonical, target, (), plan).graphs


def _self_check(
    artifact: Artifact,
    target: Target,
    original: ir.Model,
    graphs: Sequence[ir.Model],
    lowered: ir.Model,
    samples: Sequence[Mapping[str, np.ndarray]],
    synthetic: bool,
) -> Validation:
    """Validate a new artifact on the calibration samples; refuse it when its arithmetic is wrong."""
    checked = samples[: target.self_checked]
    validation = validate_models(
        original,
        lowered,
        artifact.run,
        checked,
        planned=artifact.plan,
        graphs=graphs,
        synthetic=synthetic,
        oracle=_oracle(target, lowered, artifact.plan),
    )
    _refuse_inexact(validation)
    noise = functools.cache(lambda: rounding_noise(lowered, checked))
    for output in validation.outputs:
        error = output.error.arithmetic
        assert error is not None
        # An integer output is an index or a class: near a tie it may flip, but not in the mean.
        is_float = output.dtype.startswith("float")
        found, limit = (error.relative, target.tolerance) if is_float else (error.mean_relative, 0.1)
        if found <= limit or (is_float and error.max_abs <= target.asked_precision(artifact.plan.options)):
            continue
        if is_float and found <= _TIMES_NOISE * noise()[output.name]:
            continue
        raise UnsupportedError(
            f"the compiled output '{output.name}' differs from onnxruntime by {found:.2g} of its scale on "
            f"calibration samples, and target '{target.name}' should stay within {limit:g}",
            node=_first_wrong(target, original, graphs, lowered, artifact.plan, samples),
            hint="this is a fault of the target's compiler; choose another method or shape, and report it",
        )
    _report(validation, artifact, target)
    return validation


def _report(validation: Validation, artifact: Artifact, target: Target) -> None:
    costs = target.costs(artifact.directory)
    write_report(validation, artifact.plan, artifact.manifest, artifact.directory, costs)


def _warn_of_replacements(validation: Validation) -> None:
    """Say what another function in a trained model's place cost, and what would repair it."""
    replaced = [choice for choice in validation.choices if choice.contract == Contract.REPLACE.value]
    if not replaced:
        return
    names = ", ".join(sorted({choice.method for choice in replaced}))
    output = validation.outputs[0]
    kept = (
        f"agrees with the original in {output.agreement.lowered:.1%} of its largest elements"
        if output.agreement
        else f"has cosine similarity {output.error.method.cosine:.4f} with the original's"
    )
    warnings.warn(
        f"{names} in {len(replaced)} nodes is another function than the model was trained with: "
        f"output '{output.name}' {kept} on calibration samples; "
        "train or fine-tune the model with it, or choose an approximate method",
        LowerkitWarning,
        stacklevel=3,
    )


def _first_wrong(
    target: Target,
    original: ir.Model,
    graphs: Sequence[ir.Model],
    lowered: ir.Model,
    plan: Plan,
    samples: Sequence[Mapping[str, np.ndarray]],
) -> str | None:
    """The first layer whose own arithmetic is wrong, by a probe; None when the probe shows none."""
    probed = validate_models(
        original,
        lowered,
        _probe(target, lowered, plan)([]),
        samples[:1],
        planned=plan,
        graphs=graphs,
        probe=_probe(target, lowered, plan),
    )
    for layer in probed.layers:
        error = layer.error.arithmetic
        if error is not None and not error.relative <= target.tolerance:
            return f"node '{layer.node}' ({layer.op})"
    return None


def _probe(target: Target, lowered: ir.Model, plan: Plan) -> Callable[[Sequence[str]], Runner]:
    return lambda taps: target.probe(lowered.clone(), plan.options, taps)


def _oracle(target: Target, lowered: ir.Model, plan: Plan) -> Runner | None:
    """What the artifact has to compute, bit for bit, where the target knows."""
    return target.probe(lowered.clone(), plan.options, []) if target.exact_probe else None


def _refuse_inexact(validation: Validation) -> None:
    if validation.inexact:
        raise ArtifactError(
            f"the artifact differs from its exact model in {validation.inexact} of {validation.samples} samples",
            hint="compile it again; if that does not help, this is a fault of the target",
        )


def _with_options(plan: Plan, target: Target, options: Mapping[str, Any] | None) -> Plan:
    """`plan`, checked to be for `target`, with `options` over its own."""
    if plan.target != target.name:
        raise PlanError(f"the plan is for target '{plan.target}', not '{target.name}'")
    return dataclasses.replace(plan, options={**target.options, **plan.options, **(options or {})})


def _artifact(artifact: Artifact | str | Path) -> Artifact:
    return artifact if isinstance(artifact, Artifact) else Artifact.load(artifact)


def _path(path: str | Path | None) -> Path | None:
    return Path(path) if path is not None else None
