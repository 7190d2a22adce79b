"""Reductions."""

from __future__ import annotations

from tvm import s_tir

from lowerkit.targets.cpu.schedules.blocks import NotApplicable


def schedule_rows(schedule: s_tir.Schedule, lanes: int) -> None:
    raise NotApplicable("todo")
