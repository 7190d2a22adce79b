"""What schedules ask of a function's blocks, and moves that several of them share."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm_ffi import structural_walk


class NotApplicable(Exception):
    """A schedule does not fit a function; the next one is tried."""


def leaf_blocks(schedule: s_tir.Schedule) -> list[SBlockRV]:
    """The blocks of the function, in the order in which they run.

    Raises NotApplicable for loops that are no tensor expressions, as TVM writes sorts and scatters.
    """
    try:
        blocks = list(schedule.get_child_blocks(schedule.get_sblock("root")))
    except s_tir.ScheduleError:
        raise NotApplicable("the function has no blocks") from None
    if not blocks:
        raise NotApplicable("the function is written by hand")
    if not all(len(schedule.get(block).writes) for block in blocks):
        raise NotApplicable("a block does not say what it writes")
    return blocks


def is_reduction(schedule: s_tir.Schedule, block: SBlockRV) -> bool:
    """Whether the block accumulates over some of its axes."""
    return any(axis.iter_type != tirx.IterVar.DataPar for axis in schedule.get(block).iter_vars)


def spatial_rank(schedule: s_tir.Schedule, block: SBlockRV) -> int:
    """How many of the block's axes are not reduced."""
    return sum(axis.iter_type == tirx.IterVar.DataPar for axis in schedule.get(block).iter_vars)


def last_index_varies_with(schedule: s_tir.Schedule, block: SBlockRV, axis: int) -> bool:
    """Whether the last index of something the block reads depends on its `axis`-th variable."""
    body = schedule.get(block)
    variable = body.iter_vars[axis].var
    written = body.writes[0].source
    for read in body.reads:
        if read.region and not read.source.same_as(written):
            last = read.region[-1]
            if tirx.analysis.undefined_vars(last.min) and any(
                used.same_as(variable) for used in tirx.analysis.undefined_vars(last.min)
            ):
                return True
    return False


def extents(schedule: s_tir.Schedule, block: SBlockRV) -> list[int]:
    """The constant extents of the loops around a block. Raises NotApplicable for others."""
    out = []
    for loop in schedule.get_loops(block):
        extent = schedule.get(loop).extent
        if not isinstance(extent, tirx.IntImm):
            raise NotApplicable("a loop has no constant extent")
        out.append(int(extent))
    return out


def count(schedule: s_tir.Schedule, block: SBlockRV, wanted: Callable[[object], bool]) -> int:
    """How many nodes of the block's body satisfy `wanted`."""
    found: list[object] = []
    # A callback's result steers the walk; None goes on.
    structural_walk(schedule.get(block).body, lambda node: found.append(node) if wanted(node) else None)
    return len(found)


def is_conditional(node: object) -> bool:
    """Whether an expression chooses between two at run time."""
    return isinstance(node, tvm.ir.Call) and node.op.same_as(tvm.ir.Op.get("prim.if_then_else"))


def inline_producers(schedule: s_tir.Schedule, blocks: list[SBlockRV], limit: int = 64) -> list[SBlockRV]:
    """Inline what is cheap to recompute among `blocks` into its consumers; returns the blocks that remain.

    A block is inlined when it is one load per element, or when the one block that reads it does so once; not
    when it chooses (padding), or when the expression would grow over `limit` nodes.
    """
    remaining = []
    for block in blocks:
        consumers = list(schedule.get_consumers(block))
        buffer = schedule.get(block).writes[0].source

        def reads(node: object, buffer: tvm.ir.Expr = buffer) -> bool:
            return isinstance(node, tvm.ir.TensorLoad) and node.source.same_as(buffer)

        size = count(schedule, block, lambda node: isinstance(node, tvm.ir.Expr))
        uses = sum(count(schedule, consumer, reads) for consumer in consumers)
        trivial = count(schedule, block, lambda node: isinstance(node, tvm.ir.Call)) == 0 and size <= 12
        if (
            not consumers
            or is_reduction(schedule, block)
            or count(schedule, block, is_conditional)
            or not (trivial or uses == 1)
            or size * uses > limit
        ):
            remaining.append(block)
            continue
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            remaining.append(block)
    return remaining


def fuse_parallel(
    schedule: s_tir.Schedule, loops: list[LoopRV], cut: LoopRV | None = None, *, parallel: bool = True
) -> LoopRV | None:
    """Fuse nested outer `loops` and run them in `parallel`; returns the loop, None when there is none.

    `cut` is a loop whose last tile is cut short. A fused loop could not be separated into whole tiles and the
    cut one, so then only the first of the loops is parallel.
    """
    if cut is not None:
        _separate_last(schedule, cut)
    if not loops:
        return None
    if cut is None:
        first = loops[0] if len(loops) == 1 else schedule.fuse(*loops)
    else:
        first = next((loop for loop in loops if int(schedule.get(loop).extent) > 1), loops[0])
    if parallel:
        schedule.parallel(first)
    return first


def split_vector(schedule: s_tir.Schedule, loop: LoopRV, lanes: int) -> LoopRV:
    """Split `loop` into vectors of `lanes`; returns the loop over them, which is `loop` where none fit."""
    extent = int(schedule.get(loop).extent)
    if extent < lanes or (extent % lanes and not _counts_in_int32(schedule, loop)):
        return loop
    outer, inner = schedule.split(loop, [None, lanes])
    if extent % lanes:
        _separate_last(schedule, outer)
    schedule.vectorize(inner)
    return outer


def _separate_last(schedule: s_tir.Schedule, loop: LoopRV) -> None:
    """Have TVM make the last round a loop of its own, so that the others do without a check per element."""
    # With int64 loops TVM's pass mixes widths: it then does nothing, or fails.
    if _counts_in_int32(schedule, loop):
        schedule.annotate(loop, "pragma_loop_partition_hint", True)


def _counts_in_int32(schedule: s_tir.Schedule, loop: LoopRV) -> bool:
    return str(schedule.get(loop).loop_var.ty.dtype) == "int32"
