"""What else the machine computes while something is measured on it (Linux)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
#: Of /proc/stat's first line: user, nice, system, irq, softirq, steal; not idle, not waiting for disks.
_BUSY = (0, 1, 2, 5, 6, 7)
#: Share of one processor that other processes may use on a machine that is called idle.
IDLE = 0.05


class Watch:
    """The processor time of everything but some processes of ours, from its creation on."""

    def __init__(self, processes: Iterable[int] = ()) -> None:
        self._processes = (os.getpid(), *processes)
        self._start, self._before = time.perf_counter(), self._foreign()

    def foreign(self) -> float:
        """Processor seconds per second that others used: 1 is one processor kept busy."""
        return max(0.0, self._foreign() - self._before) / self.elapsed()

    def elapsed(self) -> float:
        """Seconds."""
        return time.perf_counter() - self._start

    def _foreign(self) -> float:
        fields = Path("/proc/stat").read_text().split(None, 11)[1:]
        ours = sum(_process_ticks(pid) for pid in self._processes)
        return (sum(int(fields[i]) for i in _BUSY) - ours) * _TICK


def _process_ticks(pid: int) -> int:
    # Behind the name, which is in parentheses and may hold anything: fields 14 and 15 of proc(5).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def foreign_load(seconds: float = 1.0) -> float:
    """Processors that other processes keep busy, seen over so many seconds."""
    watch = Watch()
    time.sleep(seconds)
    return watch.foreign()
