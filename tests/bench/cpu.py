"""Reads the CPU time of other processes from their clocks."""

import time
from collections.abc import Iterable
from typing import Final

_SCHED: Final = 2
"""The kernel's clock of scheduled time, in nanoseconds: CPUCLOCK_SCHED."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """Returns the CPU seconds of these processes: all threads, ended ones included; user and system together."""
    return sum(time.clock_gettime((~pid << 3) | _SCHED) for pid in pids)
