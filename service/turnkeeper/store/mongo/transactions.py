"""A transaction from its first write to a known outcome, whatever becomes of the caller."""

import asyncio
from dataclasses import dataclass, field
from typing import Final, TypeVar

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo.attempts import Attempt, Body, Look
from turnkeeper.store.mongo.client import Connection
from turnkeeper.store.mongo.orphans import Orphans
from turnkeeper.store.mongo.tasks import Tasks
from turnkeeper.store.mongo.writes import Stopped

MAX_TRIES: Final = 32
SETTLERS: Final = 2
"""How many open outcomes are looked after at a time."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Transactions:
    """Runs transactions and stays with them until their outcome is known, whatever becomes of the caller."""

    connection: Connection
    tasks: Tasks
    orphans: Orphans
    settling: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SETTLERS))

    async def run(
        self,
        body: Body[T],
        look: Look[T],
    ) -> T:
        """What `body` returned, once its writes are committed on a majority; else what `look` found.

        `look` reads, with majority and causally after the obstacle, what the database holds: the result that follows,
        or None to run the body again.
        Raises ServiceUnavailable at the deadline; an unknown outcome is then pursued without the caller.
        """
        return await self.tasks.outlive(self._run(body, look))

    async def _run(
        self,
        body: Body[T],
        look: Look[T],
    ) -> T:
        attempt = Attempt(self.connection, self.orphans)
        try:
            for tries in range(MAX_TRIES):
                try:
                    return await attempt.once(body)
                except Stopped as stopped:
                    obstacle = stopped.obstacle
                found = await attempt.look(look, obstacle)
                if found is not None:
                    return found
                if not await attempt.pause(tries):
                    break
            raise ServiceUnavailable
        finally:
            self._leave(attempt)

    def _leave(self, attempt: Attempt) -> None:
        """Let the session go, at once when its last transaction is over."""
        if attempt.open is None:
            attempt.end()
        else:
            self.tasks.start(attempt.settle(self.settling))
