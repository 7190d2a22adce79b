"""What linear layers in few bits cost in accuracy, by method and model.

    python -m benchmarks.quantize [--models vit,minilm,ocr-rec] [--choices "int8;mixed"] [--json FILE] [--markdown FILE]

Lowered graphs are run in onnxruntime, whose results a compiled artifact has to reproduce, on the real samples of
each model. The score is the fraction of digits (vit) or letters (ocr-rec) that are right, or the rank correlation of
sentence similarities with people's (minilm). Softmax, GELU and norms are kept, so that the linear layers alone count.
Ranges of `int8-static` come from the first samples; the other choices see no data of the model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.models import MODELS, BenchmarkModel
from benchmarks.tables import Column, publish
from lowerkit import load, pipeline
from lowerkit.artifact import specs
from lowerkit.errors import LowerkitWarning
from lowerkit.passes.quantize.base import FAMILY
from lowerkit.pipeline import Stages
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target
from lowerkit.validation.samples import read_samples

TITLE = "Linear layers in few bits"
KEPT = {"softmax": "keep", "gelu": "keep", "norm": "keep"}
CHOICES = (
    "bf16",
    "int8",
    "int8-static",
    "mixed",
    "mixed:narrow=int8-static",
    "weight-int8",
    "weight-int4",
)
#: Samples for choices that need them.
CALIBRATION = 16
COLUMNS = (
    Column("model", "{model}"),
    Column("linear", "{choice}"),
    Column("layers", "{layers}"),
    Column("data", "{data}"),
    Column("score", "{score:.4f}"),
    Column("float32", "{before:.4f}"),
    Column("points lost", "{lost:+.2f}"),
    Column("cosine", "{cosine:.6f}"),
    Column("error", "{error:.2%}"),
)

Samples = Sequence[Mapping[str, np.ndarray]]
Outputs = list[dict[str, np.ndarray]]


def measure(model: BenchmarkModel, choices: Sequence[str], data: Path) -> list[dict[str, Any]]:
    """A row for each choice."""
    original = load(model.path(), model.shapes)
    samples = list(read_samples(model.write_samples(data), specs(list(original.graph.inputs))))
    before = _run(original, samples)
    rows = []
    for choice in choices:
        lowering = lower(original, choice, samples)
        after = _run(lowering.model, samples)
        layers = Counter(c.method for c in lowering.plan.choices if c.op in ("MatMul", "Conv"))
        assert model.score is not None
        score, exact = model.score(after), model.score(before)
        rows.append(
            {
                "model": model.name,
                "choice": choice,
                "layers": ", ".join(f"{count} {method}" for method, count in sorted(layers.items())),
                "data": f"{CALIBRATION} samples" if "static" in choice else "none",
                "score": score,
                "before": exact,
                "lost": 100 * (exact - score),
                **_distance(before, after),
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def lower(original: ir.Model, choice: str, samples: Samples) -> pipeline.Lowering:
    """`original` with its linear layers by `choice`, calibrated with the first samples where it needs data."""
    target, methods = get_target("cpu"), {**KEPT, FAMILY: choice}
    canonical = pipeline.canonical_graph(original, target, Stages(), methods=methods)
    synthetic = "static" not in choice
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowerkitWarning)
        given = pipeline.gather_samples(canonical, None)[0] if synthetic else samples[:CALIBRATION]
    return pipeline.lower(canonical, target, given, synthetic=synthetic, methods=methods)


def _run(model: ir.Model, samples: Samples) -> Outputs:
    reference = Reference(model)
    return [reference(sample) for sample in samples]


def _distance(before: Outputs, after: Outputs) -> dict[str, float]:
    """Cosine and relative Euclidean error of the worst float output over all samples."""
    worst = {"cosine": 1.0, "error": 0.0}
    for name in before[0]:
        y, z = (np.stack([run[name] for run in runs]).astype(np.float64).ravel() for runs in (before, after))
        sizes = float(np.linalg.norm(y)), float(np.linalg.norm(z))
        if np.issubdtype(before[0][name].dtype, np.floating) and all(sizes):
            worst["cosine"] = min(worst["cosine"], float(y @ z) / sizes[0] / sizes[1])
            worst["error"] = max(worst["error"], float(np.linalg.norm(z - y)) / sizes[0])
    return worst


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="vit,minilm,ocr-rec", help="comma-separated")
    parser.add_argument("--choices", default=";".join(CHOICES), help="separated by semicolons")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models.split(","):
            choices = arguments.choices.split(";")
            rows += measure(MODELS[name], choices, Path(scratch) / f"{name}.npz")
    publish(TITLE, __doc__, COLUMNS, rows, arguments.json, arguments.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
