"""The owner of what must outlive its caller: commits under way, and those whose outcome is still open."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Final, TypeVar

LAST_TRIES: Final = 3
LAST_WAIT_S: Final = 1.0

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
        for _ in range(LAST_TRIES):  # what is cancelled may leave something behind
            if not self._running:
                return
            for task in self._running:
                task.cancel()
            await asyncio.wait(self._running, timeout=LAST_WAIT_S)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has seen it; nobody waiting is no reason for a warning
