"""The register tile: sums of rows by vectors, and the reduction that fills them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.gemm.dots import Dot, Load, Row
from lowerkit.targets.cpu.kernels.gemm.expressions import on_stack, ramp, sequence, splat

#: Steps of the reduction that the body of its loop holds.
_UNROLLED = 2


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
) -> list[tirx.Stmt]:
    """Allocate the sums of `tile` and set them to the products' sums.

    Args:
        depth: products of one sum, in `groups` equal groups.
        left: row of the tile -> reads that row of the left operand.
        right: (vector, step, counted over all groups) -> reads the right operand there.
        scale: (vector, group) -> factors of the right operand's columns.
    """
    length = depth // groups
    whole, rest = divmod(length, dot.step)
    steps = whole + bool(rest)
    parts = len(dot.right(right(0, tirx.const(0, tile.index)), tile.lanes[0]))

    def step(group: Expr, number: Expr, count: int) -> list[tirx.Stmt]:
        out: list[tirx.Stmt] = []

        def bound(value: Expr, name: str) -> Expr:
            variable = tirx.Var(name, value.ty)
            out.append(tirx.Bind(variable, value))
            return variable

        vectors = []
        for j, lanes in enumerate(tile.lanes):
            values = dot.right(right(j, group * steps + number), lanes)
            vectors.append(values if scale is None else [value * factors[j] for value in values])
        for part in range(count):
            k = group * length + number * dot.step + part
            columns = [bound(vector[part], f"b{j}") for j, vector in enumerate(vectors)]
            for i in range(tile.rows):
                of_row = {n: bound(dot.left(left(i), k, n), f"a{i}") for n in dict.fromkeys(tile.lanes)}
                for j, lanes in enumerate(tile.lanes):
                    out.append(tile.store(i, j, dot.accumulate(tile.load(i, j), of_row[lanes], columns[j])))
        return out

    group, number = tirx.Var("group", tile.index), tirx.Var("step", tile.index)
    zero = tirx.const(0, tile.index)
    body: list[tirx.Stmt] = []
    factors: list[Expr] = []
    if scale is not None:
        for j in range(len(tile.lanes)):
            value = scale(j, group)
            factors.append(tirx.Var(f"scale{j}", value.ty))
            body.append(tirx.Bind(factors[j], value))
    rounds = whole // _UNROLLED
    if rounds:
        unrolled = [s for u in range(_UNROLLED) for s in step(group, number * _UNROLLED + u, parts)]
        count = tirx.const(rounds, tile.index)
        body.append(tirx.For(number, zero, count, tirx.ForKind.SERIAL, sequence(unrolled)))
    for last in range(rounds * _UNROLLED, steps):
        body += step(group, tirx.const(last, tile.index), parts if last < whole else rest)
    out: list[tirx.Stmt] = [on_stack(tile.buffer)]
    for i in range(tile.rows):
        for j, lanes in enumerate(tile.lanes):
            out.append(tile.store(i, j, splat(tirx.const(0, str(tile.buffer.dtype)), lanes)))
    if groups == 1:
        return [*out, tirx.Bind(group, zero), *body]
    every = tirx.const(groups, tile.index)
    return [*out, tirx.For(group, zero, every, tirx.ForKind.SERIAL, sequence(body))]
