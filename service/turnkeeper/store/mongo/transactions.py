"""A transaction from its first write to a known outcome.

Unknown is not aborted: the commit is sent again on the same session and transaction number; after that the database
is asked what it holds. A session is used for nothing else until its last transaction is known to be over.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias, TypeVar

import pymongo
from motor.motor_asyncio import AsyncIOMotorClientSession
from pymongo.errors import ConnectionFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo.client import MAJORITY, Connection, Document
from turnkeeper.store.mongo.tasks import Tasks

DUPLICATE_KEY: Final = 11000
LOOK_S: Final = 1.0
"""Looking what the database holds gets at least this long, also after the deadline."""
RESOLVE_S: Final = 120.0
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


@dataclass(frozen=True, slots=True)
class Writes:
    """The writes of one transaction. Each raises what makes `run` abort when it does not change all it names."""

    connection: Connection
    session: Session

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
        return await self.connection.database.command(command, session=self.session)

    def _all(self, reply: Document, expected: int) -> None:
        if errors := reply.get("writeErrors"):
            if errors[0]["code"] == DUPLICATE_KEY:
                raise _Stopped(Obstacle.MISS)
            raise pymongo.errors.WriteError("", errors[0]["code"])
        if reply["n"] != expected:
            raise _Stopped(Obstacle.MISS)


@dataclass(frozen=True, slots=True)
class Transactions:
    """Runs transactions and stays with them until their outcome is known, whatever becomes of the caller."""

    connection: Connection
    tasks: Tasks

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
        session = await self.connection.client.start_session(causal_consistency=True)
        attempt = _Attempt(self.connection, session, time.monotonic() + self.connection.operation.total_seconds())
        try:
            for tries in range(MAX_TRIES):
                try:
                    return await attempt.once(body)
                except _Stopped as stopped:
                    obstacle = stopped.obstacle
                with pymongo.timeout(max(attempt.left(), LOOK_S)):
                    found = await look(session, obstacle)
                if found is not None:
                    return found
                if not await attempt.pause(tries):
                    break
            raise ServiceUnavailable
        finally:
            await self._leave(attempt)

    async def _leave(self, attempt: "_Attempt") -> None:
        """Let the session go, at once when its last transaction is over."""
        if attempt.open is None:
            await attempt.session.end_session()
            return
        self.tasks.start(attempt.settle())


class _Attempt:
    """One client session, used for a transaction until that is known to be over."""

    def __init__(self, connection: Connection, session: Session, deadline: float) -> None:
        self.session = session
        self.open: Obstacle | None = None
        self._connection = connection
        self._deadline = deadline
        self._writes = Writes(connection, session)

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
        self.session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=MAJORITY)
        try:
            with pymongo.timeout(max(self.left(), 0.001)):
                result = await body(self._writes)
        except PyMongoError as error:
            await self._abort(broken=isinstance(error, ConnectionFailure) or error.timeout)
            if error.has_error_label("TransientTransactionError"):
                raise _Stopped(Obstacle.CONFLICT) from error
            raise
        except BaseException:
            await self._abort(broken=False)
            raise
        await self._commit()
        return result

    async def _abort(self, *, broken: bool) -> None:
        """Over a broken connection the abort may not arrive: the transaction counts as open."""
        self.open = Obstacle.CONFLICT if broken else None
        with pymongo.timeout(max(self.left(), LOOK_S)):
            await self.session.abort_transaction()

    async def _commit(self) -> None:
        """Return when it is committed on a majority."""
        self.open = Obstacle.UNKNOWN
        tries = 0
        while True:
            try:
                with pymongo.timeout(max(self.left(), 0.001)):
                    await self.session.commit_transaction()
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

    async def settle(self) -> None:
        """End what the caller could not wait for: have the commit's outcome, or kill what was never committed."""
        give_up = time.monotonic() + RESOLVE_S
        while time.monotonic() < give_up:
            try:
                await (self.session.commit_transaction() if self.open is Obstacle.UNKNOWN else self._kill())
                break
            except PyMongoError as error:
                if self.open is Obstacle.UNKNOWN and _aborted(error):
                    break
                await asyncio.sleep(random.uniform(0.25, 0.5))
        else:
            _log.warning("a transaction's outcome stayed unknown for %d s", RESOLVE_S)
        await self.session.end_session()

    async def _kill(self) -> None:
        await self._connection.client.admin.command("killSessions", [self.session.session_id])


def _aborted(error: PyMongoError) -> bool:
    """The commit was refused for certain; anything else leaves it unknown."""
    return error.has_error_label("TransientTransactionError") and not error.has_error_label(
        "UnknownTransactionCommitResult"
    )
