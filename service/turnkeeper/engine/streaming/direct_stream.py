"""A stream to which batches are written without its task: to wake a task costs more than most batches do."""

from collections.abc import Callable
from typing import Protocol

from turnkeeper.engine.streaming.batch import Batch


class DirectStream(Protocol):
    """The stream of one watcher. One batch at a time is written to it."""

    wake: Callable[[], None]
    """Wakes the watcher, which calls `written` then. Set by the watcher."""

    def is_ready(self, now: float) -> bool:
        """Returns True if a batch may be written now, in monotonic seconds.

        False while the last one is on its way, and if something else is due that only the stream's task can do.
        """
        ...

    def write(self, batch: Batch, now: float) -> bool:
        """Begins to write a batch. Returns False if that failed: `written` raises the error."""
        ...

    async def written(self) -> None:
        """Waits until all that was begun is written.

        Raises SlowConsumer if the reader took nothing for too long, and the error of a write that failed.
        """
        ...
