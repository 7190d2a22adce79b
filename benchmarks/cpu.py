"""Artifacts against onnxruntime and OpenVINO, side by side in one run, on the same threads.

    pip install -c constraints.txt -e '.[bench]'
    python -m benchmarks.cpu --idle --json build/cpu-speed.json --markdown docs/cpu-speed.md

Its seven models with `--rounds 8` take 13 minutes; `--idle` refuses to start on a machine that is not idle; `--quick`
looks at two models. Peers that are not installed are left out, and so is what a peer cannot run: the last
table says so. IREE, and lowerkit with calibrated activations, take part where they are named:
`--contenders 'lowerkit static int8,OpenVINO int8'`.

Every contender lives in a process of its own that waits on a pipe. Rounds go through the contenders in turn, so that
drift of the machine's speed meets all of them alike: in each round each runs once uncounted, because others have had
the caches, and then for a twentieth of a second, of which the median counts. All take the same arrays through their
Python interface, use the same number of threads, pin none of them and do not spin between calls.

`ratio` is the artifact's time over that of the fastest peer asked for the same precision, round by round: the median,
and the range that holds the middle 80 % of rounds. Below 1 the artifact is faster. `ran` is the precision in which the
products really ran, where the peer says so: a processor without bf16 instructions makes OpenVINO fall back to f32.
Cosines are to onnxruntime in float32, means over all samples; scores are rank correlations with people (minilm) and
shares of images or letters that are read right. `idle CPU` is what a process used while it waited for its turn. Other
processes are watched meanwhile: with more than 5 % of one processor for them a row says that it is not idle.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.cpu_contenders import CONTENDERS, OPTIONAL, REFERENCE, Case, Contender, LeftOut
from benchmarks.cpu_summary import document, summary, terminal
from benchmarks.cpu_workers import Worker, prepare_apart
from benchmarks.idle import IDLE, Watch, foreign_load
from benchmarks.models import MODELS, BenchmarkModel

#: Models of the default run.
DEFAULT = ("minilm-l6", "minilm", "deit-tiny", "vit", "ocr-rec", "orientation", "mlp")
QUICK = ("minilm", "vit")
#: Seconds of a contender's turn, and of all rounds of a model on a number of threads; and rounds that it has even so.
TURN, LIMIT, LEAST = 0.05, 30.0, 5
_PACKAGES = ("lowerkit", "apache-tvm", "onnxruntime", "openvino", "nncf", "iree-base-compiler", "torch")
_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def measure(
    model: BenchmarkModel, contenders: Sequence[Contender], threads: Sequence[int], rounds: int, scratch: Path
) -> list[dict[str, Any]]:
    """One row for each number of threads and contender; one row for a contender that is left out."""
    case = Case.write(scratch / model.name, model)
    rows, prepared = [], {}
    for contender in contenders:
        facts = prepare_apart(contender, case)
        if "left_out" in facts:
            rows.append({**_names(model, contender), **facts})
        else:
            prepared[contender] = facts
        print(f"{model.name}: {contender.name}: {_told(facts)}", file=sys.stderr, flush=True)
    judged: dict[str, dict[str, float]] = {}
    for count in threads:
        workers = {}
        for contender in prepared:
            try:
                workers[contender] = Worker(contender, case, count)
            except LeftOut as error:
                rows.append({**_names(model, contender), "left_out": str(error)})
        if not judged:
            judged = judge(model, case, {c.name: worker for c, worker in workers.items()})
        turns, foreign = take_turns(list(workers.values()), rounds)
        for worker in workers.values():
            worker.close()
        for (contender, worker), own in zip(workers.items(), turns, strict=True):
            seconds = [turn["seconds"] for turn in own]
            rows.append(
                {
                    **_names(model, contender),
                    "threads": count,
                    "ms": [round(1e3 * second, 5) for second in seconds],
                    "processors": round(float(np.median([turn["processors"] for turn in own])), 2),
                    "idle_cpu": round(float(np.mean([turn["idle_cpu"] for turn in own])), 5),
                    "foreign_load": round(foreign, 3),
                    **prepared[contender],
                    **worker.ready,
                    **judged[contender.name],
                }
            )
    return rows


def _names(model: BenchmarkModel, contender: Contender) -> dict[str, str]:
    return {"model": model.name, "contender": contender.name, "precision": contender.precision}


def _told(facts: dict[str, Any]) -> str:
    if "left_out" in facts:
        return f"left out: {facts['left_out']}"
    return f"ready after {facts['prepare_seconds']:.1f} s"


def take_turns(workers: Sequence[Worker], rounds: int) -> tuple[list[list[dict[str, float]]], float]:
    """Each worker's turns, at most `rounds`, fewer where time is up; and how much others computed meanwhile."""
    watch = Watch(worker.pid for worker in workers)
    turns: list[list[dict[str, float]]] = [[] for _ in workers]
    for done in range(rounds):
        if done >= LEAST and watch.elapsed() > LIMIT:
            break
        for worker, own in zip(workers, turns, strict=True):
            own.append(worker.turn(TURN))
    return turns, watch.foreign()


def judge(model: BenchmarkModel, case: Case, workers: dict[str, Worker]) -> dict[str, dict[str, float]]:
    """Cosine and, where the model has one, score of every contender over all samples."""
    path = case.directory / "outputs.npz"
    kept, found = None, {}
    for name in sorted(workers, key=lambda name: name != REFERENCE):
        arrays = workers[name].outputs(path)
        samples = [dict(zip(case.outputs, outputs, strict=True)) for outputs in zip(*arrays, strict=True)]
        kept = kept or samples
        found[name] = {
            "cosine": model.cosine(samples, kept),
            "score": model.score(samples) if model.score else float("nan"),
        }
    return found


def machine() -> dict[str, Any]:
    """The processor, what it can do of what matters here, and versions."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = facts.get("flags", "").split()
    return {
        "processor": facts.get("model name", platform.processor()),
        "processors": len(os.sched_getaffinity(0)),
        "features": [flag for flag in _FEATURES if flag in flags],
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> int:
    """Measure, print and save. Exits with 2 where an idle machine is asked for and not found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help=f"comma-separated; default: {','.join(DEFAULT)}")
    parser.add_argument("--contenders", help=f"comma-separated; default: all but {', '.join(OPTIONAL)}")
    parser.add_argument("--threads", help="comma-separated; default: 1,2")
    parser.add_argument("--rounds", type=int, help="at most so many; default: 30")
    parser.add_argument("--quick", action="store_true", help=f"{','.join(QUICK)} on 2 threads, 7 rounds")
    parser.add_argument("--idle", action="store_true", help="refuse to measure on a machine that is not idle")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    names = arguments.models.split(",") if arguments.models else QUICK if arguments.quick else DEFAULT
    threads = [int(n) for n in (arguments.threads or ("2" if arguments.quick else "1,2")).split(",")]
    rounds = arguments.rounds or (7 if arguments.quick else 30)
    # The reference runs whatever else is asked for: accuracy is measured against it.
    chosen = arguments.contenders.split(",") if arguments.contenders else set(CONTENDERS) - set(OPTIONAL)
    contenders = [found for name, found in CONTENDERS.items() if name in {*chosen, REFERENCE}]
    load = foreign_load()
    if load > IDLE:
        print(f"the machine is not idle: others use {load:.0%} of a processor", file=sys.stderr)
        if arguments.idle:
            return 2
    rows = []
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        for name in names:
            rows += measure(MODELS[name], contenders, threads, rounds, Path(scratch))
    command = shlex.join(["python", "-m", "benchmarks.cpu", *sys.argv[1:]])
    result = {"command": command, "machine": machine(), "rows": rows, "summary": summary(rows)}
    console = Console(width=None if sys.stdout.isatty() else 180)
    for part in terminal(result):
        console.print(part)
    if arguments.markdown:
        arguments.markdown.write_text(document(__doc__, result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
