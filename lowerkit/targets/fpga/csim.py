"""Builds and runs a project's C-simulation."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowerkit.errors import ArtifactError, DataError, ToolError
from lowerkit.targets.fpga import runner
from lowerkit.targets.fpga.runner import PROGRAM


def build(directory: Path, what: str = "C-simulation") -> None:
    """Make the program in a project's folder. Raises ToolError without make or g++, or where they fail."""
    for tool in ("make", "g++"):
        if shutil.which(tool) is None:
            raise ToolError(
                f"{tool} is not installed, and the {what} needs it", hint=f"apt-get install {tool}"
            )
    jobs = f"-j{max(os.cpu_count() or 1, 1)}"
    made = subprocess.run(
        ["make", "-s", jobs, PROGRAM], cwd=directory, capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        first = next(
            (line for line in made.stderr.splitlines() if "error" in line.lower()), made.stderr[-300:]
        )
        raise ToolError(f"the {what} does not compile: {first.strip()}", hint="this is a fault of lowerkit")
    # Objects are no part of an artifact.
    subprocess.run(["make", "-s", "tidy"], cwd=directory, capture_output=True, check=True)


class CsimRunner:
    """Runs a built C-simulation on numbers: they become codes, and the outputs' codes become numbers."""

    def __init__(self, directory: Path, description: Mapping[str, Any]) -> None:
        """`description` is that of `fpga.json`: inputs and outputs by name, shape and codes."""
        self.directory, self.description = directory, description

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of one sample or more, float32. Raises DataError, ArtifactError."""
        ports = self.description
        try:
            given = {p["name"]: runner.encoded(p, inputs[p["name"]]) for p in ports["inputs"]}
        except runner.RunError as error:
            raise DataError(str(error)) from None
        found = self.codes(given)
        return {p["name"]: runner.decoded(p, found[p["name"]]) for p in ports["outputs"]}

    def codes(self, codes: Mapping[str, np.ndarray], options: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Codes of the outputs, int64 [samples, *shape], for those of the inputs. Raises ArtifactError.

        `options` are the program's, on its command line.
        """
        try:
            return runner.simulate(self.directory, self.description, codes, options)
        except runner.RunError as error:
            raise ArtifactError(str(error)) from None
