"""Measures how late the event loop is: what blocks it delays every call, stream and lease of the replica."""

import asyncio
from typing import Final

from turnkeeper.telemetry.metrics import Metrics

INTERVAL: Final = 0.25
"""Seconds between two measurements."""


class LoopLag:
    """Records, at each INTERVAL, how much later than planned the loop came to it."""

    def __init__(self, metrics: Metrics, *, interval: float = INTERVAL) -> None:
        """`interval` in seconds."""
        self._metrics = metrics
        self._interval = interval

    async def run(self) -> None:
        """Measures until it is cancelled. Returns at once if nothing is exported."""
        clock = asyncio.get_running_loop().time
        while self._metrics.counting:
            due = clock() + self._interval
            await asyncio.sleep(self._interval)
            self._metrics.loop_lag(max(0.0, clock() - due))
