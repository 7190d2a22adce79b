"""Artifact against onnxruntime, side by side in one run, on the same threads.

    python -m benchmarks.cpu [--models minilm,vit,...] [--threads 1,2] [--json FILE]

Every contender lives in a process of its own that waits on a pipe; rounds go through the contenders in
turn, so that drift of the machine's speed meets all of them alike. The table gives medians over all
rounds, and the ratio artifact / onnxruntime (below 1: the artifact is faster).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.models import MODELS, BenchmarkModel
from benchmarks.tables import Column, markdown, rich_table
from lowerkit.artifact import ORIGINAL, Artifact

Run = Callable[[], object]

TITLE = "The cpu target's speed"
COLUMNS = (
    Column("model", "{model}"),
    Column("threads", "{threads}"),
    Column("lowerkit ms", "{lowerkit_ms:.2f}"),
    Column("onnxruntime ms", "{onnxruntime_ms:.2f}"),
    Column("ratio", "{ratio:.2f}"),
)


def onnxruntime_run(directory: Path, threads: int, sample: Mapping[str, np.ndarray]) -> Run:
    """The original model in onnxruntime, all optimisations on, not spinning between calls."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(directory / ORIGINAL), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, dict(sample))


def artifact_run(directory: Path, threads: int, sample: Mapping[str, np.ndarray]) -> Run:
    """The compiled artifact."""
    runner = Artifact.load(directory).open(threads=threads)
    return lambda: runner(sample)


CONTENDERS = {"onnxruntime": onnxruntime_run, "lowerkit": artifact_run}


def worker(contender: str, directory: Path, threads: int) -> None:
    """Answer each line on stdin with the seconds that one run took."""
    with np.load(directory / "benchmark.npz", allow_pickle=False) as data:
        run = CONTENDERS[contender](directory, threads, dict(data))
    for _ in range(3):
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, directory: Path, threads: int) -> None:
        command = [
            sys.executable,
            "-m",
            "benchmarks.cpu",
            "--worker",
            contender,
            str(directory),
            str(threads),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self.process.args} stopped with {self.process.wait()}")
        return line

    def measure(self) -> float:
        """Seconds of one run."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(model: BenchmarkModel, threads: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """Compile `model` with default methods and time both contenders in turn."""
    import lowerkit

    directory = scratch / f"{model.name}-{threads}"
    data = model.write_samples(scratch / f"{model.name}.npz")
    lowerkit.compile(
        model.path(),
        directory,
        "cpu",
        shape=model.shapes,
        calibration=data,
        options={"threads": threads},
        force=True,
    )
    np.savez(directory / "benchmark.npz", **model.one_sample(data))
    workers = {name: Worker(name, directory, threads) for name in CONTENDERS}
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, process in workers.items():
            times[name].append(process.measure())
    for process in workers.values():
        process.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    pairs = zip(times["lowerkit"], times["onnxruntime"], strict=True)
    return {
        "model": model.name,
        "threads": threads,
        "rounds": rounds,
        **{f"{name}_ms": round(1e3 * value, 4) for name, value in medians.items()},
        "range_ms": {name: [round(1e3 * f(v), 4) for f in (min, max)] for name, v in times.items()},
        "ratio": round(statistics.median(ours / theirs for ours, theirs in pairs), 3),
    }


def main() -> None:
    """Compare, print and save."""
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated; default: all")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"warning: the machine is not idle (load {busy:.1f}); ratios suffer", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            compare(MODELS[name], threads, arguments.rounds, Path(scratch))
            for name in arguments.models.split(",")
            for threads in map(int, arguments.threads.split(","))
        ]
    Console().print(rich_table(COLUMNS, rows))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(TITLE, __doc__, COLUMNS, rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
