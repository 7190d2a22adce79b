"""Builds and runs a project's C-simulation."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowerkit.errors import ArtifactError, ToolError
from lowerkit.targets.fpga.design import Port, decoded, encoded
from lowerkit.targets.fpga.formats import parse

PROGRAM = "testbench"


def build(directory: Path) -> None:
    """Make the program in a project's folder. Raises ToolError without make or g++, or where they fail."""
    for tool in ("make", "g++"):
        if shutil.which(tool) is None:
            raise ToolError(
                f"{tool} is not installed, and the C-simulation needs it", hint=f"apt-get install {tool}"
            )
    jobs = f"-j{max(os.cpu_count() or 1, 1)}"
    made = subprocess.run(
        ["make", "-s", jobs, PROGRAM], cwd=directory, capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        first = next((line for line in made.stderr.splitlines() if "error" in line), made.stderr[-300:])
        raise ToolError(
            f"the C-simulation does not compile: {first.strip()}", hint="this is a fault of lowerkit"
        )
    # Objects are no part of an artifact.
    subprocess.run(["make", "-s", "tidy"], cwd=directory, capture_output=True, check=True)


class CsimRunner:
    """Runs a built C-simulation on numbers: they become codes, and the outputs' codes become numbers."""

    def __init__(self, directory: Path, description: Mapping[str, Any]) -> None:
        """`description` is that of `fpga.json`: inputs and outputs by name, shape and format."""
        self.directory = directory
        self.inputs, self.outputs = (
            [Port(p["name"], tuple(p["shape"]), parse(p["format"])) for p in description[kind]]
            for kind in ("inputs", "outputs")
        )

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of one sample or more, float32."""
        found = self.codes({p.value: encoded(p, inputs[p.value]) for p in self.inputs})
        return {p.value: decoded(p, found[p.value]) for p in self.outputs}

    def codes(self, codes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Codes of the outputs, int64 [samples, *shape], for those of the inputs. Raises ArtifactError."""
        rows = np.concatenate([codes[p.value].reshape(-1, p.size) for p in self.inputs], axis=1).astype("<i8")
        sizes = [p.size for p in self.outputs]
        with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
            given, found = Path(scratch, "in"), Path(scratch, "out")
            given.write_bytes(rows.tobytes())
            done = subprocess.run(
                [str(self.directory / PROGRAM), str(given), str(found), str(len(rows))],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0 or not found.is_file():
                reason = done.stderr.strip()[:200]
                raise ArtifactError(f"the C-simulation failed with status {done.returncode}: {reason}")
            results = np.frombuffer(found.read_bytes(), "<i8")
        if results.size != len(rows) * sum(sizes):
            raise ArtifactError(f"the C-simulation wrote {results.size} codes, not {len(rows) * sum(sizes)}")
        parts = np.split(results.reshape(len(rows), -1), np.cumsum(sizes)[:-1], axis=1)
        return {
            p.value: part.reshape(-1, *p.shape).astype(np.int64)
            for p, part in zip(self.outputs, parts, strict=True)
        }
