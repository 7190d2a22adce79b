"""lowerkit::OnlineSoftmax and lowerkit::TwoPassSoftmax as kernels that read a row from memory twice.

The first pass takes a row in blocks that stay in cache: of each it finds the largest element (or exponent) and the
sum of the exponentials relative to that, and such pairs are joined by the methods' own rule. The second pass
writes the quotients, with the exponentials computed anew rather than kept in memory. The exponential is a
polynomial of degree 7, whose relative error (2^-28.9) is a sixteenth of float32's rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from tvm import relax, te, tirx
from tvm.ir import Expr

from lowerkit.passes.softmax.poly_exp import PolyExp
from lowerkit.targets.cpu.kernels.softmax_rows import (
    by_rows,
    exponent_of,
    exponential,
    f32,
    horner,
    power_of_two,
    reduced,
)

#: Elements of a block, 16 KiB, half of a first-level cache; and the fewest that are worth one.
_BLOCK, _SHORTEST = 4096, 512
_FAR = 2.0**126
#: Of the reduced argument: half of ln 2, and what rounding may add.
_REACH = 0.36


def online_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr:
    """Softmax of float32 `inputs[0]` over `axis`; the pairs are (maximum, sum of exponentials below it)."""
    return _softmax(bb, inputs[0], attributes, lambda x: x, _below, _below)


def two_pass_softmax(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr:
    """Softmax of float32 `inputs[0]` over `axis`; the pairs are (largest exponent of two, sum of mantissas)."""
    coefficients = exact_coefficients()

    def exponent(x: Expr) -> Expr:
        return exponent_of(_compressed(x))

    def term(x: Expr, top: Expr) -> Expr:
        n = exponent(x)
        # What is so far that nothing is left of its remainder, and an infinity, which has none, get any; a NaN
        # stays one.
        rest = tirx.min(tirx.max(reduced(_compressed(x), n), f32(-_REACH)), f32(_REACH))
        return horner(coefficients, tirx.Select(tirx.isnan(x), x, rest)) * power_of_two(n - top)

    return _softmax(bb, inputs[0], attributes, exponent, term, lambda n, top: power_of_two(n - top))


def _compressed(x: Expr) -> Expr:
    """x, and beyond 2^126 what grows more slowly, so that x / ln 2 does not overflow."""
    near = tirx.min(f32(_FAR), tirx.max(f32(-_FAR), x))
    return near + (x - near) * f32(0.25)


def _softmax(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    attributes: dict[str, Any],
    exponent: Callable[[Expr], Expr],
    term: Callable[[Expr, Expr], Expr],
    factor: Callable[[Expr, Expr], Expr],
) -> relax.Expr:
    """`term(x, top) / sum term(x, top)` with top the largest `exponent(x)` of the row."""

    def normaliser(data: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
        return _normaliser(data, exponent, term)

    def at_once(data: te.Tensor) -> te.Tensor:
        return _quotients(data, *normaliser(data), term)

    return softmax_of_pairs(bb, x, attributes, normaliser, at_once, term, factor)


def _quotients(
    data: te.Tensor, top: te.Tensor, total: te.Tensor, term: Callable[[Expr, Expr], Expr]
) -> te.Tensor:
    """`term(x, top) / total` by rows."""
    return te.compute(data.shape, lambda i, j: term(data[i, j], top[i]) / total[i], name="softmax")


def softmax_of_pairs(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    attributes: dict[str, Any],
    normaliser: Callable[[te.Tensor], tuple[te.Tensor, te.Tensor]],
    at_once: Callable[[te.Tensor], te.Tensor],
    term: Callable[[Expr, Expr], Expr],
    factor: Callable[[Expr, Expr], Expr],
) -> relax.Expr:
    """Softmax over `axis` from pairs (top, sum of terms relative to top) of blocks of a row.

    Args:
        normaliser: rows -> their pairs.
        at_once: rows that are one block each -> their softmax.
        term: (element, top) -> what is summed, and what is divided by the sum.
        factor: (top', top) -> what makes a sum relative to top' one relative to the larger top.
    """

    def in_blocks(data: relax.Expr, blocks: int) -> relax.Expr:
        def joined(data: te.Tensor, pairs: te.Tensor) -> te.Tensor:
            return _quotients(data, *_join(pairs, blocks, factor), term)

        pairs = _pairs_of_blocks(bb, data, blocks, normaliser)
        return bb.emit_te(joined, data, pairs, primfunc_name_hint="softmax_quotients")

    def rows_of(data: relax.Expr) -> relax.Expr:
        blocks = _blocks(data)
        if blocks > 1:
            return in_blocks(data, blocks)
        return bb.emit_te(at_once, data, primfunc_name_hint="softmax")

    return by_rows(bb, rows_of, x, attributes)


def online_pairs(bb: relax.BlockBuilder, data: relax.Expr) -> relax.Expr:
    """(maximum, sum of exponentials below it) of float32 rows, in a tensor [rows, 2]."""
    blocks = _blocks(data)
    pairs = _pairs_of_blocks(bb, data, blocks, lambda rows: _normaliser(rows, lambda x: x, _below))
    if blocks == 1:
        return pairs

    def joined(parts: te.Tensor) -> te.Tensor:
        return _as_pairs(*_join(parts, blocks, _below))

    return bb.emit_te(joined, pairs, primfunc_name_hint="softmax_pairs")


def _below(x: Expr, top: Expr) -> Expr:
    return exponential(x - top, exact_coefficients())


def _normaliser(
    data: te.Tensor, exponent: Callable[[Expr], Expr], term: Callable[[Expr, Expr], Expr]
) -> tuple[te.Tensor, te.Tensor]:
    rows, count = data.shape
    k, m = te.reduce_axis((0, count), "k"), te.reduce_axis((0, count), "m")
    top = te.compute((rows,), lambda i: te.max(exponent(data[i, k]), axis=k), name="top")
    return top, te.compute((rows,), lambda i: te.sum(term(data[i, m], top[i]), axis=m), name="total")


def _blocks(data: relax.Expr) -> int:
    """Into how many blocks rows of this width are cut."""
    width = int(data.ty.shape[1])
    blocks = width // math.gcd(width, _BLOCK) if width > _BLOCK else 1
    return blocks if width // blocks >= _SHORTEST else 1


def _pairs_of_blocks(
    bb: relax.BlockBuilder,
    data: relax.Expr,
    blocks: int,
    normaliser: Callable[[te.Tensor], tuple[te.Tensor, te.Tensor]],
) -> relax.Expr:
    """The pairs of the blocks of all rows, in a tensor [rows * blocks, 2]."""
    rows, width = (int(dim) for dim in data.ty.shape)
    parts = data if blocks == 1 else bb.normalize(relax.op.reshape(data, (rows * blocks, width // blocks)))
    return bb.emit_te(lambda x: _as_pairs(*normaliser(x)), parts, primfunc_name_hint="softmax_blocks")


def _as_pairs(top: te.Tensor, total: te.Tensor) -> te.Tensor:
    """One tensor, because all that a row leaves has to be in its last loop."""
    return te.compute((top.shape[0], 2), lambda i, j: tirx.Select(j == 0, top[i], total[i]), name="pairs")


def _join(pairs: te.Tensor, blocks: int, factor: Callable[[Expr, Expr], Expr]) -> tuple[te.Tensor, te.Tensor]:
    """The pairs of rows from those of their blocks."""
    k, m = te.reduce_axis((0, blocks), "k"), te.reduce_axis((0, blocks), "m")
    rows = (int(pairs.shape[0]) // blocks,)
    top = te.compute(rows, lambda i: te.max(pairs[i * blocks + k, 0], axis=k), name="top")
    total = te.compute(
        rows,
        lambda i: te.sum(pairs[i * blocks + m, 1] * factor(pairs[i * blocks + m, 0], top[i]), axis=m),
        name="total",
    )
    return top, total


@functools.cache
def exact_coefficients() -> list[Expr]:
    """The exponential's on the reduced range, highest power first."""
    return [f32(float(c)) for c in PolyExp(degree=7).polynomial().array()]
