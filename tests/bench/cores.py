"""Which processes run on which core, and how much of each core is used."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.bench.figures import Invalid

SERVING: Final = 0
"""The core of the servers and the database."""
DRIVING: Final = 1
"""The core of the load, the model and this process."""
MOST_DRIVING: Final = 0.8
"""The share of the driving core above which a row does not count: the load itself may then have been late."""

MOST_OTHERS: Final = 0.1
"""The share of the serving core used by other programs above which a row of load does not count."""

Clock = tuple[int, int]
"""Ticks of a core: busy, and all."""


@contextlib.contextmanager
def pinned(*, serving: Iterable[int], driving: Iterable[int]) -> Iterator[None]:
    """Keeps these processes and their threads on one core each during the block. Raises Invalid without two cores."""
    allowed = os.sched_getaffinity(0)
    if not {SERVING, DRIVING} <= allowed:
        raise Invalid(f"this measure needs cores {SERVING} and {DRIVING}; this process may use {sorted(allowed)}")
    pids = {**dict.fromkeys(serving, SERVING), **dict.fromkeys(driving, DRIVING), os.getpid(): DRIVING}
    try:
        for pid, core in pids.items():
            keep(pid, {core})
        yield
    finally:
        for pid in pids:
            keep(pid, allowed)


def clocks() -> list[Clock]:
    """Returns each core's ticks since the machine's start."""
    lines = Path("/proc/stat").read_text().splitlines()
    return [clock_of(line) for line in lines if line.startswith("cpu") and line[3].isdecimal()]


def clock_of(line: str) -> Clock:
    """Returns the ticks of a line such as `cpu0 user nice system idle iowait irq softirq steal …`."""
    ticks = [int(word) for word in line.split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def used(before: Iterable[Clock], after: Iterable[Clock]) -> list[float]:
    """Returns the share of each core that was used between two readings, by whatever program."""
    pairs = zip(before, after, strict=True)
    return [(busy - before_busy) / max(1, total - before_all) for (before_busy, before_all), (busy, total) in pairs]


def overdriven(uses: Iterable[Sequence[float]]) -> str:
    """Returns why rows with these uses of the cores do not count; an empty string if they do."""
    most = max((use[DRIVING] for use in uses), default=0.0)
    return f"core {DRIVING} was at {most:.0%}" if most >= MOST_DRIVING else ""


def disturbed(share: float) -> str:
    """Returns why rows do not count: other programs had this share of the serving core. Empty if they count."""
    return f"other programs had {share:.0%} of core {SERVING}" if share >= MOST_OTHERS else ""


def keep(pid: int, cores: set[int]) -> None:
    """Keeps a process and its threads on these cores; does nothing if it has ended."""
    with contextlib.suppress(OSError):  # a process or a thread that has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread.name), cores)
