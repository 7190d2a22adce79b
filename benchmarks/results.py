"""What every method does to real models: the lowered graph against the original, in onnxruntime.

    python -m benchmarks.results [--models vit,minilm,ocr-rec] [--json FILE] [--markdown FILE]

Each method takes the place of every node of its family, at default options but for what it fits to the
calibration data, and everything else stays: so this is the method error alone, end to end. `replace` methods are
other functions, and the models were not trained with them: their rows say what training would have to repair.
Accuracy is on the labels of the digits' test set; similarity is the output's cosine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import lowerkit
from benchmarks.models import MODELS, BenchmarkModel
from benchmarks.tables import Column, markdown, rich_table
from lowerkit import pipeline
from lowerkit.artifact import specs
from lowerkit.errors import LowerkitError, LowerkitWarning
from lowerkit.passes import registry
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.passes.registry import KEEP
from lowerkit.pipeline import Stages
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target
from lowerkit.validation.samples import read_samples

TITLE = "What every method does to real models"
_LABELS = Path(__file__).parent.parent / "examples" / "data" / "digits_test_labels.npz"
FAMILIES = ("softmax", "gelu", "norm", "attention")
#: Samples that methods fit themselves to; the errors are over all.
CALIBRATION = 16
COLUMNS = (
    Column("model", "{model}"),
    Column("method", "{family} {method}"),
    Column("contract", "{contract}"),
    Column("nodes", "{nodes}"),
    Column("max error / scale", "{error:.1e}"),
    Column("cosine", "{cosine:.6f}"),
    Column("top-1 agreement", "{agreement:.2%}"),
    Column("accuracy", "{accuracy:.2%}"),
    Column("", "{note}"),
)
Sample = Mapping[str, np.ndarray]


def measure(model: BenchmarkModel, scratch: Path) -> list[dict[str, Any]]:
    """A row for the model as it is and one for each method that has something to replace in it."""
    target = get_target("cpu")
    original = lowerkit.load(model.path(), model.shapes)
    samples = list(
        read_samples(model.write_samples(scratch / "data.npz"), specs(list(original.graph.inputs)))
    )
    labels = np.load(_LABELS)["labels"] if model.name.startswith("vit") else None
    expected = _run(Reference(original), samples)
    rows = [
        _row(
            model,
            {"family": "", "method": "original", "contract": "", "nodes": 0},
            expected,
            expected,
            labels,
        )
    ]
    for family, name in registry.methods():
        if family not in FAMILIES:
            continue
        methods = dict.fromkeys(FAMILIES, KEEP) | {family: name}
        facts = {
            "family": family,
            "method": name,
            "contract": registry.method_class(family, name).contract.value,
        }
        try:
            canonical = pipeline.canonical_graph(original, target, Stages(), methods=methods)
            observed = pipeline.calibrate_plannable(canonical, samples[:CALIBRATION], synthetic=False)
            plan = default_plan(canonical, target, observed, methods)
            lowered = canonical.clone()
            apply_plan(lowered, plan)
        except LowerkitError as error:
            nothing = dict.fromkeys(("error", "cosine", "agreement", "accuracy"), float("nan"))
            rows.append(
                {"model": model.name, **facts, "nodes": 0, **nothing, "note": f"refused: {error.reason}"}
            )
            continue
        nodes = sum(choice.method != KEEP for choice in plan.choices)
        if nodes:
            found = _run(Reference(lowered), samples)
            rows.append(_row(model, {**facts, "nodes": nodes}, expected, found, labels))
    return rows


def _run(reference: Reference, samples: Sequence[Sample]) -> np.ndarray:
    """The last floating-point output over all samples, joined: logits, probabilities or the embedding."""
    results = [[y for y in reference(sample).values() if y.dtype.kind == "f"][-1] for sample in samples]
    return np.concatenate([np.atleast_2d(result) for result in results]).astype(np.float64)


def _row(
    model: BenchmarkModel,
    facts: Mapping[str, Any],
    expected: np.ndarray,
    found: np.ndarray,
    labels: np.ndarray | None,
) -> dict[str, Any]:
    a, b = expected.ravel(), found.ravel()
    same = np.argmax(found, axis=-1) == np.argmax(expected, axis=-1)
    norms = np.sqrt((a * a).sum() * (b * b).sum())
    return {
        "model": model.name,
        **facts,
        "error": float(np.abs(a - b).max() / np.abs(a).max()),
        "cosine": float((a * b).sum() / norms),
        "agreement": float(same.mean()) if model.classifier else float("nan"),
        "accuracy": float((np.argmax(found, axis=-1) == labels).mean())
        if labels is not None
        else float("nan"),
        "note": "",
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="vit,vit-power,minilm,ocr-rec", help="comma-separated")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", LowerkitWarning)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models.split(","):
            print(name, file=sys.stderr)
            rows += measure(MODELS[name], Path(scratch))
    Console().print(rich_table(COLUMNS, rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(TITLE, __doc__, COLUMNS, rows))


if __name__ == "__main__":
    main()
