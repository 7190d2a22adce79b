"""Softmax by its number of passes over memory, beside a copy of the same size, in one run on one thread.

    python -m benchmarks.softmax [--rounds 15] [--largest 24] [--json FILE] [--markdown FILE]

Rows of 2^7 to 2^24 elements; arrays of 2^22 elements or one row. Rounds go through the contenders in turn, and
the table gives medians of GB/s, counting what any softmax must move: the input read once, the output written
once. Every method is first checked against float64. `copy` is numpy's copy of the input. `three-pass` is the cpu
target's `poly-exp` (maximum, exponentials and sum, quotients), `online`, `two-pass` and `unified-max` are the
methods of these names, the last with its center at 0, which all rows are near.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console

from benchmarks.tables import Column, markdown, rich_table
from lowerkit.graph.load import load_model, upgrade
from lowerkit.passes import registry
from lowerkit.targets.base import get_target
from lowerkit.targets.cpu.runner import CpuRunner

TITLE = "Softmax by passes over memory"
#: Contender -> softmax method of the cpu target.
METHODS = {"three-pass": "poly-exp", "online": "online", "two-pass": "two-pass", "unified-max": "unified-max"}
ELEMENTS = 1 << 22
#: Of the output's scale, against float64: a contender that is wrong has no speed.
LIMIT = 1e-4
CONTENDERS = ("copy", "numpy", "onnxruntime", *METHODS)
COLUMNS = (
    Column("row", "2^{log2}"),
    *(Column(name, "{" + name + ":.2f}") for name in CONTENDERS),
    Column("two-pass / three-pass", "{ratio:.2f}"),
)


def write_model(path: Path, shape: tuple[int, int]) -> Path:
    """One Softmax over the last axis."""
    node = onnx.helper.make_node("Softmax", ["x"], ["y"], axis=-1)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
    graph = onnx.helper.make_graph([node], "softmax", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def in_numpy(x: np.ndarray) -> np.ndarray:
    """What a numpy user writes, without more temporaries than it takes."""
    y = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def contenders(x: np.ndarray, scratch: Path) -> dict[str, Callable[[], object]]:
    """Name -> one run over `x`."""
    model = write_model(scratch / "softmax.onnx", (x.shape[0], x.shape[1]))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, ["CPUExecutionProvider"])
    runs: dict[str, Callable[[], object]] = {
        "copy": x.copy,
        "numpy": lambda: in_numpy(x),
        "onnxruntime": lambda: session.run(None, {"x": x}),
    }
    target, exact = get_target("cpu"), in_numpy(x.astype(np.float64))
    for name, method in METHODS.items():
        lowered = load_model(model)
        upgrade(lowered)
        registry.make("softmax", method, {}).rewrite(lowered, lowered.graph[0])
        directory = scratch / name
        directory.mkdir()
        target.emit(lowered, {"threads": 1}, directory)
        runner = CpuRunner(directory, 1)
        runs[name] = runner.bind({"x": x})
        error = float(np.abs(runner({"x": x})["y"] - exact).max() / exact.max())
        if error > LIMIT:
            raise SystemExit(f"{name} is wrong by {error:.1e} of its scale")
    return runs


def measure(log2: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """GB/s of every contender for rows of 2^log2 elements."""
    width = 1 << log2
    rng = np.random.default_rng(0)
    x = rng.normal(0, 4, (max(1, ELEMENTS // width), width)).astype(np.float32)
    runs = contenders(x, scratch)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    seconds = {name: values[1:] for name, values in times.items()}  # the first warms up
    rates = {name: 2 * x.nbytes / statistics.median(values) / 1e9 for name, values in seconds.items()}
    pairs = zip(seconds["two-pass"], seconds["three-pass"], strict=True)
    return {
        "log2": log2,
        **{name: round(rate, 3) for name, rate in rates.items()},
        "ratio": round(statistics.median(two / three for two, three in pairs), 3),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--largest", type=int, default=24, help="log2 of the longest row")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    rows = []
    for log2 in [n for n in (7, 10, 13, 16, 18, 20, 22, 24) if n <= arguments.largest]:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(measure(log2, arguments.rounds, Path(scratch)))
    Console().print(rich_table(COLUMNS, rows))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(TITLE, __doc__, COLUMNS, rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
