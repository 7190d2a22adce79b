"""An artifact's two sides in another interpreter, through the commands that a user has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowerkit.errors import ArtifactError, DataError, ToolError
from lowerkit.targets.he import measured
from lowerkit.targets.he.runtime.openfhe_scheme import INSTALL

#: Where the interpreter is, if no option says.
VARIABLE = "LOWERKIT_OPENFHE_PYTHON"


def importable() -> bool:
    """Whether this interpreter has OpenFHE, and not just a folder of that name."""
    try:
        import openfhe
    except ImportError:  # a wheel for another version of Python, for one
        return False
    return hasattr(openfhe, "GenCryptoContext")


def interpreter(given: str) -> Path:
    """The interpreter that has OpenFHE: the one given, or else that of the environment variable.

    Raises ToolError where there is none, with what to do.
    """
    path = given or os.environ.get(VARIABLE, "")
    hint = f"install it: {INSTALL}; then --option openfhe_python=openfhe-env/bin/python, or {VARIABLE}"
    if not path:
        raise ToolError("target 'he': this Python has no OpenFHE, and no other is named", hint=hint)
    command = [path, "-c", "from openfhe import GenCryptoContext"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ToolError(f"target 'he': cannot run {path}: {error.strerror or error}", hint=hint) from None
    if done.returncode:
        raise ToolError(f"target 'he': {path} has no OpenFHE: {_last(done.stderr)}", hint=hint)
    # Absolute, as commands run in the artifact's folder; not resolved, as a virtual environment's is a link.
    return Path(shutil.which(path) or path).absolute()


class Worker:
    """Runs an artifact: fresh keys, a server that stays, and one `client ask` for every call.

    Raises ToolError where no interpreter has OpenFHE, and ArtifactError for what a side refuses.
    """

    def __init__(self, directory: Path, python: str) -> None:
        self._python = interpreter(python)
        self._directory = directory
        self._folder = tempfile.TemporaryDirectory(prefix="lowerkit-he-")
        self._keys = Path(self._folder.name, "keys")
        self._socket = Path(self._folder.name, "socket")
        done = self._run("client", "keygen", self._keys)
        if done.returncode:
            raise ArtifactError(_last(done.stderr))
        log = Path(self._folder.name, "log")
        self._times = Path(self._folder.name, "times.json")
        serving = ("serve", self._keys / "evaluation.keys", "--socket", self._socket, "--times", self._times)
        with log.open("w") as stream:
            self._server = subprocess.Popen(self._command("server", *serving), cwd=directory, stderr=stream)
        weakref.finalize(self, _stop, self._server, self._folder)
        while not self._socket.exists():
            if self._server.poll() is not None:
                raise ArtifactError(_last(log.read_text()))
            time.sleep(0.05)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given, found = Path(self._folder.name, "in.npz"), Path(self._folder.name, "out.npz")
        np.savez(given, **{name: np.asarray(x) for name, x in inputs.items()})  # type: ignore[arg-type]
        done = self._run("client", "ask", self._keys, given, found, "--socket", self._socket)
        if "nothing was encrypted" in done.stderr:
            hint = "compile with calibration data like it, or more margin"
            raise DataError(_last(done.stderr), hint=hint)
        if done.returncode:
            raise ArtifactError(_last(done.stderr))
        measured.remember(measured.circuit_of(self._directory), json.loads(self._times.read_text()))
        with np.load(found, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def _command(self, side: str, *arguments: object) -> list[str]:
        return [str(self._python), "-m", side, *map(str, arguments)]

    def _run(self, side: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = self._command(side, *arguments)
        return subprocess.run(command, cwd=self._directory, capture_output=True, text=True, check=False)


def _stop(server: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    server.terminate()
    server.wait()
    folder.cleanup()


def _last(text: str) -> str:
    lines = [line for line in text.strip().split("\n") if line]
    return lines[-1] if lines else "it ended without a message"
