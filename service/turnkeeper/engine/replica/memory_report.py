"""Reports what the parts of the replica hold of its memory budget."""

import asyncio
from typing import Final

from turnkeeper.admission.memory import MemoryBudget
from turnkeeper.telemetry.metrics import Metrics

INTERVAL: Final = 1.0
"""Seconds between two reports."""


class MemoryReport:
    """Reports once an INTERVAL."""

    def __init__(self, memory: MemoryBudget, metrics: Metrics) -> None:
        self._memory = memory
        self._metrics = metrics

    async def run(self) -> None:
        """Reports until it is cancelled. Returns at once if nothing is exported."""
        self._metrics.set_memory_budget(self._memory.most)
        while self._metrics.counting:
            for part, size in self._memory.used().items():
                self._metrics.set_memory_used(part, size=size)
            await asyncio.sleep(INTERVAL)
