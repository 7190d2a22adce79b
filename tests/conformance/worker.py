"""A process that runs cases: their names on stdin, one JSON list [name, status, reason] a line on stdout."""

from __future__ import annotations

import faulthandler
import json
import os
import sys

from .cases import all_cases
from .check import check


def main() -> None:
    """Serve until stdin ends."""
    faulthandler.enable()
    # Compilers print; the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    cases = all_cases()
    print(json.dumps(["", "ready", ""]), file=answers, flush=True)
    for line in sys.stdin:
        name = line.strip()
        print(json.dumps([name, *check(cases[name])]), file=answers, flush=True)


if __name__ == "__main__":
    main()
