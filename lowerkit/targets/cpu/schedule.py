"""Loop schedules for the functions that TVM legalised and fused, by rules tried in order."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import s_tir, tirx

from lowerkit.targets.cpu.features import LANES
from lowerkit.targets.cpu.schedules.blocks import NotApplicable
from lowerkit.targets.cpu.schedules.contraction import schedule_contraction
from lowerkit.targets.cpu.schedules.elementwise import schedule_elementwise
from lowerkit.targets.cpu.schedules.rows import schedule_rows

#: A rule changes a schedule for vectors of so many float32 lanes, or raises NotApplicable or ScheduleError.
Rule = Callable[[s_tir.Schedule, int], None]
RULES: tuple[Rule, ...] = (schedule_contraction, schedule_elementwise, schedule_rows)


@tvm.transform.module_pass(opt_level=0, name="ScheduleForCpu")
class ScheduleForCpu:
    """Schedule every TIR function for processor `cpu`; one that no rule fits stays as TVM wrote it."""

    def __init__(self, cpu: str) -> None:
        self.lanes = LANES[cpu]

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """The pass."""
        scheduled = {
            variable: self._schedule(function)
            for variable, function in module.functions_items()
            if isinstance(function, tirx.PrimFunc)
        }
        for variable, function in scheduled.items():
            module[variable] = function
        return module

    def _schedule(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        for rule in RULES:
            schedule = s_tir.Schedule(function)
            try:
                rule(schedule, self.lanes)
            except (NotApplicable, s_tir.ScheduleError):
                continue
            return schedule.mod["main"]
        return function
