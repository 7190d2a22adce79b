"""What lowering costs in accuracy: every model, with exact methods and with the cpu target's defaults.

    python -m benchmarks.accuracy [--models minilm,vit,...] [--json FILE] [--markdown FILE]

Exits with 1 when a bound is broken: with exact methods the artifact may differ from onnxruntime on the
original by 2e-4 of the output's scale; with default methods top-1 agreement must be at least 99.5 %
(classifiers) or cosine similarity 0.9999 (the others).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import lowerkit
from benchmarks.models import MODELS, BenchmarkModel
from benchmarks.tables import Column, publish
from lowerkit.numerics.metrics import Error
from lowerkit.validation.results import OutputResult

TITLE = "What lowering costs in accuracy"
EXACT = {"softmax": "online", "gelu": "keep", "norm": "keep"}
#: Rounding alone moves the text recogniser by 1e-4: on sharp drawn lines, two orders of the same sums in onnxruntime
#: differ by 7e-5.
EXACT_LIMIT, AGREEMENT_LIMIT, COSINE_LIMIT = 2e-4, 0.995, 0.9999
COLUMNS = (
    Column("model", "{model}"),
    Column("methods", "{methods}"),
    Column("samples", "{samples} {data}"),
    Column("max error / scale", "{error:.1e}"),
    Column("of method", "{method_error:.1e}"),
    Column("of arithmetic", "{arithmetic_error:.1e}"),
    Column("cosine", "{cosine:.8f}"),
    Column("top-1 agreement", "{agreement:.2%}"),
    Column("ok", "{ok}"),
)


def measure(model: BenchmarkModel, exact: bool, scratch: Path) -> dict[str, Any]:
    """Compile, validate on the model's samples, judge."""
    data = model.write_samples(scratch / f"{model.name}.npz")
    artifact = lowerkit.compile(
        model.path(),
        scratch / "artifact",
        "cpu",
        shape=model.shapes,
        calibration=data,
        methods=EXACT if exact else None,
        force=True,
    )
    validation = lowerkit.validate(artifact, data, layers=False)
    worst = max(validation.outputs, key=lambda output: _total(output).relative)
    rates = [output.agreement.artifact for output in validation.outputs if output.agreement]
    agreement = min(rates, default=float("nan"))
    cosine = min(_total(output).cosine for output in validation.outputs)
    good = agreement >= AGREEMENT_LIMIT if model.classifier else cosine >= COSINE_LIMIT
    arithmetic = worst.error.arithmetic
    return {
        "model": model.name,
        "methods": "exact" if exact else "default",
        "samples": validation.samples,
        "data": "synthetic" if model.data is None else "real",
        "error": _total(worst).relative,
        "method_error": worst.error.method.relative,
        "arithmetic_error": arithmetic.relative if arithmetic else float("nan"),
        "cosine": cosine,
        "agreement": agreement,
        "ok": bool(_total(worst).relative <= EXACT_LIMIT) if exact else bool(good),
    }


def _total(output: OutputResult) -> Error:
    assert output.error.total is not None
    return output.error.total


def main() -> int:
    """Measure, print, save and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated; default: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models.split(","):
            for exact in (True, False):
                rows.append(measure(MODELS[name], exact, Path(scratch)))
                print({key: rows[-1][key] for key in ("model", "methods", "error", "ok")}, file=sys.stderr)
    publish(TITLE, __doc__, COLUMNS, rows, arguments.json, arguments.markdown)
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
