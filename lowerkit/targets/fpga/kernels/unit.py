"""One linear unit for many linear layers: their weights lie in one array, and a table says where, and of what sizes.

The unit's multipliers are used by one layer after the other, where separate layers have their own. A job is one layer;
its number is an input of the kernel. Results are those of `linear`, bit for bit.

Source: Sarkar et al., Edge-MoE (ICCAD 2023), section IV-D, the unified linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.contract import constant_sums
from lowerkit.targets.fpga.kernels.schedule import Built, Schedule, built
from lowerkit.targets.fpga.lang.expr import (
    Array,
    Expr,
    Range,
    Select,
    Slice,
    Var,
    clamp,
    equal,
    expr,
    minimum,
)
from lowerkit.targets.fpga.lang.program import Builder


@dataclass(frozen=True)
class Job:
    """y = x W + b with x [rows, inner] and y [rows, columns].

    Attributes:
        weights: codes [inner, columns], each column of its own format.
        bias: whole numbers [columns] at the precision of the products, or None.
    """

    rows: int
    weights: np.ndarray
    x: Fixed
    formats: Sequence[Fixed]
    y: Fixed
    bias: np.ndarray | None = None

    @property
    def finest(self) -> int:
        """The most fraction bits of any column's weights."""
        return max(f.fraction for f in self.formats)

    @property
    def shifts(self) -> np.ndarray:
        """What brings each column's sum to the finest one's fraction."""
        return np.array([self.finest - f.fraction for f in self.formats], np.int64)

    def sums(self) -> Range:
        """Of sums, those on the way included."""
        return constant_sums(self.weights, self.x.range, self.bias)

    def aligned(self) -> Range:
        """Of sums at the finest fraction."""
        own = [
            constant_sums(w[:, None], self.x.range, None if self.bias is None else self.bias[i : i + 1])
            for i, w in enumerate(self.weights.T)
        ]
        ends = [(r.low << int(s), r.high << int(s)) for r, s in zip(own, self.shifts, strict=True)]
        return Range(min(low for low, _ in ends), max(high for _, high in ends))


def linear_unit(name: str, jobs: Sequence[Job], lanes: int) -> Built:
    """y [largest], for x [largest] and job [1]: rows after each other, what lies behind a job's own sizes is left out.

    Args:
        lanes: products of a column that are computed at once, which is the number of multipliers for data.

    The schedule is that of the largest loops; `schedule_of` has that of a job.

    Raises:
        ValueError: for inputs or outputs of different integer types, and for an output that is finer than its sums.
    """
    x_range, y_range = jobs[0].x.range, jobs[0].y.range
    if any((job.x.range, job.y.range) != (x_range, y_range) for job in jobs):
        raise ValueError(f"{name}: one unit has inputs of one width and sign, and so has its outputs")
    downs = [job.x.fraction + job.finest - job.y.fraction for job in jobs]
    if min(downs) < 0:
        raise ValueError(
            f"{name}: job {int(np.argmin(downs))} has an output of more fraction bits than its sums"
        )
    k = Builder(name, f"y = x W + b, one of {len(jobs)} layers, {lanes} products of a column at once.")
    x = k.input("x", (max(job.rows * len(job.weights) for job in jobs),), x_range)
    which = k.input("job", (1,), Range(0, len(jobs) - 1))
    y = k.output("y", (max(job.rows * job.weights.shape[1] for job in jobs),), y_range)
    chunks = [-(-len(job.weights) // lanes) for job in jobs]
    columns = [job.weights.shape[1] for job in jobs]
    aligned = _union([job.aligned() for job in jobs])
    table = {
        "rows": [job.rows for job in jobs],
        "inner": [len(job.weights) for job in jobs],
        "last": [job.rows * len(job.weights) - 1 for job in jobs],
        "chunks": chunks,
        "columns": columns,
        "w_start": _starts([n * lanes * c for n, c in zip(chunks, columns, strict=True)]),
        "c_start": _starts(columns),
        # Twice the sum has at least one bit to drop; two beyond the number's own, more drop no less.
        "drop": [min(down, aligned.bits + 2) + 1 for down in downs],
    }
    read = _table(k, table, which)
    padded = [_in_chunks(job.weights, lanes) for job in jobs]
    w = k.constant(Array.constant(f"{name}_w", np.concatenate([each.ravel() for each in padded])))
    biases = [
        np.zeros(c, np.int64) if job.bias is None else job.bias for job, c in zip(jobs, columns, strict=True)
    ]
    bias = k.constant(Array.constant(f"{name}_b", np.concatenate(biases)))
    shifts = k.constant(Array.constant(f"{name}_shift", np.concatenate([job.shifts for job in jobs])))
    sums = _union([job.sums() for job in jobs])
    with k.loop("row", max(table["rows"]), label="each_row") as row, k.when(row < read["rows"]):
        x_row = k.let("x_row", row * read["inner"], Range(0, x.shape[0] - 1))
        y_row = k.let("y_row", row * read["columns"], Range(0, y.shape[0] - 1))
        kept = k.local("kept", (max(columns),), sums)
        with k.loop("chunk", max(chunks), serial=True) as chunk, k.when(chunk < read["chunks"]):
            first = k.let("first", chunk * lanes)
            w_chunk = k.let("w_chunk", read["w_start"] + first * read["columns"], Range(0, w.shape[0] - 1))
            with k.loop("c", max(columns), pipeline=True) as c, k.when(c < read["columns"]):
                own = k.let("own", read["c_start"] + c, Range(0, bias.shape[0] - 1))
                total = k.register("total", Select(equal(chunk, 0), bias[own], kept[c]), sums)
                with k.loop("lane", lanes, serial=True) as lane:
                    # Weights behind the last input are 0.
                    place = minimum(x_row + first + lane, read["last"])
                    at = k.let("at", w_chunk + (c * lanes + lane), Range(0, w.shape[0] - 1))
                    k.update(total, total + x[place] * w[at])
                k.store(kept, c, total)
        with k.loop("result", max(columns), pipeline=True) as c, k.when(c < read["columns"]):
            column = k.let("column", read["c_start"] + c, Range(0, bias.shape[0] - 1))
            value = k.let("value", kept[c] << shifts[column], aligned)
            k.store(
                y,
                k.let("y_place", y_row + c, Range(0, y.shape[0] - 1)),
                _rounded(k, value, read["drop"], y_range),
            )
    return built(k.finish())


def schedule_of(job: Job, lanes: int, multipliers: int) -> Schedule:
    """What one job costs on a unit: for each row, columns for each chunk of the inputs and once for the results.

    As everywhere, the code between these loops takes a cycle: what the table says, a row's places, a chunk's places.
    """
    inner, columns = job.weights.shape
    chunks = -(-inner // lanes)
    cycles = 1 + job.rows * (1 + chunks * (1 + columns) + columns)
    return Schedule(multipliers, cycles, -(-cycles // job.rows), job.rows * (chunks + 1))


def _in_chunks(weights: np.ndarray, lanes: int) -> np.ndarray:
    """[chunks, columns, lanes]: what is read at once lies together; zeros behind the last input."""
    inner, columns = weights.shape
    whole = np.zeros((-(-inner // lanes) * lanes, columns), np.int64)
    whole[:inner] = weights
    return whole.reshape(-1, lanes, columns).transpose(0, 2, 1)


def _table(k: Builder, table: dict[str, list[int]], which: Array) -> dict[str, Expr]:
    """The job's entries."""
    job = k.let("number", which[0])
    return {
        what: k.let(f"its_{what}", k.constant(Array.constant(f"{k.name}_{what}", np.array(entries)))[job])
        for what, entries in table.items()
    }


def _rounded(k: Builder, value: Var, drop: Expr, target: Range) -> Expr:
    """2 value / 2^drop, ties to even, saturated; the count is the job's."""
    twice = k.let("twice", value << 1)
    last = Slice(twice >> drop, 0, 1)
    half = expr(1) << (drop - 1)
    rounded = k.let("rounded", (twice + (half - 1) + last) >> drop)
    return clamp(rounded, target.low, target.high)


def _union(ranges: Sequence[Range]) -> Range:
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes).tolist()[:-1]]
