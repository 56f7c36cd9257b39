"""Cancels tasks whose work takes too long, with one timer for all of them."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

LATE = -1.0
"""Stands for the time of work that was cancelled because it took too long."""

Task = asyncio.Task[Any] | None


class TaskDeadlines:
    """Cancels work that takes longer than `timeout` seconds."""

    def __init__(self, timeout: float) -> None:
        """`timeout` is that of each piece of work."""
        self._timeout = timeout
        self._begun: dict[Task, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: Task) -> float:
        """Notes that this task begins its work now. The task is cancelled if that takes too long.

        Returns the time in monotonic seconds.
        """
        self._begun[task] = now = time.monotonic()  # to ask for the event loop costs a system call
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout, self._cancel_late)
        return now

    def is_late(self, task: Task) -> bool:
        """Returns True if only this object cancelled the task, and takes the cancellation back."""
        return self._begun[task] == LATE and task is not None and task.uncancel() == 0

    def end(self, task: Task) -> None:
        """Notes that the task's work has ended."""
        del self._begun[task]

    def expire_oldest(self, among: Callable[[Task], bool], *, older_than: float) -> bool:
        """Cancels the oldest work of these tasks. Returns False if none is under way for `older_than` seconds."""
        latest = time.monotonic() - older_than
        for task, began in self._begun.items():
            if began != LATE and among(task):
                return began <= latest and self._expire(task)
        return False

    def _expire(self, task: Task) -> bool:
        self._begun[task] = LATE
        if task is not None:
            task.cancel()
        return True

    def _cancel_late(self) -> None:
        """Cancels each late work once. They are in the order in which they began."""
        self._timer = None
        for task, began in self._begun.items():
            if began == LATE:
                continue
            remaining = began + self._timeout - time.monotonic()
            if remaining > 0:
                self._timer = asyncio.get_running_loop().call_later(remaining, self._cancel_late)
                return
            self._expire(task)
