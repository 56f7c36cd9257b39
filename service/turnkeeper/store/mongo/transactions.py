"""A transaction from its first write to a known outcome.

Unknown is not aborted: the commit is sent again on the same session and transaction number; after that the database
is asked what it holds. A session is used for nothing else until its last transaction is known to be over.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias, TypeVar

import pymongo
from motor.motor_asyncio import AsyncIOMotorClientSession
from pymongo.errors import ConnectionFailure, InvalidOperation, PyMongoError, ServerSelectionTimeoutError, WriteError
from pymongo.read_concern import ReadConcern

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo.client import MAJORITY, Connection, Document
from turnkeeper.store.mongo.tasks import Tasks

DUPLICATE_KEY: Final = 11000
LOOK_S: Final = 1.0
"""Looking what the database holds gets at least this long, also after the deadline."""
SETTLE_S: Final = 60.0
SETTLERS: Final = 2
MAX_TRIES: Final = 32

T = TypeVar("T")
Session: TypeAlias = AsyncIOMotorClientSession

_log = logging.getLogger(__name__)


class Obstacle(Enum):
    """Why a transaction was not simply committed."""

    MISS = "miss"
    """A filter matched less than it should, or an insert met its like. Nothing was stored."""
    CONFLICT = "conflict"
    """Another transaction was in the way, or the connection broke before the commit. Nothing was stored."""
    UNKNOWN = "unknown"
    """The commit was sent; nobody said what became of it."""


class _Stopped(Exception):
    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__(obstacle)
        self.obstacle = obstacle


@dataclass(slots=True)
class Writes:
    """The writes of one transaction. Each raises what makes `run` abort when it does not change all it names.

    `arrived`: the database may know of the transaction.
    """

    connection: Connection
    session: Session
    arrived: bool = False

    async def find_and_update(
        self, collection: str, match: Document, pipeline: Sequence[Document], *, fields: Sequence[str]
    ) -> Document:
        """Change exactly one document; these fields of it, after the change."""
        reply = await self._send(
            {
                "findAndModify": collection,
                "query": match,
                "update": pipeline,
                "new": True,
                "fields": dict.fromkeys(fields, 1),
            }
        )
        if reply["value"] is None:
            raise _Stopped(Obstacle.MISS)
        value: Document = reply["value"]
        return value

    async def insert(self, collection: str, documents: Sequence[Document]) -> None:
        """New documents, none of which may exist."""
        if documents:
            self._all(await self._send({"insert": collection, "documents": documents}), len(documents))

    async def update(self, collection: str, updates: Sequence[tuple[Document, Document]]) -> None:
        """(filter, `$set`) pairs; each must find its document."""
        if updates:
            statements = [{"q": match, "u": {"$set": fields}} for match, fields in updates]
            self._all(await self._send({"update": collection, "updates": statements}), len(updates))

    async def _send(self, command: Document) -> Document:
        try:
            reply: Document = await self.connection.database.command(command, session=self.session)
        except PyMongoError as error:
            self.arrived |= not isinstance(error, ServerSelectionTimeoutError)
            raise
        self.arrived = True
        return reply

    def _all(self, reply: Document, expected: int) -> None:
        if errors := reply.get("writeErrors"):
            if errors[0]["code"] == DUPLICATE_KEY:
                raise _Stopped(Obstacle.MISS)
            raise WriteError("", errors[0]["code"])
        if reply["n"] != expected:
            raise _Stopped(Obstacle.MISS)


@dataclass(frozen=True, slots=True)
class Transactions:
    """Runs transactions and stays with them until their outcome is known, whatever becomes of the caller."""

    connection: Connection
    tasks: Tasks
    settling: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SETTLERS))

    async def run(
        self,
        body: Callable[[Writes], Awaitable[T]],
        look: Callable[[Session, Obstacle], Awaitable[T | None]],
    ) -> T:
        """What `body` returned, once its writes are committed on a majority; else what `look` found.

        `look` reads, with majority and causally after the obstacle, what the database holds: the result that follows,
        or None to run the body again, which it may say of a CONFLICT and an UNKNOWN alone.
        Raises ServiceUnavailable at the deadline; an unknown outcome is then pursued without the caller.
        """
        return await self.tasks.outlive(self._run(body, look))

    async def _run(
        self,
        body: Callable[[Writes], Awaitable[T]],
        look: Callable[[Session, Obstacle], Awaitable[T | None]],
    ) -> T:
        attempt = _Attempt(self.connection)
        try:
            for tries in range(MAX_TRIES):
                try:
                    return await attempt.once(body)
                except _Stopped as stopped:
                    obstacle = stopped.obstacle
                found = await attempt.look(look, obstacle)
                if found is not None:
                    return found
                if not await attempt.pause(tries):
                    break
            raise ServiceUnavailable
        finally:
            self._leave(attempt)

    def _leave(self, attempt: "_Attempt") -> None:
        """Let the session go, at once when its last transaction is over."""
        if attempt.open is None:
            attempt.end()
        else:
            self.tasks.start(attempt.settle(self.settling))


class _Attempt:
    """One client session, used for a transaction until that is known to be over."""

    def __init__(self, connection: Connection) -> None:
        self.open: Obstacle | None = None
        self._connection = connection
        self._deadline = time.monotonic() + connection.operation.total_seconds()
        self._session = connection.session()
        self._writes = Writes(connection, self._session)

    def end(self) -> None:
        """Hand the session back. Its last transaction is over, so nothing is sent."""
        self._session.delegate.end_session()

    def left(self) -> float:
        return self._deadline - time.monotonic()

    async def pause(self, tries: int) -> bool:
        """Wait a little, longer each time, spread at random. False when the time is up."""
        delay = random.uniform(0.5, 1.0) * min(0.004 * 2**tries, 0.25)
        if self.left() <= delay:
            return False
        await asyncio.sleep(delay)
        return True

    async def once(self, body: Callable[[Writes], Awaitable[T]]) -> T:
        """The body's result, committed. Raises _Stopped."""
        self._session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=MAJORITY)
        try:
            with pymongo.timeout(max(self.left(), 0.001)):
                result = await body(self._writes)
        except PyMongoError as error:
            broken = isinstance(error, ConnectionFailure) or error.timeout
            await self._abort(broken=broken and self._writes.arrived)
            if error.has_error_label("TransientTransactionError"):
                raise _Stopped(Obstacle.CONFLICT) from error
            raise
        except BaseException:
            await self._abort(broken=False)
            raise
        await self._commit()
        return result

    async def look(self, look: Callable[[Session, Obstacle], Awaitable[T | None]], obstacle: Obstacle) -> T | None:
        """In another session, which reads nothing older than this one has seen.

        A read in this one would make the driver forget the transaction whose commit may have to be sent again.
        """
        with pymongo.timeout(max(self.left(), LOOK_S)):
            async with self._connection.session() as reader:
                seen = self._session.delegate
                if seen.operation_time is not None:
                    reader.advance_cluster_time(seen.cluster_time)
                    reader.advance_operation_time(seen.operation_time)
                return await look(reader, obstacle)

    async def _abort(self, *, broken: bool) -> None:
        """Over a broken connection the abort may not arrive: the transaction counts as open."""
        self.open = Obstacle.CONFLICT if broken else None
        with pymongo.timeout(max(self.left(), LOOK_S)):
            await self._session.abort_transaction()

    async def _commit(self) -> None:
        """Return when it is committed on a majority."""
        self.open = Obstacle.UNKNOWN
        tries = 0
        while True:
            try:
                with pymongo.timeout(max(self.left(), 0.001)):
                    await self._session.commit_transaction()
            except PyMongoError as error:
                if _aborted(error):
                    self.open = None
                    raise _Stopped(Obstacle.CONFLICT) from error
                if not await self.pause(tries):
                    raise _Stopped(Obstacle.UNKNOWN) from error
                tries += 1
            else:
                self.open = None
                return

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


def _aborted(error: PyMongoError) -> bool:
    """The commit was refused for certain; anything else leaves it unknown."""
    return error.has_error_label("TransientTransactionError") and not error.has_error_label(
        "UnknownTransactionCommitResult"
    )
