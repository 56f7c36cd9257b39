"""How long a call to a model may take, and the watch that ends it."""

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from turnkeeper.model.failure import Reason, failure

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long one call may take.

    A token is output of the model. A comment, a role and a keep-alive are not tokens.
    """

    connect: timedelta = timedelta(seconds=10)
    """To a connection."""
    first_token: timedelta = timedelta(seconds=60)
    """From the call's start to its first token."""
    between_tokens: timedelta = timedelta(seconds=30)
    """From one token to the next."""
    total: timedelta = timedelta(minutes=10)
    """From the call's start to the answer's end, also if this process is the slow side."""


class DeadlineWatch:
    """Watches the deadlines of one call.

    One timer serves the whole call. A token moves the deadline, not the timer: when the timer expires, it is set again
    for the moved deadline. A deadline ends a call only while the call waits for the server. What has arrived is read
    to its end first, so that a server that sends comments all the time cannot outlast the deadline.
    """

    def __init__(self, deadlines: Deadlines, *, loop: asyncio.AbstractEventLoop) -> None:
        """Begins the call now."""
        self._loop = loop
        self._between = deadlines.between_tokens.total_seconds()
        self._until = loop.time() + deadlines.first_token.total_seconds()
        self._reason = Reason.START_TIMEOUT
        self._end = loop.time() + deadlines.total.total_seconds()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._waiting: asyncio.Task[object] | None = None
        self._over = False

    def __enter__(self) -> None:
        """Begins nothing: the deadlines run from the start."""

    def __exit__(self, *_: object) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def token(self) -> None:
        """Records that a token arrived: the time to the next one begins."""
        self._until = self._loop.time() + self._between
        self._reason = Reason.STALL_TIMEOUT

    def remaining(self) -> float:
        """Returns the seconds until the next deadline."""
        return max(0.0, min(self._until, self._end) - self._loop.time())

    async def wait(self, reply: Awaitable[T]) -> T:
        """Waits for the server; returns its reply. Raises ModelFailure if a deadline passes first."""
        due = min(self._until, self._end)
        if due < self._timer_at:
            self._set_timer(due)
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        self._waiting = task
        try:
            return await reply
        except asyncio.CancelledError:
            if self._over and task.cancelling() == cancels + 1:
                raise failure(self._reason if self._until < self._end else Reason.TOTAL_TIMEOUT) from None
            raise
        finally:
            self._waiting = None
            if self._over:
                task.uncancel()
                self._over = False  # if the client swallowed the cancellation, the next wait sees the deadline

    def _set_timer(self, due: float) -> None:
        """Sets the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._check)
        self._timer_at = due

    def _check(self) -> None:
        """Ends the wait if a deadline has passed, or sets the timer for the next one."""
        self._timer_at = math.inf
        due = min(self._until, self._end)
        if due > self._loop.time():
            self._set_timer(due)
        elif self._waiting is not None:
            self._over = True
            self._waiting.cancel()
