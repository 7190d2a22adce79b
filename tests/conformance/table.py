"""The stored results, and the page in docs/ that is written from them."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from .cases import Case
from .check import Outcome

RESULTS = Path(__file__).with_name("results.json")
TABLE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
STATUSES = ("pass", "refused", "wrong", "crash")

_INTRODUCTION = """\
# Conformance of the cpu target

The ONNX project's backend node tests (onnx {onnx}), each compiled and run: load → canonicalise → expand →
cpu target (TVM {tvm}), every operator kept as it is. Outputs are compared with the expected ones as ONNX's
own runner does: shapes and dtypes the same, integers and booleans equal, floats within the case's tolerance
(rtol 1e-3 and atol 1e-7 unless it says otherwise; 2e-3 in float16, two of its steps), NaN equal to NaN.

- **pass**: every output agrees.
- **refused**: lowerkit says why, at compile time, and writes nothing.
- **wrong**: it ran, and an output disagrees.
- **crash**: anything else, from an exception that is no refusal to a dead process.

A node test feeds every input at run time, shapes and axes too. Those that models hold as constants
(`PARAMETERS` in `tests/conformance/cases.py`) are constants here. The *expanded* cases are the function
bodies by which ONNX defines operators.

This page and `tests/conformance/results.json`, which has a line for each case, are written by

    python -m tests.conformance.run --jobs 2 --update
"""


def read_results() -> dict[str, Outcome]:
    """Case name -> (status, reason), as stored."""
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {name: (status, reason) for name, (status, reason) in stored.items()}


def write_results(results: Mapping[str, Outcome]) -> None:
    """Store `results`, one case a line."""
    lines = [f"{json.dumps(name)}: {json.dumps(list(outcome))}" for name, outcome in results.items()]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def markdown(results: Mapping[str, Outcome], cases: Mapping[str, Case]) -> str:
    """The page: counts, operators, and the refused cases by reason."""
    plain = {name: outcome for name, outcome in results.items() if not cases[name].expanded}
    expanded = {name: outcome for name, outcome in results.items() if cases[name].expanded}
    parts = [_INTRODUCTION.format(onnx=version("onnx"), tvm=version("apache-tvm"))]
    rows = [["plain", *_counts(plain)], ["expanded", *_counts(expanded)]]
    parts.append(_table(["cases", *STATUSES, "all"], rows))
    parts.append("## By operator\n\nPlain cases.\n")
    by_operator: dict[str, dict[str, Outcome]] = defaultdict(dict)
    for name, outcome in plain.items():
        by_operator[cases[name].operator][name] = outcome
    rows = [[operator, *_counts(by_operator[operator])] for operator in sorted(by_operator)]
    parts.append(_table(["operator", *STATUSES, "all"], rows))
    for status, title in (("wrong", "Wrong"), ("crash", "Crashes"), ("refused", "Refused, by reason")):
        groups: dict[str, list[str]] = defaultdict(list)
        for name, (found, why) in results.items():
            if found == status:
                groups[_general(why)].append(name.removeprefix("test_"))
        if groups:
            parts.append(f"## {title}\n")
        for why, names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
            parts.append(f"**{len(names)}: {_escape(why)}**\n\n{' '.join(f'`{name}`' for name in names)}\n")
    return "\n".join(parts)


def _counts(results: Mapping[str, Outcome]) -> list[str]:
    counts = Counter(status for status, _ in results.values())
    return [*(str(counts[status] or "") for status in STATUSES), str(len(results))]


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _general(why: str) -> str:
    """A reason without the name of the node and of values, so that equal ones meet."""
    why = re.sub(r"^node '[^']*' \((\w+)\): ", r"\1: ", why)
    why = re.sub(r"(target 'cpu': )|(\. See `lowerkit inspect.*)", "", why)
    return re.sub(r"'[^']*'", "'…'", why)


def _escape(text: str) -> str:
    return re.sub(r"([*_<>`\[\]])", r"\\\1", text)
