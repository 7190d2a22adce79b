"""lowerkit::OnlineSoftmaxTopK: the online normaliser, TopK of the logits, and exponentials of those alone.

Neither the softmax nor its quotients are computed at the row's length. TopK is a pass of its own.
"""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from lowerkit.targets.cpu.kernels.exponential import exact_coefficients, polynomial_exponential
from lowerkit.targets.cpu.kernels.softmax_pairs import online_pairs
from lowerkit.targets.cpu.kernels.softmax_rows import from_rows, to_rows
from lowerkit.targets.cpu.kernels.top_k import select


def online_softmax_topk(
    bb: relax.BlockBuilder, inputs: list[relax.Expr], attributes: dict[str, Any]
) -> relax.Expr:
    """The `k` largest of the softmax of float32 `inputs[0]` over `axis`, and their indices."""
    x = inputs[0]
    shape = [int(dim) for dim in x.ty.shape]
    axis, k = int(attributes.get("axis", -1)) % len(shape), int(attributes.get("k", 1))
    data = to_rows(bb, x, axis)
    pairs = online_pairs(bb, data)

    def masked(rows: te.Tensor, pairs: te.Tensor) -> te.Tensor:
        # A row is NaN throughout or nowhere, since a NaN among numbers has no place in a sort.
        return te.compute(
            rows.shape,
            lambda i, j: tirx.if_then_else(tirx.isnan(pairs[i, 1]), pairs[i, 1], rows[i, j]),
            name="masked",
        )

    def weights(logits: te.Tensor, pairs: te.Tensor) -> te.Tensor:
        return te.compute(
            logits.shape,
            lambda i, j: (
                polynomial_exponential(logits[i, j] - pairs[i, 0], exact_coefficients()) / pairs[i, 1]
            ),
            name="weights",
        )

    candidates = bb.emit_te(masked, data, pairs, primfunc_name_hint="softmax_candidates")
    largest = select(bb, candidates, k, 1)
    values = bb.emit_te(
        weights, bb.emit(relax.TupleGetItem(largest, 0)), pairs, primfunc_name_hint="softmax_weights"
    )
    shape[axis] = k
    indices = bb.emit(relax.TupleGetItem(largest, 1))
    return relax.Tuple([from_rows(bb, y, shape, axis) for y in (values, indices)])
