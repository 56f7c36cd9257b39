"""Runs one transaction in one client session until it is known to be over.

An unknown outcome is not an abort: the commit is sent again on the same session and transaction number; after that,
what the database holds is read. One thread sends all commands of a transaction.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import pymongo
from pymongo.errors import ConnectionFailure, InvalidOperation, PyMongoError
from pymongo.read_concern import ReadConcern

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo.client import MAJORITY, ClientSession, Connection
from turnkeeper.store.mongo.transactions.orphans import Orphans
from turnkeeper.store.mongo.transactions.pipeline import CommandExchange
from turnkeeper.store.mongo.transactions.writes import Obstacle, TransactionStopped, Writes

LOOK_S: Final = 1.0
"""Seconds, at most, of a read after the deadline, and of each try to settle an outcome."""
SNAPSHOT: Final = ReadConcern("snapshot")

T = TypeVar("T")
Look: TypeAlias = Callable[[ClientSession, Obstacle], Awaitable[T]]


class Attempt:
    """A client session and its transaction."""

    def __init__(self, connection: Connection, orphans: Orphans, *, deadline: float) -> None:
        """`deadline` is in seconds of the monotonic clock."""
        self.open: Obstacle | None = None
        """None if no transaction is open; CONFLICT if one may be, not committed; UNKNOWN if its commit was sent."""
        self._connection = connection
        self._orphans = orphans
        self._deadline = deadline
        self._session = connection.session()

    def end(self) -> None:
        """Returns the session to the driver. Sends nothing: the last transaction must be over."""
        self._session.delegate.end_session()

    def follow(self, other: "Attempt") -> None:
        """Makes sure that reads from now on are not older than what the other attempt has seen."""
        _advance(self._session, other._session)  # noqa: SLF001 - one of its own kind

    def left(self) -> float:
        """Returns the seconds until the deadline; negative after it."""
        return self._deadline - time.monotonic()

    async def pause(self, tries: int) -> bool:
        """Waits 2 to 250 ms at random, twice as long with each try. Returns False at once if the deadline is nearer."""
        delay = random.uniform(0.5, 1.0) * min(0.004 * 2**tries, 0.25)
        if self.left() <= delay:
            return False
        await asyncio.sleep(delay)
        return True

    async def once(self, writes: Writes) -> None:
        """Sends and commits the writes. Returns when a majority has them.

        Raises TransactionStopped if the transaction cannot continue, PyMongoError if the database refuses a command.
        """
        await self._orphans.announce(self._session)
        self.open = Obstacle.CONFLICT  # until the thread knows more
        began = time.perf_counter()
        failure: BaseException | None = None
        try:
            error = await self._connection.in_thread(partial(self._write_and_commit, writes))
            failure = error
        except BaseException as stopped:
            failure = stopped
            raise
        finally:
            self._connection.transaction_ended(began, failure)
        if error is not None:
            await self._commit_again(writes, error)

    async def look(self, look: Look[T], obstacle: Obstacle) -> T:
        """Calls `look` with another session, which reads nothing older than this one has seen.

        A read in this session would make the driver forget the transaction, whose commit may have to be sent again.
        Raises ServiceUnavailable at the deadline, or after LOOK_S where that is later.
        """
        async with self._reader(max(self.left(), LOOK_S)) as reader:
            _advance(reader, self._session)
            return await look(reader, obstacle)

    async def look_late(self, look: Look[T]) -> T:
        """Calls `look` with a session of its own: it reads what a majority has, and waits for nothing newer."""
        async with self._reader(LOOK_S) as reader:
            return await look(reader, Obstacle.UNKNOWN)

    @asynccontextmanager
    async def _reader(self, seconds: float) -> AsyncIterator[ClientSession]:
        """Yields another session for so many seconds. Raises ServiceUnavailable after them.

        The driver's own limit lets a read wait for a thread for longer: others' commands may keep all of them.
        """
        session = self._connection.session()
        try:
            with pymongo.timeout(seconds):
                async with asyncio.timeout(seconds):
                    yield session
        except TimeoutError:
            raise ServiceUnavailable from None
        finally:
            session.delegate.end_session()

    def _write_and_commit(self, writes: Writes) -> PyMongoError | None:
        """Sends all commands, blocking this thread. Returns the error that left the commit's outcome open, or None."""
        transaction: Any = self._session.delegate
        transaction.start_transaction(read_concern=SNAPSHOT, write_concern=MAJORITY)
        with CommandExchange(self._connection, self._session) as exchange:
            return self._exchange(writes, exchange)

    def _exchange(self, writes: Writes, exchange: CommandExchange) -> PyMongoError | None:
        try:
            writes.pass_fault_point("step.before_first_write")
            with pymongo.timeout(max(self.left(), 0.001)):
                writes.send(exchange)
            writes.pass_fault_point("step.before_commit")
        except PyMongoError as error:
            exchange.close()
            broken = isinstance(error, ConnectionFailure) or error.timeout
            self._abort(broken=broken and writes.was_sent)
            if error.has_error_label("TransientTransactionError"):
                raise TransactionStopped(Obstacle.CONFLICT) from error
            raise
        except BaseException:
            exchange.close()
            self._abort(broken=False)
            raise
        return self._commit(writes, exchange.commit)

    def _abort(self, *, broken: bool) -> None:
        """Aborts the transaction. Over a broken connection the abort may be lost, so the transaction stays open."""
        self.open = Obstacle.CONFLICT if broken else None
        with pymongo.timeout(max(self.left(), LOOK_S)):
            self._session.delegate.abort_transaction()

    def _commit(self, writes: Writes, commit: Callable[[], None]) -> PyMongoError | None:
        """Sends the commit by this function, blocking this thread.

        Returns None if a majority has it, otherwise the error.
        """
        self.open = Obstacle.UNKNOWN
        try:
            with pymongo.timeout(max(self.left(), 0.001)):
                commit()
        except PyMongoError as error:
            return error
        self.open = None
        writes.pass_fault_point("step.after_commit")
        return None

    async def _commit_again(self, writes: Writes, first: PyMongoError) -> None:
        """Sends the commit again until it succeeds.

        Raises TransactionStopped with CONFLICT if it was aborted, with UNKNOWN at the deadline.
        """
        error: PyMongoError | None = first
        tries = 0
        while error is not None:
            if _aborted(error):
                self.open = None
                raise TransactionStopped(Obstacle.CONFLICT) from error
            if not await self.pause(tries):
                raise TransactionStopped(Obstacle.UNKNOWN) from error
            tries += 1
            commit = self._session.delegate.commit_transaction
            error = await self._connection.in_thread(partial(self._commit, writes, commit))

    async def settled(self) -> bool:
        """Tries once, after the deadline, to end an open transaction: commits it, or kills it if no commit was sent.

        Returns True if it is over, or if the store was closed.
        """
        try:
            with pymongo.timeout(LOOK_S):
                await (self._session.commit_transaction() if self.open is Obstacle.UNKNOWN else self._kill())
        except InvalidOperation:
            return True  # the store was closed
        except PyMongoError as error:
            return self.open is Obstacle.UNKNOWN and _aborted(error)
        return True

    async def _kill(self) -> None:
        """Kills the server session, which aborts its transaction."""
        await self._connection.client.admin.command("killSessions", [self._session.session_id])


def _advance(session: ClientSession, other: ClientSession) -> None:
    """Advances a session's times to those of another.

    The other may be in use in its thread, so the cluster's time is read last: it is never behind the operation's.
    """
    source = other.delegate
    operation_time = source.operation_time
    if operation_time is not None:
        session.advance_cluster_time(source.cluster_time)
        session.advance_operation_time(operation_time)


def _aborted(error: PyMongoError) -> bool:
    """Returns True if the commit was certainly refused; any other error leaves its outcome unknown."""
    return error.has_error_label("TransientTransactionError") and not error.has_error_label(
        "UnknownTransactionCommitResult"
    )
