"""Whole transformers encrypted: time, memory, agreement with the float network, and precision.

    LOWERKIT_OPENFHE_PYTHON=openfhe-env/bin/python OMP_NUM_THREADS=1 \\
        python -m benchmarks.he_vit encrypted [--samples 52] [--batch 4] [--json FILE]

`plain` and `power` are the ViTs as they were trained, whose layer norms, softmax and GELU become polynomials.

The artifact is compiled for OpenFHE, and run as a user would: a server that keeps the evaluation keys, and a client
that asks it. `--batch` samples are in the same ciphertexts. Seconds are by the clock, of a query of that many samples,
and are those of the process as well where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import lowerkit.api
from benchmarks.he_choices import CALIBRATION, CHOSEN, reach, tests
from lowerkit.artifact import ORIGINAL
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target
from lowerkit.targets.he.reading import read

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Network:
    """A network, and how it becomes polynomial."""

    file: str
    methods: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: Path = EXAMPLES / "data" / "digits_calibration.npz"


#: Few digits of key switching, so that the keys fit into memory; one image of 8192 numbers in its largest layer.
BOOTSTRAPPED = {"ring": 65536, "precision": 0.8, "refresh": 8192, "digits": 3, "max_memory": 17}
NETWORKS = {
    "encrypted": Network(
        "vit_digits_encrypted",
        {"gelu": "interval-poly:degree=7,margin=1.2", "reciprocal": "interval-poly:degree=7,margin=1.1"},
        {"ring": 65536},
    ),
    "plain": Network("vit_digits", CHOSEN, BOOTSTRAPPED, CALIBRATION),
    "power": Network("vit_digits_power", CHOSEN, BOOTSTRAPPED, CALIBRATION),
}


def measure(name: str, samples: int, batch: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Compile, run and compare; prints as it goes, and returns what it printed."""
    network = NETWORKS[name]
    every, labels = tests()
    images, labels = every[: samples // batch * batch], labels[: samples // batch * batch]
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        artifact = lowerkit.api.compile(
            EXAMPLES / "models" / f"{network.file}.onnx",
            Path(scratch, "out"),
            "he",
            calibration=network.calibration,
            shape={"image": (batch, 1, 8, 8)},
            methods=network.methods,
            options={"backend": "openfhe", "precision": 1e-2, **network.options, **options},
        )
        compiled = time.perf_counter() - start
        (costs,) = get_target("he").costs(artifact.directory)
        counts = dict(zip(costs.columns[1:-1], costs.rows[-1][1:-1], strict=True))
        planned = {k: artifact.plan.options[k] for k in ("ring", "scale", "digits", "max_rotation_keys")}
        bootstraps = max(len(artifact.plan.options["bootstraps"]) - 1, 0)
        print(f"{name}: {planned}, {counts}, places to bootstrap {bootstraps}, compiled in {compiled:.0f} s")
        original, lowered = Reference(artifact.model(ORIGINAL)), Reference(artifact.model())
        runner = artifact.open()
        rows: dict[str, list[np.ndarray]] = {"encrypted": [], "lowered": [], "float": []}
        seconds: list[float] = []
        for first in range(0, len(images), batch):
            sample = {"image": images[first : first + batch]}
            start = time.perf_counter()
            rows["encrypted"].append(runner(sample)["logits"])
            seconds.append(time.perf_counter() - start)
            rows["lowered"].append(lowered(sample)["logits"])
            rows["float"].append(original(sample)["logits"])
            error = np.abs(rows["encrypted"][-1] - rows["lowered"][-1]).max()
            print(f"  {first + batch} samples: {seconds[-1]:.1f} s, error {error:.2g}", flush=True)
        memory = _peak_of_children()
        queries = every[: len(every) // batch * batch].reshape(-1, batch, *every.shape[1:])
        alone = [(lowered({"image": x})["logits"], original({"image": x})["logits"]) for x in queries]
        furthest = reach(read(artifact.model()), ({"image": x} for x in queries))
        (costs,) = get_target("he").costs(artifact.directory)
    for row in (costs.columns, *costs.rows):
        print("  " + ", ".join(map(str, row)))
    found = {key: np.concatenate(values) for key, values in rows.items()}
    top = {key: values.argmax(axis=1) for key, values in found.items()}
    result = {
        "network": network.file,
        **planned,
        **counts,
        "places to bootstrap": bootstraps,
        "batch": batch,
        "samples": len(images),
        "seconds a query": float(np.median(seconds)),
        "seconds a sample": float(np.median(seconds)) / batch,
        "server's memory, GB": memory,
        "agreement with float": float((top["encrypted"] == top["float"]).mean()),
        "right": {key: int((values == labels).sum()) for key, values in top.items()},
        "polynomials alone": {
            "images": len(queries) * batch,
            "agreement with float": float(np.mean([a.argmax(axis=1) == b.argmax(axis=1) for a, b in alone])),
            "furthest operand": furthest,
        },
        "encryption error": float(np.abs(found["encrypted"] - found["lowered"]).max()),
        "method error": float(np.abs(found["lowered"] - found["float"]).max()),
    }
    for key, value in result.items():
        print(f"  {key}: {value}")
    return {**result, "layers": [costs.columns, *costs.rows]}


def _peak_of_children() -> float:
    """The most memory that the server has held so far, GB."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = [Path(f"/proc/{child}/status").read_text() for child in children]
    return max(int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024 / 1e9 for text in found)  # type: ignore[index]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=52)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rotation-keys", type=int, default=0, help="most rotations that have a key")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    options = {"max_rotation_keys": given.rotation_keys}
    result = measure(given.network, given.samples, given.batch, options)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
