"""Gives memory that is free back to the system.

The allocator of glibc keeps what was freed, in an arena for each thread of gRPC's. What half-sent requests had taken
would stay with the process for good.
"""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Any, Final

INTERVAL: Final = 4.0
"""Seconds between two trims."""


class MemoryTrim:
    """Trims the arenas of malloc once an INTERVAL."""

    def __init__(self, *, interval: float = INTERVAL) -> None:
        """`interval` in seconds."""
        self._trim = _of_glibc()
        self._interval = interval

    async def run(self) -> None:
        """Trims until it is cancelled. Returns at once if the system's allocator cannot trim."""
        while self._trim is not None:
            await asyncio.sleep(self._interval)
            await asyncio.to_thread(self._trim)


def _of_glibc() -> Callable[[], object] | None:
    malloc_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if malloc_trim is None else lambda: malloc_trim(0)
