"""How a matrix product is cut into register tiles, and where the right operand's elements lie in memory for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.gemm.dots import Dot
from lowerkit.targets.cpu.kernels.gemm.machine import Machine


@dataclass(frozen=True)
class Run:
    """`count` pieces of `size` units each, the first of which begins at unit `start` as piece `first`."""

    first: int
    count: int
    start: int
    size: int


def even(total: int, most: int) -> tuple[Run, ...]:
    """`total` units in as few pieces of at most `most` as there have to be, whose sizes differ by 1 at most."""
    pieces = -(-total // most)
    size, larger = divmod(total, pieces)
    runs = (Run(0, larger, 0, size + 1), Run(larger, pieces - larger, larger * (size + 1), size))
    return tuple(run for run in runs if run.count)


def tallest(machine: Machine, rows: int) -> int:
    """Most rows of a register tile for products of `rows` rows."""
    most = 8 if machine.registers == 32 else 6
    return -(-rows // -(-rows // most))


def widest(machine: Machine, rows: int) -> int:
    """Most vectors of a register tile for products of `rows` rows.

    The sums of a tile fill the registers but for those that hold a step's operands; few rows take more vectors
    instead, of which one row has enough to hide an addition's latency behind the others.
    """
    if machine.registers == 32:
        return {1: 8, 2: 8, 3: 6, 4: 5, 5: 4}.get(tallest(machine, rows), 3)
    return {1: 8, 2: 4, 3: 3, 4: 3}.get(tallest(machine, rows), 2)


@dataclass(frozen=True)
class Layout:
    """The right operand [depth, width] in panels, in order; of a panel, step after step, its vectors side by side.

    Columns are padded to whole vectors, and the steps of every group of the reduction to whole ones, with zeros.

    Attributes:
        lanes: columns of a vector.
        runs: the panels, counted in vectors.
        group: length of the reduction's groups, which have scales of their own; `depth` where there are none.
    """

    dot: Dot
    depth: int
    width: int
    lanes: int
    runs: tuple[Run, ...]
    group: int

    @property
    def steps(self) -> int:
        """Steps of a group."""
        return -(-self.group // self.dot.step)

    @property
    def columns(self) -> int:
        """Columns with their padding."""
        return -(-self.width // self.lanes) * self.lanes

    @property
    def _vector(self) -> int:
        """Elements that a vector of columns takes."""
        return self.depth // self.group * self.steps * self.lanes * self.dot.stored

    @property
    def size(self) -> int:
        """Elements of all panels."""
        return self.columns // self.lanes * self._vector

    def panel(self, run: Run) -> int:
        """Elements of a panel of `run`."""
        return run.size * self._vector

    def start(self, run: Run, panel: Expr) -> Expr:
        """Where a panel of `run` begins."""
        return (run.start + (panel - run.first) * run.size) * self._vector

    def at(self, k: Expr, n: Expr) -> Expr:
        """Where the lane of column `n` begins for the step that element `k` of the reduction belongs to."""
        vector = tirx.floordiv(n, self.lanes)
        step = tirx.floordiv(k, self.group) * self.steps + tirx.floordiv(
            tirx.floormod(k, self.group), self.dot.step
        )
        found: Expr | None = None
        for run in reversed(self.runs):
            panel = run.first + tirx.floordiv(vector - run.start, run.size)
            within = step * run.size + tirx.floormod(vector - run.start, run.size)
            index = self.start(run, panel) + within * self.lanes * self.dot.stored
            found = (
                index
                if found is None
                else tirx.Select(vector < run.start + run.count * run.size, index, found)
            )
        assert found is not None
        return found + tirx.floormod(n, self.lanes) * self.dot.stored

    def element(self, panels: tvm.te.Tensor, k: Expr, n: Expr) -> Expr:
        """The weight of row `k`, column `n`, in the type of the sums."""
        within = tirx.floormod(tirx.floormod(k, self.group), self.dot.step)
        return self.dot.element(lambda at: panels[at], self.at(k, n), within)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """[depth, width] -> the panels, one after the other."""
        groups, step = self.depth // self.group, self.dot.step
        padded = np.zeros((groups, self.steps * step, self.columns), weight.dtype)
        padded[:, : self.group, : self.width] = weight.reshape(groups, self.group, self.width)
        stored = self.dot.store(padded.reshape(groups * self.steps, step, self.columns))
        pieces = []
        for run in self.runs:
            part = stored[:, run.start * self.lanes : (run.start + run.count * run.size) * self.lanes]
            split = part.reshape(len(part), run.count, run.size * self.lanes, self.dot.stored)
            pieces.append(split.transpose(1, 0, 2, 3).ravel())
        return np.concatenate(pieces).astype(self.dot.panel)


def layout(machine: Machine, kind: str, rows: int, depth: int, width: int, groups: int = 1) -> Layout:
    """How the product [rows, depth] by [depth, width] of a kind has its right operand."""
    vectors = -(-width // machine.lanes)
    runs = even(vectors, widest(machine, rows))
    return Layout(machine.dot(kind), depth, width, machine.lanes, runs, depth // groups)
