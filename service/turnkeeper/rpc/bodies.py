"""Reads the one message of a request, under a budget of bytes and of time.

A method that takes one message is registered as one that takes many: our code then runs at the call's headers, before
gRPC takes anything of the body.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

from grpc import aio

from turnkeeper.errors import NotImplementedYet
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.task_deadlines import TaskDeadlines

BODY_BYTES: Final = 4 << 20
"""Bytes of a request, at most: gRPC refuses more."""
BUDGET_BYTES: Final = 256 << 20
"""Bytes of the bodies that are being received, at most. Each counts as BODY_BYTES: its length is not known before."""
BODY_SECONDS: Final = 10.0
"""Seconds in which a body must arrive."""
YOUNG_SECONDS: Final = 0.25
"""Seconds for which a body that is being received is not given up for others."""


class BodyLate(Exception):
    """The body did not arrive in time, or others needed its place."""


class Bodies:
    """The bodies that are being received."""

    def __init__(
        self, *, budget: int = BUDGET_BYTES, seconds: float = BODY_SECONDS, young: float = YOUNG_SECONDS
    ) -> None:
        """`budget` in bytes; `seconds` for each body, which is not given up for others in the first `young` of them."""
        self._seconds, self._young = seconds, young
        self._most = max(1, budget // BODY_BYTES)
        self._deadlines = TaskDeadlines(seconds)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def read(self, context: Context) -> bytes:
        """Returns the request's only message.

        Raises NotImplementedYet if the request has none or several, and BodyLate if it is late. If all of the budget is
        in use, the oldest body is given up; while all are young, this one waits.
        """
        await self._wait_for_room()
        task = asyncio.current_task()
        self._deadlines.begin(task)
        try:
            message = await context.read()
            if message is aio.EOF or await context.read() is not aio.EOF:
                raise NotImplementedYet("The method takes exactly one message; send one, and end the request.")
        except asyncio.CancelledError:
            if not self._deadlines.is_late(task):
                raise
            raise BodyLate from None
        finally:
            self._deadlines.end(task)
            if (freed := next((ended for ended in self._waiting if not ended.done()), None)) is not None:
                freed.set_result(None)
        return bytes(message)

    async def _wait_for_room(self) -> None:
        """Returns once the budget has room. Raises BodyLate if it has none within the time of a body."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._seconds
        while len(self._deadlines) >= self._most and not self._deadlines.expire_oldest(older_than=self._young):
            if loop.time() >= until:
                raise BodyLate
            ended: asyncio.Future[None] = loop.create_future()
            self._waiting.append(ended)
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._young):
                        await ended
            finally:
                self._waiting.remove(ended)
