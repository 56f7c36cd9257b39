"""The clock by which leases age: its seconds also pass while the machine is suspended."""

import time
from typing import Final

_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux stops CLOCK_MONOTONIC while the machine is suspended, and counts on with CLOCK_BOOTTIME.

Elsewhere CLOCK_MONOTONIC is the nearest; that of macOS counts on as well.
"""


def now() -> float:
    """Returns the seconds since some moment of the past. They never go back, and pass while the process is stopped."""
    return time.clock_gettime(_CLOCK)
