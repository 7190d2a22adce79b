"""Loop schedules for the operators that TVM legalised, by rules tried in order."""

from __future__ import annotations

import tvm


@tvm.transform.module_pass(opt_level=0, name="ScheduleForCpu")
class ScheduleForCpu:
    """Schedule every TIR function for processor `cpu`."""

    def __init__(self, cpu: str) -> None:
        self.cpu = cpu

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        return module
