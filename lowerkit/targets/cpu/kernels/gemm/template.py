"""A matrix product as loops over register tiles, with what follows it, for any Dot.

    for every (batch, block of rows, panel of columns, tile of rows):     in parallel; a panel stays in cache
        sums[rows, vectors] = 0                                           registers
        for every step of the reduction:
            sums += left[rows, step] * right[step, vectors]
        store epilogue(sums)

Rows and panels are cut into sizes that differ by one at most, so that no tile is nearly empty, and there is a copy
of the body for every size. (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS
34(3), 2008. Its packing of the left operand does not pay here: the rows of a tile are contiguous, and are read once
for each panel.)

The rounds of a tile's reduction ask for pieces of the panel that comes next: all tiles of a block together for the
whole of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr, TensorLoad
from tvm_ffi import structural_walk

from lowerkit.targets.cpu.kernels.gemm.dots import Load, Row
from lowerkit.targets.cpu.kernels.gemm.epilogue import Epilogue
from lowerkit.targets.cpu.kernels.gemm.expressions import on_stack, ramp, row_indices, sequence
from lowerkit.targets.cpu.kernels.gemm.machine import Machine
from lowerkit.targets.cpu.kernels.gemm.microkernel import Ahead, Tile, reduction
from lowerkit.targets.cpu.kernels.gemm.panels import Run, even, layout, tallest
from lowerkit.targets.cpu.kernels.gemm.prefetch import DEFINITION, prefetch
from lowerkit.targets.cpu.kernels.gemm.runs import Runs
from lowerkit.targets.cpu.schedules.blocks import NotApplicable, leaf_blocks

#: The annotation of a product's block: its kind, as `Machine.dot` knows it.
KIND = "lowerkit.gemm"
#: Multiplications, and bytes of weights, below which the start of threads costs more than they save.
PARALLEL_FROM = 1 << 20
#: Bytes of the left operand that stay in a second-level cache while all panels go by.
_BLOCK = 192 << 10


def expand(function: tirx.PrimFunc, machine: Machine) -> tirx.PrimFunc | None:
    """`function` with loops over register tiles, or None where it is no product with elementwise operators."""
    schedule = s_tir.Schedule(function)
    try:
        products = [block for block in leaf_blocks(schedule) if KIND in schedule.get(block).annotations]
        if len(products) != 1:
            return None
        template = _Template(schedule.get(products[0]), Epilogue(schedule, products[0]), machine)
    except NotApplicable:
        return None
    return function.with_body(template.loops())


@dataclass(frozen=True)
class _Panels:
    """Panels that are alike: `run` of them, out of those that begin with `first`, with `valid` columns each."""

    run: Run
    origin: Run
    valid: int


class _Template:
    def __init__(self, block: s_tir.SBlock, epilogue: Epilogue, machine: Machine) -> None:
        self.epilogue = epilogue
        self.left, self.right, *scales = _operands(block)
        self.scales = scales[0] if scales else None
        self.index = str(block.iter_vars[0].var.ty.dtype)
        *self.lead, self.width = epilogue.shape
        self.packed = len(self.right.shape) == 1
        # Without panels, every element of a batch has a right operand of its own.
        self.batch = 1 if self.packed else math.prod(self.lead[:-1])
        self.rows = math.prod(self.lead) // self.batch
        self.runs = Runs.of(block)
        self.depth = int(self.left.shape[-1] if self.runs is None else block.iter_vars[-1].dom.extent)
        self.groups = int(self.scales.shape[0]) if self.scales is not None else 1
        if self.runs is not None:
            self.groups = self.depth // self.runs.length
        kind = str(block.annotations[KIND])
        self.layout = layout(machine, kind, self.rows, self.depth, self.width, self.groups)
        self.dot, self.lanes = self.layout.dot, machine.lanes
        self.tiles = even(self.rows, tallest(machine, self.rows))
        self.panels = self._panels()
        products = self.batch * self.rows * self.width * self.depth
        weights = self.layout.size * _bytes(self.dot.panel) if self.packed else 0
        self.parallel = max(products, weights) >= PARALLEL_FROM
        self.in_block = self._tiles_of_block(_pieces(self.tiles))

    def loops(self) -> tirx.Stmt:
        """The whole function's body."""
        tiles, panels, in_block = _pieces(self.tiles), _pieces(self.layout.runs), self.in_block
        blocks = -(-tiles // in_block)
        task, t, p, b, rest = (self._variable(n) for n in ("task", "row_tile", "panel", "batch", "rest"))
        count = self.batch * blocks * panels * in_block
        body = _choose(p, [(columns.run, self._of_panel(columns, t, p, b)) for columns in self.panels])
        if blocks * in_block > tiles:
            body = tirx.IfThenElse(t < self._const(tiles), body, None)
        body = sequence(
            [
                tirx.Bind(rest, tirx.floordiv(task, self._const(in_block))),
                tirx.Bind(p, tirx.floormod(rest, self._const(panels))),
                tirx.Bind(b, tirx.floordiv(rest, self._const(panels * blocks))),
                tirx.Bind(
                    t,
                    tirx.floormod(tirx.floordiv(rest, self._const(panels)), self._const(blocks)) * in_block
                    + tirx.floormod(task, self._const(in_block)),
                ),
                body,
            ]
        )
        kind = tirx.ForKind.PARALLEL if self.parallel and count > 1 else tirx.ForKind.SERIAL
        loops: tirx.Stmt = tirx.For(task, self._const(0), self._const(count), kind, body)
        for code in filter(None, (self.dot.llvm, DEFINITION)):
            loops = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", tvm.ir.StringImm(code), loops)
        return loops

    def _tiles_of_block(self, tiles: int) -> int:
        """Tiles of a block of rows, whose left operand stays in cache.

        Blocks are even in number where threads share them: a thread then computes the same rows here as in the
        operators by rows before and after, and finds them in its own cache.
        """
        blocks = max(1, round(self.rows * self.depth * _bytes(str(self.left.dtype)) / _BLOCK))
        if self.parallel and self.batch == 1:
            blocks = min(blocks + blocks % 2, tiles)
        return -(-tiles // blocks)

    def _panels(self) -> list[_Panels]:
        """All panels, the last one apart where its last vector is cut."""
        out = []
        for run in self.layout.runs:
            columns = run.size * self.lanes
            cut = max((run.start + run.count * run.size) * self.lanes - self.width, 0)
            whole = run.count - bool(cut)
            if whole:
                out.append(_Panels(Run(run.first, whole, run.start, run.size), run, columns))
            if cut:
                last = Run(run.first + whole, 1, run.start + whole * run.size, run.size)
                out.append(_Panels(last, run, columns - cut))
        return out

    def _of_panel(self, columns: _Panels, t: Expr, p: Expr, b: Expr) -> tirx.Stmt:
        return _choose(t, [(rows, self._tile(rows, columns, t, p, b)) for rows in self.tiles])

    def _tile(self, rows: Run, columns: _Panels, t: Expr, p: Expr, b: Expr) -> tirx.Stmt:
        """Compute and store one tile."""
        first_row = b * self._const(self.rows) + (t - rows.first) * rows.size + rows.start
        first_column = ((p - columns.run.first) * columns.run.size + columns.run.start) * self.lanes
        valid = [min(self.lanes, columns.valid - j * self.lanes) for j in range(columns.run.size)]
        # Panels hold whole vectors, other operands do not.
        tile = Tile.of(
            rows.size, [self.lanes] * len(valid) if self.packed else valid, self.dot.sum, self.index
        )
        batch = self._indices(b * self._const(self.rows))[:-1]
        start = self.layout.start(columns.origin, p)

        def left(i: int) -> Row:
            place, runs = self._indices(first_row + i), self.runs
            if runs is not None:
                return lambda k: tirx.BufferLoad(self.left, runs.place(place, k))
            return lambda k: tirx.BufferLoad(self.left, [*place, k])

        def right(j: int, step: Expr) -> Load:
            if not self.packed:
                column = first_column + j * self.lanes
                return lambda count: tirx.BufferLoad(self.right, [*batch, step, ramp(column, count)])
            at = start + (step * columns.run.size + j) * (self.lanes * self.dot.stored)
            return lambda count: tirx.BufferLoad(self.right, [ramp(at, count)])

        def scale(j: int, group: Expr) -> Expr:
            return tirx.BufferLoad(self.scales, [group, ramp(first_column + j * self.lanes, self.lanes)])

        body = reduction(
            tile,
            self.dot,
            self.depth,
            self.groups,
            left,
            right,
            scale if self.scales is not None else None,
            self._read_ahead(columns, start, t),
        )
        return sequence([*body, *self._store(tile, first_row, first_column, valid)])

    def _read_ahead(self, columns: _Panels, start: Expr, t: Expr) -> Ahead | None:
        """How this tile asks for its share of the panel that comes next, a little in every round."""
        if not self.packed or self.in_block < 2:
            return None
        size = self.layout.panel(columns.run)
        tile = tirx.floormod(t, self._const(self.in_block))

        def ahead(done: Expr, rounds: int) -> tirx.Stmt:
            stride = -(-size // (self.in_block * rounds))
            return prefetch(self.right, start + size + (tile * rounds + done) * stride)

        return ahead

    def _store(self, tile: Tile, first_row: Expr, first_column: Expr, valid: list[int]) -> list[tirx.Stmt]:
        """Store what the epilogue makes of the sums."""

        def row(source: Tile, i: Expr | int) -> list[tirx.Stmt]:
            lead = self._indices(first_row + i)
            return [
                self.epilogue.store(lead, first_column + j * self.lanes, lanes, partial(source.element, i, j))
                for j, lanes in enumerate(valid)
            ]

        if self.epilogue.is_short or tile.rows == 1:
            return [s for i in range(tile.rows) for s in row(tile, self._const(i))]
        # Copied, so that the sums themselves are only ever indexed by constants, and so in registers.
        copy = Tile.of(tile.rows, tile.lanes, self.dot.sum, self.index)
        moves = [copy.store(i, j, tile.load(i, j)) for i in range(tile.rows) for j in range(len(tile.lanes))]
        i = self._variable("i")
        every = self._const(tile.rows)
        loop = tirx.For(i, self._const(0), every, tirx.ForKind.SERIAL, sequence(row(copy, i)))
        return [on_stack(copy.buffer), *moves, loop]

    def _const(self, value: int) -> Expr:
        return tirx.const(value, self.index)

    def _variable(self, name: str) -> tirx.Var:
        return tirx.Var(name, self.index)

    def _indices(self, row: Expr) -> list[Expr]:
        """All indices but the last, of a row counted through all axes."""
        return row_indices(self.lead, row)


def _choose(variable: tirx.Var, cases: list[tuple[Run, tirx.Stmt]]) -> tirx.Stmt:
    """The statement of the run of pieces that `variable` lies in."""
    body = cases[-1][1]
    for run, statement in reversed(cases[:-1]):
        body = tirx.IfThenElse(
            variable < tirx.const(run.first + run.count, variable.ty.dtype), statement, body
        )
    return body


def _pieces(runs: tuple[Run, ...]) -> int:
    """How many pieces all runs have."""
    return runs[-1].first + runs[-1].count


def _bytes(dtype: str) -> int:
    return int(tvm.DataType(dtype).itemsize)


def _operands(block: s_tir.SBlock) -> list[tirx.Var]:
    """What the product reads, in the order in which its expression names them."""
    written = block.writes[0].source
    found: list[tirx.Var] = []

    def note(node: object) -> None:
        if isinstance(node, TensorLoad) and not any(node.source.same_as(x) for x in (written, *found)):
            found.append(node.source)

    structural_walk(block.body, note)
    return found
