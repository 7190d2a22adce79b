"""The register tile: sums of rows by vectors, and the reduction that fills them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.gemm.dots import Dot, Load, Row
from lowerkit.targets.cpu.kernels.gemm.expressions import on_stack, ramp, sequence, splat

#: Products of a sum that the body of the reduction's loop holds, if they are not more in one step.
_UNROLLED = 2
#: (rounds of the reduction's loop that are done, all of them) -> a statement that reads ahead.
Ahead = Callable[[Expr, int], tirx.Stmt]


@dataclass(frozen=True)
class Tile:
    """Sums of `rows` rows by vectors of `lanes` elements each, in `buffer`."""

    buffer: tirx.Var
    rows: int
    lanes: tuple[int, ...]
    index: str

    @classmethod
    def of(cls, rows: int, lanes: Sequence[int], dtype: str, index: str) -> Tile:
        """A tile with a buffer of its own; `index` is the dtype of its indices."""
        return cls(tirx.decl_buffer((rows * sum(lanes),), dtype, "sums"), rows, tuple(lanes), index)

    @property
    def width(self) -> int:
        """Elements of a row."""
        return sum(self.lanes)

    def start(self, j: int) -> int:
        """Where vector `j` of a row begins."""
        return sum(self.lanes[:j])

    def load(self, i: int, j: int) -> Expr:
        """The sums of row `i`, vector `j`."""
        return tirx.BufferLoad(self.buffer, self._place(i, j))

    def store(self, i: int, j: int, value: Expr) -> tirx.Stmt:
        """Set the sums of row `i`, vector `j`."""
        return tirx.BufferStore(self.buffer, value, self._place(i, j))

    def clear(self) -> list[tirx.Stmt]:
        """Set all sums to 0."""
        zero = tirx.const(0, str(self.buffer.dtype))
        return [
            self.store(i, j, splat(zero, lanes))
            for i in range(self.rows)
            for j, lanes in enumerate(self.lanes)
        ]

    def element(self, i: Expr | int, j: int, lane: Expr) -> Expr:
        """One sum."""
        return tirx.BufferLoad(self.buffer, [i * self.width + self.start(j) + lane])

    def _place(self, i: int, j: int) -> list[Expr]:
        return [ramp(tirx.const(i * self.width + self.start(j), self.index), self.lanes[j])]


def reduction(
    tile: Tile,
    dot: Dot,
    depth: int,
    groups: int,
    left: Callable[[int], Row],
    right: Callable[[int, Expr], Load],
    scale: Callable[[int, Expr], Expr] | None = None,
    ahead: Ahead | None = None,
) -> list[tirx.Stmt]:
    """Allocate the sums of `tile` and set them to the products' sums.

    Args:
        depth: products of one sum, in `groups` equal groups.
        left: row of the tile -> reads that row of the left operand.
        right: (vector, step, counted over all groups) -> reads the right operand there.
        scale: (vector, group) -> factors of the sums over a group.
        ahead: what else a round of the loop does.
    """
    length = depth // groups
    whole, rest = divmod(length, dot.step)
    parts = len(dot.right(right(0, tirx.const(0, tile.index)), tile.lanes[0]))
    group, number = tirx.Var("group", tile.index), tirx.Var("step", tile.index)
    # Sums over a group are in registers, those over all groups then in memory.
    sums = tile if scale is None else Tile.of(tile.rows, tile.lanes, str(tile.buffer.dtype), tile.index)

    def step(number: Expr, count: int) -> list[tirx.Stmt]:
        out: list[tirx.Stmt] = []

        def bound(value: Expr, name: str) -> Expr:
            variable = tirx.Var(name, value.ty)
            out.append(tirx.Bind(variable, value))
            return variable

        at = group * (whole + bool(rest)) + number
        vectors = [dot.right(right(j, at), lanes) for j, lanes in enumerate(tile.lanes)]
        for part in range(count):
            k = group * length + number * dot.step + part
            columns = [bound(vector[part], f"b{j}") for j, vector in enumerate(vectors)]
            for i in range(tile.rows):
                of_row = {n: bound(dot.left(left(i), k, n), f"a{i}") for n in dict.fromkeys(tile.lanes)}
                for j, lanes in enumerate(tile.lanes):
                    out.append(sums.store(i, j, dot.accumulate(sums.load(i, j), of_row[lanes], columns[j])))
        return out

    body = [] if scale is None else sums.clear()
    unrolled = max(1, _UNROLLED // parts)
    rounds = whole // unrolled
    if rounds:
        several = [s for u in range(unrolled) for s in step(number * unrolled + u, parts)]
        if ahead is not None:
            several.insert(0, ahead(group * rounds + number, groups * rounds))
        body.append(_serial(number, rounds, several))
    for last in range(rounds * unrolled, whole):
        body += step(tirx.const(last, tile.index), parts)
    if rest:
        body += step(tirx.const(whole, tile.index), rest)
    if scale is not None:
        for j in range(len(tile.lanes)):
            factors = tirx.Var(f"scale{j}", scale(j, group).ty)
            body.append(tirx.Bind(factors, scale(j, group)))
            body += [tile.store(i, j, tile.load(i, j) + sums.load(i, j) * factors) for i in range(tile.rows)]
    buffers = [on_stack(buffer) for buffer in dict.fromkeys([tile.buffer, sums.buffer])]
    loop = (
        [_serial(group, groups, body)] if groups > 1 else [tirx.Bind(group, tirx.const(0, tile.index)), *body]
    )
    return [*buffers, *tile.clear(), *loop]


def _serial(variable: tirx.Var, count: int, body: list[tirx.Stmt]) -> tirx.Stmt:
    first, every = (tirx.const(n, variable.ty.dtype) for n in (0, count))
    return tirx.For(variable, first, every, tirx.ForKind.SERIAL, sequence(body))
