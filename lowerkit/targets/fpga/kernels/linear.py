"""Products with constant weights, and products of two activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lowerkit.targets.fpga.formats import Fixed, Format
from lowerkit.targets.fpga.kernels.contract import Axis, Index, constant_sums, contract, product_sums
from lowerkit.targets.fpga.kernels.narrow import narrow
from lowerkit.targets.fpga.kernels.requantise import Line, Requantise
from lowerkit.targets.fpga.kernels.schedule import Built, built, split
from lowerkit.targets.fpga.kernels.weights import Weights
from lowerkit.targets.fpga.lang.expr import Array, Expr, Operand, Range, Var
from lowerkit.targets.fpga.lang.program import Builder


def linear(
    name: str,
    rows: Sequence[int],
    weights: np.ndarray,
    x: Format,
    weight: Format | Sequence[Format],
    y: Format,
    *,
    bias: np.ndarray | None = None,
    offset: np.ndarray | None = None,
    rounding: str = "half-even",
    reuse: int = 1,
    at_once: int = 1,
) -> Built:
    """y = x W + b; x [*rows, inner] and y [*rows, columns] are codes of their formats.

    Args:
        weights: codes [inner, columns].
        weight: their format, or one for each column.
        bias: whole numbers [columns] at the accumulator's precision: of x.fraction + weight.fraction bits.
        offset: numbers [columns] added instead where a format is affine; the result is then exact, rounded half to
            even. The code of 0 in weight formats is 0.
        reuse: how often each multiplier is used for a row; there are at_once * inner * columns / reuse of them.
        at_once: neighbouring rows that are computed together, and share the weights that are read.
    """
    inner, columns = weights.shape
    added = " + b" if bias is not None or offset is not None else ""
    k = Builder(name, f"y = x W{added}, {inner} to {columns}, {x} to {y}")
    source, target = k.input("x", (*rows, inner), x.range), k.output("y", (*rows, columns), y.range)
    scaling = Scaling(k, columns, x, weight, weights.T, y, bias, offset, rounding)
    w = Weights(k, weights, signs=scaling.exact is not None)
    over_columns, over_inner = split(reuse, (columns, inner))

    def finish(position: Index, column: Index, total: Var) -> None:
        k.store(target, (*position, *column), scaling.finish(column[0], total))

    contract(
        k,
        [Axis(f"row{i}", size) for i, size in enumerate(rows)],
        [Axis("i", inner, over_inner)],
        [Axis("c", columns, over_columns)],
        sums=constant_sums(weights, x.range, bias),
        initial=lambda column: scaling.initial(column[0]),
        term=lambda position, i, column: w.times(source[(*position, *i)], (*i, *column)),
        finish=finish,
        at_once=min(at_once, rows[-1]) if rows else 1,
    )
    return built(k.finish(), math.prod(rows))


def matmul(
    name: str,
    lead: Sequence[int],
    sizes: tuple[int, int, int],
    a: Format,
    b: Format,
    y: Format,
    *,
    transposed: bool = False,
    rounding: str = "half-even",
    reuse: int = 1,
    at_once: int = 1,
) -> Built:
    """y = a b for each of the leading axes (heads); codes a [*lead, m, inner], b [*lead, inner, n], y [*lead, m, n].

    Args:
        sizes: m, inner and n.
        transposed: b is [*lead, n, inner].
        reuse: how often each multiplier is used for a row of a; there are at_once * inner * n / reuse of them.
        at_once: rows of a that are computed together, and share what is read of b.
    """
    m, inner, n = sizes
    k = Builder(name, f"y = a b{' transposed' if transposed else ''}, {m} x {inner} x {n}, {a} by {b} to {y}")
    left = k.input("a", (*lead, m, inner), a.range)
    right = k.input("b", (*lead, n, inner) if transposed else (*lead, inner, n), b.range)
    target = k.output("y", (*lead, m, n), y.range)
    over_columns, over_inner = split(reuse, (n, inner))
    sums = product_sums(inner, a.range.less(a.zero), b.range.less(b.zero))
    exact = None
    if not (isinstance(a, Fixed) and isinstance(b, Fixed) and isinstance(y, Fixed)):
        exact = Requantise(k, "y", [Line(sums, a.scale * b.scale / y.scale)], y)

    def term(position: Index, i: Index, column: Index) -> Expr:
        place = (*column, *i) if transposed else (*i, *column)
        p, q = left[(*position, *i)], right[(*position[:-1], *place)]
        return (p - a.zero if a.zero else p) * (q - b.zero if b.zero else q)

    def finish(position: Index, column: Index, total: Var) -> None:
        found = exact.of(total) if exact else narrow(total, a.fraction + b.fraction, y, rounding)
        k.store(target, (*position, *column), found)

    contract(
        k,
        [*(Axis(f"lead{i}", size) for i, size in enumerate(lead)), Axis("row", m)],
        [Axis("i", inner, over_inner)],
        [Axis("c", n, over_columns)],
        sums=sums,
        initial=lambda column: 0,
        term=term,
        finish=finish,
        at_once=min(at_once, m),
    )
    return built(k.finish(), math.prod(lead) * m)


class Scaling:
    """What a column's sum starts from and how it is brought to the output's format.

    Columns of different weight formats are shifted left to the finest one first, by a table, and then rounded alike.
    With an affine format among them, all columns are requantised exactly instead, each with its own factor.

    Attributes:
        exact: what requantises; None for fixed point.
    """

    def __init__(
        self,
        k: Builder,
        columns: int,
        x: Format,
        weight: Format | Sequence[Format],
        weights: np.ndarray,
        y: Format,
        bias: np.ndarray | None,
        offset: np.ndarray | None,
        rounding: str,
        prefix: str = "",
    ) -> None:
        """`weights` are codes [columns, ...]; `prefix` tells a kernel's scalings apart.

        Raises ValueError for codes that the formats do not hold.
        """
        formats = list(weight) if isinstance(weight, Sequence) else [weight] * columns
        if len(formats) != columns:
            raise ValueError(f"{k.name}: {len(formats)} weight formats for {columns} columns")
        flat = weights.reshape(columns, -1)
        for found, low, high in zip(formats, flat.min(1), flat.max(1), strict=True):
            if low < found.range.low or high > found.range.high:
                raise ValueError(f"{k.name}: weights from {low} to {high} are no codes of {found}")
        for given in (bias, offset):
            if given is not None and given.shape != (columns,):
                raise ValueError(f"{k.name}: a bias of shape {given.shape} for {columns} columns")
        self.exact: Requantise | None = None
        self.shifts = self.bias = None
        if not all(isinstance(found, Fixed) for found in (x, y, *formats)):
            if bias is not None or rounding != "half-even":
                raise ValueError(f"{k.name}: affine formats take offsets, and round half to even")
            self.exact = Requantise(k, "y", _lines(x, formats, flat, y, offset), y)
            return
        self.k, self.y, self.rounding, self.prefix = k, y, rounding, prefix
        finest = max(found.fraction for found in formats)
        self.fraction = x.fraction + finest
        shifts = np.array([finest - found.fraction for found in formats], np.int64)
        # Of each column's own sums, shifted: the widest sums need not be those shifted most.
        own = [
            constant_sums(row[:, None], x.range, None if bias is None else bias[i : i + 1])
            for i, row in enumerate(flat)
        ]
        ends = [(r.low << int(s), r.high << int(s)) for r, s in zip(own, shifts, strict=True)]
        self.aligned = Range(min(low for low, _ in ends), max(high for _, high in ends))
        self.shifts = k.constant(Array.constant(f"{k.name}_{prefix}shift", shifts)) if shifts.any() else None
        self.bias = None if bias is None else k.constant(Array.constant(f"{k.name}_{prefix}b", bias))

    def initial(self, column: Operand) -> Operand:
        """The bias."""
        return 0 if self.bias is None else self.bias[column]

    def finish(self, column: Operand, total: Var) -> Expr:
        """The output's code."""
        if self.exact is not None:
            return self.exact.of(total, column)
        if self.shifts is not None:
            total = self.k.let(f"{self.prefix}aligned", total << self.shifts[column], self.aligned)
        return narrow(total, self.fraction, self.y, self.rounding)


def _lines(
    x: Format, formats: Sequence[Format], weights: np.ndarray, y: Format, offset: np.ndarray | None
) -> list[Line]:
    """What each column's sums of codes stand for; sum of (x - zero) w is sum of x w less zero times the sum of w."""
    lines = []
    for i, (found, row) in enumerate(zip(formats, weights, strict=True)):
        if found.zero:
            raise ValueError(f"weights of the format {found}, whose code of 0 is not 0")
        factor = x.scale * found.scale / y.scale
        start = -factor * x.zero * int(row.sum())
        if offset is not None:
            start += Fraction(float(offset[i])) / y.scale
        lines.append(Line(constant_sums(row[:, None], x.range), factor, start))
    return lines
