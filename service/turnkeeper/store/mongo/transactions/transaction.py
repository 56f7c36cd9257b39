"""A transaction from its first write to a known outcome, whatever becomes of the caller."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo.client import Connection
from turnkeeper.store.mongo.transactions.attempt import Attempt, Look
from turnkeeper.store.mongo.transactions.orphans import Orphans
from turnkeeper.store.mongo.transactions.tasks import Tasks
from turnkeeper.store.mongo.transactions.writes import Obstacle, Stopped, Writes

MAX_TRIES: Final = 32
SETTLERS: Final = 2
"""How many open outcomes are looked after at a time."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Transaction(Generic[T]):
    """What is to be written, and what it comes to.

    `look` reads, with majority and causally after the obstacle, what the database holds: the result that follows, or
    None to write again. `faulty`: it passes the fault points of a step.
    """

    write: Callable[[Writes], None]
    result: T
    look: Look[T | None]
    faulty: bool = False


@dataclass(frozen=True, slots=True)
class Transactions:
    """Runs transactions and stays with them until their outcome is known, whatever becomes of the caller."""

    connection: Connection
    tasks: Tasks
    orphans: Orphans
    settling: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SETTLERS))

    async def run(self, transaction: Transaction[T]) -> T:
        """Its result, once its writes are committed on a majority; else what it found.

        Raises ServiceUnavailable at the deadline; an unknown outcome is then pursued without the caller.
        """
        return await self.tasks.outlive(self._run(transaction))

    async def _run(self, transaction: Transaction[T]) -> T:
        attempt = self.attempt(self.deadline())
        try:
            return await self.pursue(transaction, attempt)
        finally:
            self.leave(attempt)

    def deadline(self) -> float:
        """Of what begins now."""
        return time.monotonic() + self.connection.operation.total_seconds()

    def attempt(self, deadline: float) -> Attempt:
        """To be left when it is over, whatever becomes of it."""
        return Attempt(self.connection, self.orphans, deadline=deadline)

    async def pursue(self, transaction: Transaction[T], attempt: Attempt, *, met: Obstacle | None = None) -> T:
        """As `run`, to the end of this attempt. `met`: what stopped it before."""
        for tries in range(MAX_TRIES):
            if met is None:
                try:
                    await attempt.once(self.writes(transaction))
                except Stopped as stopped:
                    met = stopped.obstacle
                else:
                    return transaction.result
            found = await attempt.look(transaction.look, met)
            if found is not None:
                return found
            if not await attempt.pause(tries):
                break
            met = None
        raise ServiceUnavailable

    def writes(self, *transactions: Transaction[Any]) -> Writes:
        """Those of all of them, to be sent as one transaction."""
        writes = Writes(schema=self.connection.schema, faulty=any(each.faulty for each in transactions))
        for each in transactions:
            each.write(writes.of(each))
        return writes

    def leave(self, attempt: Attempt) -> None:
        """Let its session go, at once when its last transaction is over."""
        if attempt.open is None:
            attempt.end()
        else:
            self.tasks.start(attempt.settle(self.settling))
