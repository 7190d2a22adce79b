"""Softmax from pairs of blocks: what the kernels with a guard and with TopK share.

Of each block of a row, which stays in cache, there is a pair: a number that exponentials are relative to, and their
sum; such pairs are joined as online softmax does. A second pass writes the quotients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax, te, tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.exponential import exact_coefficients, polynomial_exponential
from lowerkit.targets.cpu.kernels.softmax_rows import by_rows

#: Elements of a block, 16 KiB, half of a first-level cache; and the fewest that are worth one.
_BLOCK, _SHORTEST = 4096, 512


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
    pairs = _pairs_of_blocks(bb, data, blocks, lambda rows: _normaliser(rows))
    if blocks == 1:
        return pairs

    def joined(parts: te.Tensor) -> te.Tensor:
        return _as_pairs(*_join(parts, blocks, _below))

    return bb.emit_te(joined, pairs, primfunc_name_hint="softmax_pairs")


def _below(x: Expr, top: Expr) -> Expr:
    return polynomial_exponential(x - top, exact_coefficients())


def _normaliser(data: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
    rows, count = data.shape
    k, m = te.reduce_axis((0, count), "k"), te.reduce_axis((0, count), "m")
    top = te.compute((rows,), lambda i: te.max(data[i, k], axis=k), name="top")
    return top, te.compute((rows,), lambda i: te.sum(_below(data[i, m], top[i]), axis=m), name="total")


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
