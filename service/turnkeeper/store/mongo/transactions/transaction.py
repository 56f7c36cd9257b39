"""Runs transactions from their first write to a known outcome, also after their callers are cancelled."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from pymongo.errors import PyMongoError

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.event_loop import off_loop
from turnkeeper.store.mongo.client import Connection
from turnkeeper.store.mongo.transactions.attempt import Attempt, Look
from turnkeeper.store.mongo.transactions.orphans import Orphans
from turnkeeper.store.mongo.transactions.tasks import Tasks
from turnkeeper.store.mongo.transactions.writes import Obstacle, TransactionStopped, Writes

MAX_TRIES: Final = 32
"""Tries of one transaction, at most, within the operation's deadline."""
LARGE: Final = 200
"""Documents from which on they are made in a thread: it takes 10 ms or more."""
SETTLERS: Final = 2
"""Tasks at a time that settle open outcomes: while the database is unavailable there may be many."""
SETTLE_S: Final = 60.0
"""Seconds for which an open outcome is settled in the background, at most."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Transaction(Generic[T]):
    """The writes of one transaction, and its result."""

    write: Callable[[Writes], None]
    """Adds the writes."""
    result: T
    """The result if the writes are committed."""
    look: Look[T | None]
    """Reads what the database holds, with read concern majority and causally after the obstacle.

    Returns the result that follows from it, or None to write again.
    """
    has_fault_points: bool = False
    """The transaction passes the fault points `step.*`."""
    documents: int = 0
    """About how many documents it writes, if they may be many."""


@dataclass(frozen=True, slots=True, eq=False)
class Unsettled(Generic[T]):
    """A transaction whose outcome its caller did not learn in time."""

    transaction: Transaction[T]
    outcome: "asyncio.Future[T | None]"
    """Its result once that is known; None if it was not stored, or if that stayed unknown."""

    def settle(self, result: T | None) -> None:
        """Gives the result to the task that waits for it."""
        if not self.outcome.done():
            self.outcome.set_result(result)


@dataclass(frozen=True, slots=True)
class Transactions:
    """Runs transactions until their outcome is known, also after their callers are cancelled."""

    connection: Connection
    tasks: Tasks
    orphans: Orphans
    settling: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SETTLERS))

    async def run(self, transaction: Transaction[T]) -> T:
        """Returns the transaction's result once its writes are committed on a majority, or the result of its `look`.

        Raises ServiceUnavailable at the deadline. An unknown outcome is then settled in the background.
        """
        return await self.tasks.outlive(self._run(transaction))

    async def _run(self, transaction: Transaction[T]) -> T:
        attempt = self.attempt(self.deadline())
        try:
            return await self.pursue(transaction, attempt)
        finally:
            self.leave(attempt)

    def deadline(self) -> float:
        """Returns the deadline of an operation that begins now, by the monotonic clock."""
        return time.monotonic() + self.connection.operation.total_seconds()

    def attempt(self, deadline: float) -> Attempt:
        """Returns a new attempt. The caller must `leave` it in the end."""
        return Attempt(self.connection, self.orphans, deadline=deadline)

    async def pursue(self, transaction: Transaction[T], attempt: Attempt, *, met: Obstacle | None = None) -> T:
        """Runs the transaction in this attempt, with the results and errors of `run`.

        `met` is the obstacle of an earlier try: the transaction then begins with its `look`.
        """
        for tries in range(MAX_TRIES):
            if met is None:
                try:
                    await attempt.once(await self.writes(transaction))
                except TransactionStopped as stopped:
                    met = stopped.obstacle
                else:
                    return transaction.result
            result = await attempt.look(transaction.look, met)
            if result is not None:
                return result
            if not await attempt.pause(tries):
                break
            met = None
        raise ServiceUnavailable

    async def writes(self, *transactions: Transaction[Any]) -> Writes:
        """Returns the writes of all these, to be sent as one transaction."""
        documents = sum(transaction.documents for transaction in transactions)
        return await off_loop(partial(self._writes, transactions), large=documents > LARGE)

    def _writes(self, transactions: Sequence[Transaction[Any]]) -> Writes:
        has_fault_points = any(transaction.has_fault_points for transaction in transactions)
        writes = Writes(schema=self.connection.schema, has_fault_points=has_fault_points)
        for transaction in transactions:
            transaction.write(writes.of(transaction))
        return writes

    def leave(self, attempt: Attempt, *unsettled: Unsettled[Any]) -> None:
        """Ends the attempt: at once if its last transaction is over, otherwise after settling it in the background.

        Each of `unsettled` gets its outcome then.
        """
        if attempt.open is None:
            attempt.end()
        else:
            self.tasks.start(self._settle(attempt, unsettled))

    async def _settle(self, attempt: Attempt, unsettled: Sequence[Unsettled[Any]]) -> None:
        """Ends a transaction that is open after its caller's deadline, and finds out what became of each of its parts.

        Several may be settled at a time, but only SETTLERS of them talk to the database.
        """
        give_up = time.monotonic() + SETTLE_S
        is_over = False
        try:
            while time.monotonic() < give_up:
                async with self.settling:
                    is_over = is_over or await attempt.settled()
                    for part in unsettled:
                        await _look_late(part, attempt, is_over=is_over)
                if all(part.outcome.done() for part in unsettled) and (is_over or unsettled):
                    attempt.end()
                    return
                await asyncio.sleep(random.uniform(0.25, 0.5))
        finally:
            for part in unsettled:
                part.settle(None)
        logger.warning(
            "a transaction's outcome stayed unknown for %d s: the caller got UNAVAILABLE, and a repeat of the request "
            "returns the outcome",
            SETTLE_S,
        )


async def _look_late(part: Unsettled[Any], attempt: Attempt, *, is_over: bool) -> None:
    """Reads what became of a part, unless that is known. What is not stored stays unknown until the attempt is over.

    While it is not, a majority may have the transaction all the same: only the answer to its commit does not come.
    """
    if part.outcome.done():
        return
    with suppress(PyMongoError, ServiceUnavailable):
        if is_over:
            part.settle(await attempt.look(part.transaction.look, Obstacle.UNKNOWN))
        elif (result := await attempt.look_late(part.transaction.look)) is not None:
            part.settle(result)
