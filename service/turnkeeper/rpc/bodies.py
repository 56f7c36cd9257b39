"""Reads the one message of a request, under a budget of bytes and of time.

A method that takes one message is registered as one that takes many: our code then runs at the call's headers, before
gRPC takes anything of the body.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from grpc import aio

from turnkeeper.admission.gate import rest, resume
from turnkeeper.admission.memory import MemoryBudget
from turnkeeper.errors import NotImplementedYet, Overloaded
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.places import Places
from turnkeeper.rpc.task_deadlines import Task, TaskDeadlines

BODY_BYTES: Final = 4 << 20
"""Bytes of a request, at most: gRPC refuses more."""
MEMORY_SHARE: Final = 0.25
"""Of the memory that is left beside the process itself: for the bodies that are being received."""
MOST_BYTES: Final = 256 << 20
"""Bytes of these bodies, at most. Each counts as BODY_BYTES: its length is not known before."""
BODY_SECONDS: Final = 10.0
"""Seconds in which a body must arrive."""
YOUNG_SECONDS: Final = 0.25
"""Seconds for which a body that is being received is not given up for others."""
LINE: Final = 1024
"""Calls whose bodies wait for a place. A burst of as many streams as a connection has is read."""


class BodyLate(Exception):
    """The body did not arrive in time, or others needed its place."""


class Bodies:
    """The bodies that are being received. One connection has half of their budget at most."""

    def __init__(
        self,
        memory: MemoryBudget,
        *,
        part: str = "bodies",
        most: int = MOST_BYTES,
        seconds: float = BODY_SECONDS,
        young: float = YOUNG_SECONDS,
        line: int = LINE,
    ) -> None:
        """They are `part` of the memory, with MEMORY_SHARE of what is left, `most` bytes at most.

        `seconds` for each body, which is not given up for others in the first `young` of them.
        """
        self._seconds, self._young = seconds, young
        self._memory, size = memory.reserved(part, share=MEMORY_SHARE, most=most)
        self._deadlines = TaskDeadlines(seconds)
        self._peers: dict[Task, str] = {}
        count = max(1, size // BODY_BYTES)
        self._places = Places(count, line=line, give_up=self._give_up, pace=young / count)

    def has_room_for(self, peer: str) -> bool:
        """Returns True if a body of this connection would have a place, or one in line."""
        return self._places.has_room_for(peer)

    async def read(self, context: Context) -> bytes:
        """Returns the request's only message.

        Raises NotImplementedYet if the request has none or several, and BodyLate if it is late. If all of the budget is
        in use, this one waits, and old bodies are given up, those of the connection that has the most at first. A call
        that waits is not at work meanwhile; raises Overloaded if too many calls are afterwards.
        """
        peer = context.peer()
        if not self._places.try_take(peer):
            await self._wait_for_place(peer)
        task = asyncio.current_task()
        self._peers[task] = peer
        self._deadlines.begin(task)
        self._memory.add(BODY_BYTES)
        is_late: bool | None = None
        try:
            message = await context.read()
            if message is aio.EOF or await context.read() is not aio.EOF:
                raise NotImplementedYet("The method takes exactly one message; send one, and end the request.")
            is_late = False
        except asyncio.CancelledError:
            if not self._deadlines.is_late(task):
                raise
            is_late = True
            raise BodyLate from None
        finally:
            self._deadlines.end(task)
            self._places.free(self._peers.pop(task), is_late=is_late)
            self._memory.add(-BODY_BYTES)
        return bytes(message)

    async def _wait_for_place(self, peer: str) -> None:
        rest()
        if not await self._places.take_in_line(peer, seconds=self._seconds):
            raise BodyLate
        try:
            resume()
        except Overloaded:
            self._places.free(peer)
            raise

    def _give_up(self, is_of: Callable[[str], bool]) -> bool:
        return self._deadlines.expire_oldest(lambda task: is_of(self._peers[task]), older_than=self._young)
