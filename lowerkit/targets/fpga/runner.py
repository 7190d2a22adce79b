"""Runs a built simulation, of C++ or of Verilog, with numpy alone; also an artifact's `run.py`:

    python OUT/run.py IN.npz OUT.npz

One array for each input, samples one after the other along the first axis, floats or integers.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PROJECT, DESCRIPTION, PROGRAM = "hls", "fpga.json", "testbench"


class RunError(Exception):
    """The simulation cannot run, or not on these inputs."""


def simulate(
    directory: Path,
    description: Mapping[str, Any],
    codes: Mapping[str, np.ndarray],
    options: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Codes of the outputs, int64 [samples, *shape], for those of the inputs.

    `directory` has the program, which may take further options.
    """
    sizes = [math.prod(port["shape"]) for port in description["inputs"]]
    given = [
        codes[port["name"]].reshape(-1, size) for port, size in zip(description["inputs"], sizes, strict=True)
    ]
    rows = np.concatenate(given, axis=1).astype("<i8")
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as scratch:
        before, after = Path(scratch, "in"), Path(scratch, "out")
        before.write_bytes(rows.tobytes())
        command = [str(directory / PROGRAM), str(before), str(after), str(len(rows)), *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RunError(f"the simulation does not start: {error}") from None
        if done.returncode != 0 or not after.is_file():
            told = (done.stderr.strip().splitlines() or [""])[0][:300]
            raise RunError(f"the simulation failed with status {done.returncode}: {told}")
        results = np.frombuffer(after.read_bytes(), "<i8")
    wanted = [math.prod(port["shape"]) for port in description["outputs"]]
    if results.size != len(rows) * sum(wanted):
        raise RunError(f"the simulation wrote {results.size} codes, not {len(rows) * sum(wanted)}")
    parts = np.split(results.reshape(len(rows), -1), np.cumsum(wanted)[:-1], axis=1)
    return {
        port["name"]: part.reshape(-1, *port["shape"]).astype(np.int64)
        for port, part in zip(description["outputs"], parts, strict=True)
    }


def encoded(port: Mapping[str, Any], numbers: np.ndarray) -> np.ndarray:
    """Numbers as codes k of step (k - zero), rounded half to even and saturated; int64 [samples, *shape]."""
    if np.isnan(numbers).any():
        raise RunError(f"input '{port['name']}' has NaN, which fixed point does not know")
    if numbers.size % math.prod(port["shape"]):
        raise RunError(f"input '{port['name']}' has shape {list(numbers.shape)}, not {port['shape']}")
    whole = np.round(np.asarray(numbers, np.float64) / port["step"]) + port["zero"]
    codes: np.ndarray = np.clip(whole, *port["codes"]).astype(np.int64)
    return codes.reshape(-1, *port["shape"])


def decoded(port: Mapping[str, Any], codes: np.ndarray) -> np.ndarray:
    """What codes stand for, float32: of one sample in the port's shape, of more along its leading axis of 1."""
    numbers: np.ndarray = ((codes.astype(np.float64) - port["zero"]) * port["step"]).astype(np.float32)
    shape = tuple(port["shape"])
    if len(numbers) == 1:
        return numbers.reshape(shape)
    return numbers.reshape(-1, *(shape[1:] if shape[:1] == (1,) else shape))


def main() -> int:
    """The command line. Exit code 2 on a refusal."""
    if len(sys.argv) != 3:
        print("usage: python run.py IN.npz OUT.npz", file=sys.stderr)
        return 2
    folder = Path(__file__).resolve().parent
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        with np.load(sys.argv[1], allow_pickle=False) as data:
            missing = [port["name"] for port in description["inputs"] if port["name"] not in data]
            if missing:
                raise RunError(f"{sys.argv[1]} has no array '{missing[0]}'")
            codes = {port["name"]: encoded(port, data[port["name"]]) for port in description["inputs"]}
        found = simulate(folder / description.get("project", PROJECT), description, codes)
        results: dict[str, Any] = {
            port["name"]: decoded(port, found[port["name"]]) for port in description["outputs"]
        }
        np.savez(sys.argv[2], **results)
    except (RunError, OSError, ValueError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
