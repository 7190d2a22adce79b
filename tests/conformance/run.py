"""Runs the suite:

    python -m tests.conformance.run [--jobs 2] [--filter relu] [--update]

Each worker process handles many cases, one after the other. One that dies or takes too long costs its case
the status `crash`, and another takes its place.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .check import Outcome
from .table import RESULTS, TABLE, markdown, read_results, write_results

#: Seconds for one case, and for a worker to start.
LIMIT, START_LIMIT = 60, 300
ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process that answers names of cases with their outcomes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["nice", "-n", "10", sys.executable, "-m", "tests.conformance.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if self._answer(START_LIMIT) is None:
            raise RuntimeError(f"no worker started: run `python -m tests.conformance.worker` in {ROOT}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # the end

    def _answer(self, limit: float) -> list[str] | None:
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            return None
        return json.loads(line) if line else None

    def check(self, name: str) -> tuple[Outcome, bool]:
        """The outcome of case `name`, and whether the worker lives."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        answer = self._answer(LIMIT)
        if answer is not None:
            return (answer[1], answer[2]), True
        code = self._process.poll()
        self.stop()
        return ("crash", f"no answer in {LIMIT} s" if code is None else f"exit code {code}"), False

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def run_cases(names: Sequence[str], jobs: int) -> dict[str, Outcome]:
    """The outcome of every case in `names`, in that order."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    outcomes: dict[str, Outcome] = {}

    def work() -> None:
        worker = None
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                break
            worker = worker or Worker()
            outcomes[name], alive = worker.check(name)
            if not alive:
                worker = None
            if len(outcomes) % 100 == 0:
                print(f"{len(outcomes)}/{len(names)}", file=sys.stderr)
        if worker is not None:
            worker.stop()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: outcomes[name] for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit code 1 where a result is wrong, a crash, or other than in the committed results."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--filter", default="", help="run the cases whose names contain this")
    parser.add_argument("--status", default="", help="run the cases that the stored results give this status")
    parser.add_argument("--update", action="store_true", help="store the results and write the table")
    options = parser.parse_args(arguments)
    from .cases import all_cases

    stored = read_results() if RESULTS.is_file() else {}
    cases = all_cases()
    every = list(cases)
    chosen = [name for name in every if options.filter in name]
    if options.status:
        chosen = [name for name in chosen if stored.get(name, ("", ""))[0] == options.status]
    found = run_cases(chosen, options.jobs)
    bad = 0
    for name, (status, reason) in found.items():
        changed = name in stored and stored[name][0] != status
        bad += status in ("wrong", "crash") or (changed and not options.update)
        if changed or status in ("wrong", "crash"):
            before = f" (was {stored[name][0]})" if changed else ""
            print(f"{name}: {status}{before} {reason}")
    print(dict(Counter(status for status, _ in found.values())))
    if options.update:
        merged = {**stored, **found}
        write_results({name: merged[name] for name in every if name in merged})
        TABLE.write_text(markdown(read_results(), cases), encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
