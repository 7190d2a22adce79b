"""What `benchmarks.cpu` makes of its rows: ratios to the fastest peer, geometric means, tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.cpu_contenders import CONTENDERS
from benchmarks.idle import IDLE
from benchmarks.tables import Column, markdown_table, rich_table

Row = Mapping[str, Any]

TITLE = "The cpu target's speed"
MEAN = "geometric mean"
#: Of the rounds' ratios, the range in the tables.
LOW, HIGH = 10, 90

RATIOS = (
    Column("model", "{model}"),
    Column("precision", "{precision}"),
    Column("threads", "{threads}"),
    Column("lowerkit ms", "{ours:.3f}"),
    Column("fastest peer", "{peer}"),
    Column("its ms", "{theirs:.3f}"),
    Column("ratio", "{ratio:.2f}"),
    Column("range", "{low:.2f}–{high:.2f}"),
    Column("", "{remark}"),
)
TIMES = (
    Column("model", "{model}"),
    Column("threads", "{threads}"),
    Column("contender", "{contender}"),
    Column("ran", "{ran}"),
    Column("median ms", "{median:.3f}"),
    Column("range ms", "{fastest:.3f}–{slowest:.3f}"),
    Column("cosine", "{cosine:.5f}"),
    Column("score", "{score:.4f}"),
)
FOOTPRINTS = (
    Column("model", "{model}"),
    Column("contender", "{contender}"),
    Column("preparing s", "{prepare_seconds:.1f}"),
    Column("opening s", "{open_seconds:.2f}"),
    Column("files MB", "{megabytes:.1f}"),
    Column("peak memory MB", "{peak_megabytes:.0f}"),
    Column("processors busy", "{processors:.2f}"),
    Column("idle CPU", "{idle_cpu:.2%}"),
    Column("how", "{note}"),
)
LEFT_OUT = (
    Column("model", "{model}"),
    Column("contender", "{contender}"),
    Column("why", "{left_out}"),
)


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each model, precision and number of threads lowerkit against the fastest peer, and the means of these."""
    timed = [row for row in rows if "ms" in row]
    found = [_against_fastest(ours, timed) for ours in timed if CONTENDERS[ours["contender"]].ours]
    compared = [row for row in found if row is not None]
    means = []
    for precision in dict.fromkeys(row["precision"] for row in compared):
        for threads in dict.fromkeys(row["threads"] for row in compared):
            ratios = [r["ratio"] for r in compared if (r["precision"], r["threads"]) == (precision, threads)]
            if ratios:
                means.append(_mean(precision, threads, ratios))
    return sorted(compared, key=lambda row: row["precision"] != "fp32") + means


def _against_fastest(ours: Row, timed: Sequence[Row]) -> dict[str, Any] | None:
    same = ("model", "precision", "threads")
    peers = [
        row
        for row in timed
        if all(row[key] == ours[key] for key in same) and not CONTENDERS[row["contender"]].ours
    ]
    if not peers:
        return None
    peer = min(peers, key=lambda row: float(np.median(row["ms"])))
    ratios = np.asarray(ours["ms"]) / np.asarray(peer["ms"])
    remarks = []
    if ours["foreign_load"] > IDLE:
        remarks.append(f"not idle: {ours['foreign_load']:.0%} used by others")
    if ours["precision"] == "bf16" and "bf16" not in peer["ran"]:
        remarks.append("the peer fell back to float32")
    return {
        **{key: ours[key] for key in same},
        "ours": float(np.median(ours["ms"])),
        "peer": peer["contender"],
        "theirs": float(np.median(peer["ms"])),
        "ratio": float(np.median(ratios)),
        "low": float(np.percentile(ratios, LOW)),
        "high": float(np.percentile(ratios, HIGH)),
        "remark": "; ".join(remarks),
    }


def _mean(precision: str, threads: int, ratios: Sequence[float]) -> dict[str, Any]:
    unknown = float("nan")
    return {
        "model": MEAN,
        "precision": precision,
        "threads": threads,
        "ours": unknown,
        "peer": "",
        "theirs": unknown,
        "ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)),
        "low": min(ratios),
        "high": max(ratios),
        "remark": f"of {len(ratios)} models, and their range",
    }


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [
        {**row, "median": float(np.median(row["ms"])), "fastest": min(row["ms"]), "slowest": max(row["ms"])}
        for row in rows
        if "ms" in row
    ]


def _footprints(rows: Sequence[Row]) -> list[Row]:
    """On the most threads."""
    timed = [row for row in rows if "ms" in row]
    most = max((row["threads"] for row in timed), default=0)
    return [row for row in timed if row["threads"] == most]


def _left_out(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "left_out" in row]


def terminal(result: Mapping[str, Any]) -> list[Table | str]:
    """All tables for a terminal, the ratios last."""
    rows = result["rows"]
    parts: list[Table | str] = [rich_table(TIMES, _timed(rows)), rich_table(FOOTPRINTS, _footprints(rows))]
    if left_out := _left_out(rows):
        parts.append(rich_table(LEFT_OUT, left_out))
    return [*parts, rich_table(RATIOS, result["summary"])]


def document(text: str, result: Mapping[str, Any]) -> str:
    """docs/cpu-speed.md."""
    rows, machine = result["rows"], result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    features = ", ".join(machine["features"]) or "none of the features that matter here"
    where = f"{machine['processors']} x {machine['processor']} ({features}); {packages}."
    sections = [
        ("Ratios to the fastest peer", RATIOS, result["summary"]),
        ("Times, precisions, accuracy", TIMES, _timed(rows)),
        ("What it takes besides", FOOTPRINTS, _footprints(rows)),
        ("Left out", LEFT_OUT, _left_out(rows)),
    ]
    tables = [
        f"## {heading}\n\n{markdown_table(columns, found)}" for heading, columns, found in sections if found
    ]
    return "\n".join([f"# {TITLE}\n", f"{text.strip()}\n", f"Measured on {where}\n", *tables])
