"""How long `import lowerkit` takes, and that it imports no heavy dependency.

    python -m benchmarks.import_time [--json FILE]

Each sample is a fresh interpreter; the time of an interpreter that imports nothing is measured beside it
and subtracted. Exits with 1 when the median is over half a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMIT_S = 0.5
HEAVY = ("tvm", "tvm_ffi", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "scipy", "matplotlib")


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> int:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pairs = [(seconds("pass"), seconds("import lowerkit")) for _ in range(arguments.rounds)]
    listing = f"import sys, lowerkit; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", listing], check=True, capture_output=True, text=True)
    median = statistics.median(with_import - bare for bare, with_import in pairs)
    result = {"import_lowerkit_s": round(median, 4), "limit_s": LIMIT_S, "heavy": heavy.stdout.split()}
    print(f"import lowerkit: {median * 1000:.0f} ms (median of {arguments.rounds}), heavy: {result['heavy']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(median > LIMIT_S or bool(result["heavy"]))


if __name__ == "__main__":
    sys.exit(main())
