"""The owner of what must outlive its caller: commits under way, and those whose outcome is still open."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """Holds every task from its start to its end."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def outlive(self, work: Coroutine[Any, Any, T]) -> T:
        """The work's result. When the caller is cancelled, the work goes on to its end."""
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self, *, patience: timedelta) -> None:
        """Wait for all, and cancel what takes longer."""
        if self._running:
            await asyncio.wait(self._running, timeout=patience.total_seconds())
        while self._running:  # what is cancelled may leave something behind
            for task in self._running:
                task.cancel()
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has seen it; nobody waiting is no reason for a warning
