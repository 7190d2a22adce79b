"""The elementwise operators that follow a product, computed on its tiles before they are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr, TensorLoad
from tvm.s_tir.schedule import SBlockRV
from tvm_ffi import StructuralMutator, structural_mutate, structural_walk

from lowerkit.targets.cpu.kernels.gemm.expressions import on_stack, sequence
from lowerkit.targets.cpu.kernels.gemm.polynomials import in_parallel
from lowerkit.targets.cpu.schedules.blocks import NotApplicable, is_reduction, leaf_blocks

#: Beyond so many nodes the operators run in a loop over the rows of the tile, which is in cache, rather than once
#: for each register: their constants then stay in registers, and the code is short.
UNROLLED = 24


@dataclass(frozen=True)
class Stage:
    """One operator: `buffer[variables] = value`."""

    buffer: tirx.Var
    variables: tuple[tirx.Var, ...]
    value: Expr


class Epilogue:
    """What a function computes of a product's result, element by element.

    What it computes of other tensors on the way may have any shape, and is computed anew where it is read.

    Args:
        schedule: of the function.
        product: the product's block.

    Raises:
        NotApplicable: when an operator is not elementwise in the product's result.
    """

    def __init__(self, schedule: s_tir.Schedule, product: SBlockRV) -> None:
        blocks = leaf_blocks(schedule)
        self.product: tirx.Var = schedule.get(product).writes[0].source
        self.shape = [int(dim) for dim in self.product.shape]
        self.parameters = list(schedule.mod["main"].params)
        own = schedule.get(product)
        self.stages = [_stage(schedule, block) for block in blocks if not schedule.get(block).same_as(own)]
        self._uses = {stage.buffer: 0 for stage in self.stages}
        following = [self.product]
        for stage in self.stages:
            loads = _nodes(stage.value, TensorLoad)
            read = [load for load in loads if any(load.source.same_as(f) for f in following)]
            if any(not _same(load.indices, stage.variables, self.shape) for load in read):
                raise NotApplicable("an operator reads other elements than its own")
            if read:
                following.append(stage.buffer)
            whole = [int(dim) for dim in stage.buffer.shape] == self.shape
            if not whole and (read or self._is_output(stage.buffer)):
                raise NotApplicable("an operator has another shape")
            for load in loads:
                # What is read elsewhere is no temporary of the element's own.
                if load.source in self._uses and _same(load.indices, stage.variables, self.shape):
                    self._uses[load.source] += 1

    def _is_output(self, buffer: tirx.Var) -> bool:
        return any(buffer.same_as(parameter) for parameter in self.parameters)

    @property
    def is_short(self) -> bool:
        """Whether it is computed in registers rather than in a loop."""
        return sum(len(_nodes(stage.value, Expr)) for stage in self.stages) <= UNROLLED

    def store(
        self, lead: Sequence[Expr], column: Expr, lanes: int, sums: Callable[[Expr], Expr]
    ) -> tirx.Stmt:
        """Compute and store `lanes` elements of a row from `column` on.

        Args:
            lead: all indices but the last.
            sums: lane -> the product's element there.
        """
        lane = tirx.Var("lane", column.ty.dtype)
        place = [*lead, column + lane]
        if not self.stages:
            return _vector(lane, lanes, [], [tirx.BufferStore(self.product, sums(lane), place)])
        temporaries: dict[tirx.Var, tirx.Var] = {}

        def value(stage: Stage, indices: Sequence[Expr]) -> Expr:
            axes = dict(zip(stage.variables, indices, strict=True))

            def load(node: TensorLoad, mutator: StructuralMutator) -> Expr:
                if node.source.same_as(self.product):
                    return sums(lane)
                own = indices is place and _same(node.indices, stage.variables, self.shape)
                if own and node.source in temporaries:
                    return tirx.BufferLoad(temporaries[node.source], [lane])
                inner = next((s for s in self.stages if node.source.same_as(s.buffer)), None)
                moved = mutator.default_mutate(node)
                return moved if inner is None else value(inner, place if own else moved.indices)

            return structural_mutate(
                stage.value, [(TensorLoad, load), (tirx.Var, lambda v, _: axes.get(v, v))]
            )

        body = []
        for stage in self.stages:
            dtype = str(stage.buffer.dtype)
            if self._uses[stage.buffer] > 1 and dtype != "bool":
                temporary = tirx.decl_buffer((lanes,), dtype, stage.buffer.name)
                body.append(tirx.BufferStore(temporary, in_parallel(value(stage, place)), [lane]))
                temporaries[stage.buffer] = temporary
            if self._is_output(stage.buffer):
                body.append(tirx.BufferStore(stage.buffer, in_parallel(value(stage, place)), place))
        return _vector(lane, lanes, [on_stack(buffer) for buffer in temporaries.values()], body)


def _stage(schedule: s_tir.Schedule, handle: SBlockRV) -> Stage:
    block = schedule.get(handle)
    variables = tuple(axis.var for axis in block.iter_vars)
    shape = [int(dim) for dim in block.writes[0].source.shape]
    whole = [int(axis.dom.extent) for axis in block.iter_vars] == shape
    if is_reduction(schedule, handle) or not isinstance(block.body, tirx.BufferStore) or not whole:
        raise NotApplicable("an operator is not elementwise")
    if not _same(block.body.indices, variables, shape):
        raise NotApplicable("an operator moves what it computes")
    return Stage(block.writes[0].source, variables, block.body.value)


def _nodes(value: Expr, kind: type) -> list[Any]:
    """All nodes of a kind in an expression."""
    found: list[Any] = []
    # A callback's result steers the walk; None goes on.
    structural_walk(value, lambda node: found.append(node) if isinstance(node, kind) else None)
    return found


def _vector(lane: tirx.Var, lanes: int, head: list[tirx.Stmt], body: list[tirx.Stmt]) -> tirx.Stmt:
    zero, count = (tirx.const(n, lane.ty.dtype) for n in (0, lanes))
    return sequence([*head, tirx.For(lane, zero, count, tirx.ForKind.VECTORIZED, sequence(body))])


def _same(indices: Sequence[Expr], variables: Sequence[tirx.Var], shape: Sequence[int]) -> bool:
    """Whether `indices` are the variables, but for axes of one element."""
    return len(indices) == len(variables) and all(
        index.same_as(variable) or (size == 1 and isinstance(index, tvm.tirx.IntImm))
        for index, variable, size in zip(indices, variables, shape, strict=True)
    )
