"""One client session, and the transaction that it runs until that is known to be over.

Unknown is not aborted: the commit is sent again on the same session and transaction number; after that the database
is asked what it holds. A transaction with all its commands is one piece of work for one thread.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import pymongo
from pymongo.errors import ConnectionFailure, InvalidOperation, PyMongoError
from pymongo.read_concern import ReadConcern

from turnkeeper.store.mongo.client import MAJORITY, ClientSession, Connection
from turnkeeper.store.mongo.transactions.orphans import Orphans
from turnkeeper.store.mongo.transactions.writes import Obstacle, Stopped, Writes

LOOK_S: Final = 1.0
"""To look what the database holds takes at most this long after the deadline, and so does each try to settle."""
SETTLE_S: Final = 60.0
SNAPSHOT: Final = ReadConcern("snapshot")

T = TypeVar("T")
Look: TypeAlias = Callable[[ClientSession, Obstacle], Awaitable[T]]

_log = logging.getLogger(__name__)


class Attempt:
    """One client session, used for a transaction until that is known to be over."""

    def __init__(self, connection: Connection, orphans: Orphans, *, deadline: float) -> None:
        """`deadline`: when to give up, on the monotonic clock."""
        self.open: Obstacle | None = None
        self._connection = connection
        self._orphans = orphans
        self._deadline = deadline
        self._session = connection.session()

    def end(self) -> None:
        """Hand the session back. Its last transaction is over, so nothing is sent."""
        self._session.delegate.end_session()

    def follow(self, other: "Attempt") -> None:
        """What is read from here on is not older than what that one has seen."""
        _advance(self._session, other._session)  # noqa: SLF001 - one of its own kind

    def left(self) -> float:
        return self._deadline - time.monotonic()

    async def pause(self, tries: int) -> bool:
        """Wait a little, longer each time, spread at random. False when the time is up."""
        delay = random.uniform(0.5, 1.0) * min(0.004 * 2**tries, 0.25)
        if self.left() <= delay:
            return False
        await asyncio.sleep(delay)
        return True

    async def once(self, writes: Writes) -> None:
        """Return when the writes are committed on a majority. Raises Stopped, and PyMongoError when refused."""
        await self._orphans.announce(self._session)
        self.open = Obstacle.CONFLICT  # until the thread says more
        unsure = await self._connection.in_thread(partial(self._write_and_commit, writes))
        if unsure is not None:
            await self._commit_again(writes, unsure)

    async def look(self, look: Look[T], obstacle: Obstacle) -> T:
        """In another session, which reads nothing older than this one has seen.

        A read in this one would make the driver forget the transaction whose commit may have to be sent again.
        """
        with pymongo.timeout(max(self.left(), LOOK_S)):
            async with self._connection.session() as reader:
                _advance(reader, self._session)
                return await look(reader, obstacle)

    def _write_and_commit(self, writes: Writes) -> PyMongoError | None:
        """All in this thread; what kept the first commit from a clear answer."""
        transaction: Any = self._session.delegate
        transaction.start_transaction(read_concern=SNAPSHOT, write_concern=MAJORITY)
        try:
            writes.pass_by("step.before_first_write")
            with pymongo.timeout(max(self.left(), 0.001)):
                writes.send(self._connection, self._session)
            writes.pass_by("step.before_commit")
        except PyMongoError as error:
            broken = isinstance(error, ConnectionFailure) or error.timeout
            self._abort(broken=broken and writes.arrived)
            if error.has_error_label("TransientTransactionError"):
                raise Stopped(Obstacle.CONFLICT) from error
            raise
        except BaseException:
            self._abort(broken=False)
            raise
        return self._commit(writes)

    def _abort(self, *, broken: bool) -> None:
        """Over a broken connection the abort may not arrive: the transaction counts as open."""
        self.open = Obstacle.CONFLICT if broken else None
        with pymongo.timeout(max(self.left(), LOOK_S)):
            self._session.delegate.abort_transaction()

    def _commit(self, writes: Writes) -> PyMongoError | None:
        """One try, in this thread; None when it is committed on a majority."""
        self.open = Obstacle.UNKNOWN
        try:
            with pymongo.timeout(max(self.left(), 0.001)):
                self._session.delegate.commit_transaction()
        except PyMongoError as error:
            return error
        self.open = None
        writes.pass_by("step.after_commit")
        return None

    async def _commit_again(self, writes: Writes, unsure: PyMongoError) -> None:
        """Return when it is committed after all."""
        error: PyMongoError | None = unsure
        tries = 0
        while error is not None:
            if _aborted(error):
                self.open = None
                raise Stopped(Obstacle.CONFLICT) from error
            if not await self.pause(tries):
                raise Stopped(Obstacle.UNKNOWN) from error
            tries += 1
            error = await self._connection.in_thread(partial(self._commit, writes))

    async def settle(self, settling: asyncio.Semaphore) -> None:
        """End what the caller could not wait for: have the commit's outcome, or kill what was never committed.

        While the database is gone there may be many of these: few at a time try, and briefly.
        """
        give_up = time.monotonic() + SETTLE_S
        while time.monotonic() < give_up:
            async with settling:
                if await self._settled():
                    self.end()
                    return
            await asyncio.sleep(random.uniform(0.25, 0.5))
        _log.warning("a transaction's outcome stayed unknown for %d s", SETTLE_S)

    async def _settled(self) -> bool:
        try:
            with pymongo.timeout(LOOK_S):
                await (self._session.commit_transaction() if self.open is Obstacle.UNKNOWN else self._kill())
        except InvalidOperation:
            return True  # the store was closed
        except PyMongoError as error:
            return self.open is Obstacle.UNKNOWN and _aborted(error)
        return True

    async def _kill(self) -> None:
        await self._connection.client.admin.command("killSessions", [self._session.session_id])


def _advance(session: ClientSession, other: ClientSession) -> None:
    """Its thread may be at work: the cluster's time is read last, so that it is never the lower one."""
    seen = other.delegate
    operation_time = seen.operation_time
    if operation_time is not None:
        session.advance_cluster_time(seen.cluster_time)
        session.advance_operation_time(operation_time)


def _aborted(error: PyMongoError) -> bool:
    """The commit was refused for certain; anything else leaves it unknown."""
    return error.has_error_label("TransientTransactionError") and not error.has_error_label(
        "UnknownTransactionCommitResult"
    )
