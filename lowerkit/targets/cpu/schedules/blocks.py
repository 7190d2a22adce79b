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
    """The blocks of the function, in the order in which they run."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def is_reduction(schedule: s_tir.Schedule, block: SBlockRV) -> bool:
    """Whether the block accumulates over some of its axes."""
    return any(axis.iter_type != tirx.IterVar.DataPar for axis in schedule.get(block).iter_vars)


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


def fuse_parallel(schedule: s_tir.Schedule, loops: list[LoopRV]) -> LoopRV | None:
    """Fuse the outer `loops` and run them in parallel; None when there are none."""
    if not loops:
        return None
    fused = loops[0] if len(loops) == 1 else schedule.fuse(*loops)
    schedule.parallel(fused)
    return fused


def split_vector(schedule: s_tir.Schedule, loop: LoopRV, lanes: int) -> tuple[LoopRV, LoopRV]:
    """Split `loop` into whole vectors of `lanes`, a rest being handled apart, and vectorise the inner loop."""
    extent = int(schedule.get(loop).extent)
    outer, inner = schedule.split(loop, [None, lanes])
    if extent % lanes:
        schedule.annotate(outer, "pragma_loop_partition_hint", True)
    schedule.vectorize(inner)
    return outer, inner
