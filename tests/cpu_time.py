"""Measures the CPU time of work: what one step of the event loop may take."""

import time
from collections.abc import Callable


def least_cpu_seconds(work: Callable[[], object], *, tries: int = 3) -> float:
    """Returns the least CPU seconds of this thread in some tries: the garbage collector adds to a single one."""
    return min(_cpu_seconds(work) for _ in range(tries))


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began
