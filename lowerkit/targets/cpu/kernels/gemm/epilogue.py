"""The elementwise operators that follow a product, computed on its tiles before they are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr, TensorLoad
from tvm_ffi import structural_mutate, structural_walk

from lowerkit.targets.cpu.kernels.gemm.expressions import on_stack, sequence
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

    Args:
        schedule: of a function whose first block is the product.

    Raises:
        NotApplicable: when an operator is not elementwise, or has another shape than the product.
    """

    def __init__(self, schedule: s_tir.Schedule) -> None:
        product, *others = leaf_blocks(schedule)
        block = schedule.get(product)
        self.product: tirx.Var = block.writes[0].source
        self.shape = [int(dim) for dim in self.product.shape]
        self.parameters = list(schedule.mod["main"].params)
        self.stages = [self._stage(schedule, other) for other in others]
        self._uses = {stage.buffer: 0 for stage in self.stages}
        for stage in self.stages:
            structural_walk(stage.value, self._check)

    def _stage(self, schedule: s_tir.Schedule, handle: s_tir.schedule.SBlockRV) -> Stage:
        block = schedule.get(handle)
        if is_reduction(schedule, handle) or not isinstance(block.body, tirx.BufferStore):
            raise NotApplicable("an operator is not elementwise")
        variables = tuple(axis.var for axis in block.iter_vars)
        if [int(axis.dom.extent) for axis in block.iter_vars] != self.shape:
            raise NotApplicable("an operator has another shape")
        if not _same(block.body.indices, variables, self.shape):
            raise NotApplicable("an operator moves what it computes")
        return Stage(block.writes[0].source, variables, block.body.value)

    def _check(self, node: object) -> None:
        if not isinstance(node, TensorLoad):
            return
        stage = next((s for s in self.stages if node.source.same_as(s.buffer)), None)
        if stage is not None:
            self._uses[stage.buffer] += 1
        if (stage is not None or node.source.same_as(self.product)) and not any(
            _same(node.indices, other.variables, self.shape) for other in self.stages
        ):
            raise NotApplicable("an operator reads other elements than its own")

    @property
    def is_short(self) -> bool:
        """Whether it is computed in registers rather than in a loop."""
        nodes: list[object] = []
        for stage in self.stages:
            structural_walk(stage.value, lambda node: nodes.append(node) if isinstance(node, Expr) else None)
        return len(nodes) <= UNROLLED

    def store(self, lead: Sequence[Expr], column: Expr, lanes: int, sums: Callable[[Expr], Expr]) -> tirx.Stmt:
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

        def value(stage: Stage) -> Expr:
            axes = dict(zip(stage.variables, place, strict=True))

            def load(node: TensorLoad, mutator: object) -> Expr:
                if node.source.same_as(self.product):
                    return sums(lane)
                if node.source in temporaries:
                    return tirx.BufferLoad(temporaries[node.source], [lane])
                inner = next((s for s in self.stages if node.source.same_as(s.buffer)), None)
                return value(inner) if inner is not None else mutator.default_mutate(node)

            return structural_mutate(stage.value, [(TensorLoad, load), (tirx.Var, lambda v, _: axes.get(v, v))])

        body = []
        for stage in self.stages:
            written = any(stage.buffer.same_as(parameter) for parameter in self.parameters)
            dtype = str(stage.buffer.dtype)
            if self._uses[stage.buffer] > 1 and dtype != "bool":
                temporary = tirx.decl_buffer((lanes,), dtype, stage.buffer.name)
                body.append(tirx.BufferStore(temporary, value(stage), [lane]))
                temporaries[stage.buffer] = temporary
            if written:
                body.append(tirx.BufferStore(stage.buffer, value(stage), place))
        return _vector(lane, lanes, [on_stack(buffer) for buffer in temporaries.values()], body)


def _vector(lane: tirx.Var, lanes: int, head: list[tirx.Stmt], body: list[tirx.Stmt]) -> tirx.Stmt:
    zero, count = (tirx.const(n, lane.ty.dtype) for n in (0, lanes))
    return sequence([*head, tirx.For(lane, zero, count, tirx.ForKind.VECTORIZED, sequence(body))])


def _same(indices: Sequence[Expr], variables: Sequence[tirx.Var], shape: Sequence[int]) -> bool:
    """Whether `indices` are the variables, but for axes of one element."""
    return len(indices) == len(variables) and all(
        index.same_as(variable) or (size == 1 and isinstance(index, tvm.tirx.IntImm))
        for index, variable, size in zip(indices, variables, shape, strict=True)
    )
