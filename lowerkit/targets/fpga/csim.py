"""Builds and runs a project's C-simulation."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowerkit.errors import ArtifactError, ToolError
from lowerkit.targets.fpga.design import Design

PROGRAM = "testbench"


def build(directory: Path) -> None:
    """Make the program in a project's folder. Raises ToolError without make or g++, or where they fail."""
    for tool in ("make", "g++"):
        if shutil.which(tool) is None:
            raise ToolError(
                f"{tool} is not installed, and the C-simulation needs it", hint=f"apt-get install {tool}"
            )
    made = subprocess.run(["make", "-s", PROGRAM], cwd=directory, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        first = next((line for line in made.stderr.splitlines() if "error" in line), made.stderr[-300:])
        raise ToolError(
            f"the C-simulation does not compile: {first.strip()}", hint="this is a fault of lowerkit"
        )


def simulate(design: Design, directory: Path, codes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs' codes, int64 [batch, ...], for the inputs' codes. Raises ArtifactError where the program fails."""
    count = len(next(iter(codes.values())))
    rows = np.concatenate([codes[p.value].reshape(count, -1) for p in design.inputs], axis=1).astype("<i8")
    sizes = [p.size for p in design.outputs]
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        given, found = Path(scratch, "in"), Path(scratch, "out")
        given.write_bytes(rows.tobytes())
        done = subprocess.run(
            [str(directory / PROGRAM), str(given), str(found), str(count)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not found.is_file():
            raise ArtifactError(
                f"the C-simulation failed with status {done.returncode}: {done.stderr.strip()[:200]}"
            )
        results = np.frombuffer(found.read_bytes(), "<i8")
    if results.size != count * sum(sizes):
        raise ArtifactError(f"the C-simulation wrote {results.size} codes, not {count * sum(sizes)}")
    parts = np.split(results.reshape(count, -1), np.cumsum(sizes)[:-1], axis=1)
    return {
        p.value: part.reshape(count, *p.shape).astype(np.int64)
        for p, part in zip(design.outputs, parts, strict=True)
    }
