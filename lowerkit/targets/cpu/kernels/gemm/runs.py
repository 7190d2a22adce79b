"""Where the rows of a product lie when they are the windows of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.gemm.expressions import ramp

#: The annotation of a product whose rows lie so.
RUNS = "lowerkit.gemm_runs"


@dataclass(frozen=True)
class Runs:
    """Rows of the left operand out of an image [N, H, W * channels]: the windows of a convolution.

    Attributes:
        length: elements of a run, which lie side by side.
        columns: runs side by side in the image; the runs of a row of it follow each other.
        strides: from a window to the next one, by axis of the image (rows, elements).
        dilations: from a run to the next one, likewise.
    """

    length: int
    columns: int
    strides: tuple[int, int]
    dilations: tuple[int, int]

    def place(self, window: Sequence[Expr], k: Expr) -> list[Expr]:
        """The indices of element `k`, or of a ramp of elements of one run, of a window [image, row, column]."""
        first, count = (k.base, int(k.lanes)) if isinstance(k, tirx.Ramp) else (k, 1)
        run, within = tirx.floordiv(first, self.length), tirx.floormod(first, self.length)
        row = tirx.floordiv(run, self.columns) * self.dilations[0]
        column = tirx.floormod(run, self.columns) * self.dilations[1]
        b, i, j = window
        at = j * self.strides[1] + column + within
        return [b, i * self.strides[0] + row, ramp(at, count)]

    def annotation(self) -> list[int]:
        """As an attribute of a block."""
        return [self.length, self.columns, *self.strides, *self.dilations]

    @classmethod
    def of(cls, block: s_tir.SBlock) -> Runs | None:
        """What an attribute of a block says, if there is one."""
        if RUNS not in block.annotations:
            return None
        length, columns, *steps = (int(number) for number in block.annotations[RUNS])
        return cls(length, columns, (steps[0], steps[1]), (steps[2], steps[3]))
