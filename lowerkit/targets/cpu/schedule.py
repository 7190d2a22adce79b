"""Loop schedules for the functions that TVM legalised and fused, by rules tried in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm
from tvm import s_tir, tirx

from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.kernels.gemm.machine import machine
from lowerkit.targets.cpu.kernels.gemm.template import expand
from lowerkit.targets.cpu.schedules.blocks import NotApplicable, leaf_blocks
from lowerkit.targets.cpu.schedules.contraction import schedule_contraction
from lowerkit.targets.cpu.schedules.conv import schedule_convolution
from lowerkit.targets.cpu.schedules.elementwise import schedule_elementwise
from lowerkit.targets.cpu.schedules.rows import schedule_rows

#: A rule changes a schedule for vectors of so many float32 lanes, or raises NotApplicable or ScheduleError.
Rule = Callable[[s_tir.Schedule, int], None]
#: Attribute of functions that are scheduled already.
SCHEDULED = "tirx.is_scheduled"
RULES: tuple[Rule, ...] = (schedule_convolution, schedule_contraction, schedule_elementwise, schedule_rows)


@tvm.transform.module_pass(opt_level=0, name="ScheduleForCpu")
class ScheduleForCpu:
    """Schedule every TIR function for processor `cpu`; one that no rule fits stays as TVM wrote it."""

    def __init__(self, cpu: str) -> None:
        self.lanes = features.level(cpu).lanes
        self.machine = machine(cpu)

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """The pass."""
        scheduled = {
            variable: self._schedule(function)
            for variable, function in module.functions_items()
            if isinstance(function, tirx.PrimFunc) and SCHEDULED not in function.attrs
        }
        for variable, function in scheduled.items():
            module[variable] = function
        return module

    def _schedule(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        expanded = expand(function, self.machine)
        if expanded is not None:
            return expanded
        function = narrow(function)
        for rule in RULES:
            schedule = s_tir.Schedule(function)
            try:
                rule(schedule, self.lanes)
            except (NotApplicable, s_tir.ScheduleError, tvm.error.InternalError):
                # TVM checks some preconditions of its moves with assertions alone.
                continue
            return schedule.mod["main"]
        return function


def narrow(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Count loops in int32, without which TVM does not separate whole tiles from cut ones, where that can be done.

    The pass would narrow integer data too, so it is for functions on small buffers of float32 and bool alone.
    """
    schedule = s_tir.Schedule(function)
    try:
        blocks = leaf_blocks(schedule)
    except NotApplicable:
        return function
    for block in map(schedule.get, blocks):
        for region in (*block.reads, *block.writes):
            buffer = region.source.ty
            size = math.prod(int(dim) for dim in buffer.shape) if _is_static(buffer.shape) else 2**31
            if str(buffer.dtype.dtype) not in ("float32", "bool") or size >= 2**31:
                return function
    module = tvm.IRModule({"main": function})
    return tirx.transform.ForceNarrowIndexToInt32()(module)["main"]


def _is_static(shape: Sequence[object]) -> bool:
    return all(isinstance(dim, tirx.IntImm) for dim in shape)
