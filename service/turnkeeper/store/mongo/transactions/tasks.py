"""Owns the tasks that outlive their callers: commits under way, and those whose outcome is still open."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Final, TypeVar

LAST_TRIES: Final = 3
"""Rounds of cancelling at the end: a cancelled task may start another one."""
LAST_WAIT_S: Final = 1.0
"""How long each of these rounds waits."""

T = TypeVar("T")


class Tasks:
    """Holds a reference to every task until it ends."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def outlive(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns the work's result. If the caller is cancelled, the work continues to its end."""
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts the work and returns its task."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self, *, patience: timedelta) -> None:
        """Waits for all tasks, and cancels those that take longer than `patience`."""
        if self._running:
            await asyncio.wait(self._running, timeout=patience.total_seconds())
        for _ in range(LAST_TRIES):
            if not self._running:
                return
            for task in self._running:
                task.cancel()
            await asyncio.wait(self._running, timeout=LAST_WAIT_S)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that still waits gets it; without one asyncio must not warn
