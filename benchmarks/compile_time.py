"""How long `lowerkit compile` takes, stage by stage: the cpu target, with calibration and all checks.

    pip install -c constraints.txt -e '.[bench]'
    python -m benchmarks.compile_time [--models minilm,vit] [--precisions fp32,int8] [--rounds 3] [--json FILE]

Every compile is a fresh process on real samples, as `benchmarks.cpu` prepares a model. A stage's seconds are the median
of the rounds, the first imports included; `emit` holds the import of TVM.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.tables import Column, publish

DEFAULT = "minilm,minilm-l6,vit"
METHODS = {"fp32": {}, "bf16": {"linear": "bf16"}, "int8": {"linear": "int8"}}
STAGES = ("import", "load", "canonicalise", "calibrate", "plan", "rewrite", "emit", "validate")
COLUMNS = (
    Column("model", "{model}"),
    Column("precision", "{precision}"),
    Column("s", "{total:.1f}"),
    *(Column(stage, f"{{{stage}:.2f}}") for stage in STAGES),
)


def stages(model: Path, calibration: Path, precision: str) -> dict[str, float]:
    """Seconds of each stage of one compile in this process, which has imported nothing of lowerkit yet."""
    began, stage, seconds = time.perf_counter(), "import", dict.fromkeys(STAGES, 0.0)

    def begin(name: str, *_: int) -> None:
        nonlocal began, stage
        if name in STAGES:
            now = time.perf_counter()
            seconds[stage] += now - began
            began, stage = now, name

    import lowerkit

    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        lowerkit.compile(
            model,
            Path(scratch) / "out",
            "cpu",
            calibration=calibration,
            methods=METHODS[precision],
            options={"cpu": "native"},
            progress=begin,
        )
        begin("import")
    return seconds


def measure(name: str, precision: str, rounds: int, case: Path) -> dict[str, Any]:
    """The table's row."""
    command = [sys.executable, "-m", "benchmarks.compile_time", "--one", str(case), "--precisions", precision]
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append({**json.loads(done.stdout), "total": time.perf_counter() - start})
    medians = {key: round(statistics.median(each[key] for each in found), 3) for key in ("total", *STAGES)}
    return {"model": name, "precision": precision, **medians}


def main() -> int:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=DEFAULT, help=f"comma-separated; default: {DEFAULT}")
    parser.add_argument("--precisions", default="fp32,int8", help="comma-separated; default: fp32,int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        found = stages(
            arguments.one / "original.onnx", arguments.one / "calibration.npz", arguments.precisions
        )
        print(json.dumps(found))
        return 0
    from benchmarks.cpu_contenders import Case
    from benchmarks.models import MODELS

    rows = []
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        for name in arguments.models.split(","):
            case = Case.write(Path(scratch) / name, MODELS[name])
            case.write_calibration(case.directory / "calibration.npz")
            for precision in arguments.precisions.split(","):
                rows.append(measure(name, precision, arguments.rounds, case.directory))
    publish("Compile time", __doc__, COLUMNS, rows, arguments.json, arguments.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
