"""A process for each contender, which prepares a model or waits on a pipe for what to run.

    python -m benchmarks.cpu_workers prepare CONTENDER FOLDER
    python -m benchmarks.cpu_workers serve CONTENDER FOLDER THREADS

The first answers with one line of JSON, the second with one for being ready and one for each line that it reads.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.cpu_contenders import CONTENDERS, Case, Contender, LeftOut, Session

#: What all processes of a case print.
LOG = "log.txt"
#: Runs before anything is timed.
WARM_UP = 3


def prepare(contender: Contender, case: Case) -> dict[str, Any]:
    """Prepare a model: seconds, bytes on disk and a remark, or why it is left out."""
    try:
        contender.check_installed()
        start = time.perf_counter()
        note = contender.prepare(case, contender.path(case))
    except LeftOut as error:
        return {"left_out": " ".join(str(error).split())}
    except Exception as error:  # tools raise anything; what they cannot take is said and left out
        return {"left_out": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return {
        "prepare_seconds": time.perf_counter() - start,
        "megabytes": _size(contender.path(case)) / 1e6,
        "note": note,
    }


def _size(path: Path) -> int:
    """Of a file, the weights beside it, or a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)


def serve(
    contender: Contender, case: Case, threads: int, commands: TextIO, answer: Callable[[Any], None]
) -> None:
    """Open, warm up, and do what the lines of `commands` say: `turn SECONDS` or `outputs FILE`."""
    start = time.perf_counter()
    session = contender.open(case, contender.path(case), threads)
    open_seconds = time.perf_counter() - start
    sample = case.samples()[0]
    for _ in range(WARM_UP):
        session.run(sample)
    answer({"open_seconds": open_seconds, "ran": session.ran, "peak_megabytes": _peak_megabytes()})
    idle_since = time.perf_counter(), time.process_time()
    for line in commands:
        waited, used = time.perf_counter() - idle_since[0], time.process_time() - idle_since[1]
        command, argument = line.split(maxsplit=1)
        if command == "turn":
            found = {**turn(session, sample, float(argument)), "idle_cpu": used / waited}
        else:
            write_outputs(session, case, Path(argument.strip()))
            found = {}
        answer(found)
        idle_since = time.perf_counter(), time.process_time()


def _peak_megabytes() -> float:
    """The most memory that the process has had, Python's own and its libraries' included."""
    # Not getrusage's: that starts from the parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def turn(session: Session, sample: Mapping[str, np.ndarray], seconds: float) -> dict[str, float]:
    """Run for about so long, at least once: the median of the runs, and processors kept busy meanwhile.

    One run before is not counted: others have had the caches.
    """
    session.run(sample)
    times = []
    begin, cpu = time.perf_counter(), time.process_time()
    now = begin
    while not times or now - begin < seconds:
        start = time.perf_counter()
        session.run(sample)
        now = time.perf_counter()
        times.append(now - start)
    return {"seconds": statistics.median(times), "processors": (time.process_time() - cpu) / (now - begin)}


def write_outputs(session: Session, case: Case, path: Path) -> None:
    """The outputs for all samples, one array for each output, samples along a new first axis."""
    runs = [[np.array(array) for array in session.run(sample)] for sample in case.samples()]
    np.savez(path, **{str(index): np.stack(arrays) for index, arrays in enumerate(zip(*runs, strict=True))})


class Worker:
    """A contender's process, seen from outside. Whatever is asked of it raises LeftOut where it has stopped."""

    def __init__(self, contender: Contender, case: Case, threads: int) -> None:
        self.case = case
        self.process = _start("serve", contender, case, str(threads))
        self.ready = self._read()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def turn(self, seconds: float) -> dict[str, float]:
        """See `turn`; with `idle_cpu`, the processors that it kept busy since it was last asked."""
        return self._ask(f"turn {seconds}")

    def outputs(self, path: Path) -> list[np.ndarray]:
        """For each output the array [samples, ...]."""
        self._ask(f"outputs {path}")
        with np.load(path, allow_pickle=False) as data:
            return [data[str(index)] for index in range(len(data.files))]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise _stopped(self.process, self.case)
        return json.loads(line)


def prepare_apart(contender: Contender, case: Case) -> dict[str, Any]:
    """`prepare` in a process of its own: compilers do not share one well."""
    process = _start("prepare", contender, case)
    output, _ = process.communicate()
    if process.returncode:
        return {"left_out": str(_stopped(process, case))}
    return dict(json.loads(output))


def _stopped(process: subprocess.Popen[str], case: Case) -> LeftOut:
    last = (case.directory / LOG).read_text(errors="replace").strip().splitlines()[-1:]
    return LeftOut(f"its process stopped with {process.wait()}: {' '.join(last)}")


def _start(command: str, contender: Contender, case: Case, *rest: str) -> subprocess.Popen[str]:
    words = ["-m", "benchmarks.cpu_workers", command, contender.name, str(case.directory), *rest]
    # What is set for other programs' sake must not make a contender's threads fewer.
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    with (case.directory / LOG).open("a") as log:
        return subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )


def main() -> None:
    """See the module."""
    # Libraries print what they like: answers have the pipe for themselves.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(found: Any) -> None:
        print(json.dumps(found), file=pipe, flush=True)

    command, name, folder, *rest = sys.argv[1:]
    contender, case = CONTENDERS[name], Case.read(Path(folder))
    if command == "prepare":
        answer(prepare(contender, case))
    else:
        serve(contender, case, int(rest[0]), sys.stdin, answer)


if __name__ == "__main__":
    main()
