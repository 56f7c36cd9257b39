"""Connects to MongoDB: driver options, collections, and the one place that translates the driver's exceptions."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from datetime import UTC, timedelta
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import pymongo
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorClientSession, AsyncIOMotorCollection
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from turnkeeper.domain.newer_version import newer_version_needed
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo.unreadable import RecordUnreadable, Unreadable, UnreadableDocument
from turnkeeper.telemetry.open_spans import error_type

Document: TypeAlias = dict[str, Any]
ClientSession: TypeAlias = AsyncIOMotorClientSession
Collection: TypeAlias = "AsyncIOMotorCollection[Document]"

CONNECT_S: Final = 2.0
"""Seconds in which a host accepts a connection."""
DISCONNECT_S: Final = 1.0
"""Seconds for disconnecting, at most."""
THREADS: Final = 32
"""Transactions that are sent at the same time, at most: each blocks a thread until it ends or reaches its deadline.

Reads that need a thread have as many of their own, so that they do not wait for transactions.
"""
MAJORITY: Final = WriteConcern(w="majority", j=True)
"""The write concern of everything but previews: acknowledged once a majority has the write in its journal."""
PREVIEWS_ONLY: Final = WriteConcern(w=1)
"""The write concern of previews, which may get lost: acknowledged once the primary has the write."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class RecordCall(Protocol):
    """`Metrics.database_finished`, or a function like it."""

    def __call__(self, operation: str, *, database: str, seconds: float, error_type: str = "") -> None: ...


class DatabaseCall:
    """A context manager around one call of the store: its commands and their retries.

    Raises ServiceUnavailable for every exception of the driver, without the driver's text, which may quote documents,
    and for a document that only a newer version can read.
    """

    __slots__ = ("_began", "_database", "_operation", "_record", "_unreadable")

    def __init__(
        self,
        operation: str = "",
        *,
        database: str = "",
        record: RecordCall | None = None,
        unreadable: Unreadable | None = None,
    ) -> None:
        """`operation` names the store's method. `record` gets its seconds, and the class of its error if any."""
        self._operation = operation
        self._database = database
        self._record = record
        self._unreadable = unreadable
        self._began = 0.0

    def __enter__(self) -> None:
        if self._record is not None:
            self._began = time.perf_counter()

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if self._record is not None:
            seconds = time.perf_counter() - self._began
            failure = error_type(error) if error is not None else ""
            self._record(self._operation, database=self._database, seconds=seconds, error_type=failure)
        if isinstance(error, UnreadableDocument):
            if self._unreadable is not None:
                self._unreadable.note(error)
            raise newer_version_needed() from error
        if not isinstance(error, PyMongoError):
            return
        if isinstance(error, OperationFailure) and not error.has_error_label("TransientTransactionError"):
            # Without the error's text: it may quote a document.
            logger.warning(
                "the database refused %s (%s, code %s): a caller gets UNAVAILABLE, a job tries again later",
                *(self._operation or "an operation", type(error).__name__, error.code),
            )
        raise ServiceUnavailable from error


class Connection:
    """A client of the driver, and the collections of one database. Connects at the first call."""

    def __init__(
        self,
        uri: str,
        *,
        database: str,
        operation: timedelta,
        schema: int,
        record_call: RecordCall | None = None,
        record_unreadable: RecordUnreadable | None = None,
    ) -> None:
        """`operation` limits each call to the database, including the driver's own retries.

        `schema` is the newest schema that this replica supports, and the one that it writes. `record_call` gets the
        duration of each call of the store, `record_unreadable` each document that it cannot read.
        """
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="transactions")
        self._reading_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="reads")
        self.operation = operation
        self.unreadable = Unreadable(record_unreadable)
        self.call = partial(DatabaseCall, database=database, record=record_call, unreadable=self.unreadable)
        self.transaction_call = partial(DatabaseCall, unreadable=self.unreadable)
        """For a call that waits for a transaction, which is measured by itself: several calls may share it."""
        self._record_transaction = partial(record_call, "transaction", database=database) if record_call else None
        self.schema = schema
        self.client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
            uri,
            w="majority",
            journal=True,
            readConcernLevel="majority",
            readPreference="primary",
            retryWrites=True,
            retryReads=True,
            heartbeatFrequencyMS=1_000,
            connectTimeoutMS=CONNECT_S * 1000,
            serverSelectionTimeoutMS=10_000,
            timeoutMS=round(operation / timedelta(milliseconds=1)),
            uuidRepresentation="standard",
            tz_aware=True,
            tzinfo=UTC,
            appname="turnkeeper",
        )
        self.database = self.client[database]
        self.sessions: Collection = self.database["sessions"]
        self.heads: Collection = self.database["heads"]
        self.events: Collection = self.database["events"]
        self.turns: Collection = self.database["turns"]
        self.calls: Collection = self.database["tool_calls"]
        self.approvals: Collection = self.database["approvals"]
        self.requests: Collection = self.database["requests"]
        self.agents: Collection = self.database["agents"]
        self.secrets: Collection = self.database["secrets"]
        self.partials: Collection = self.database["partials"].with_options(
            write_concern=PREVIEWS_ONLY, read_concern=ReadConcern("local")
        )
        self.replicas: Collection = self.database["replicas"]
        self.audit_records: Collection = self.database["audit_records"]
        self.audit_seals: Collection = self.database["audit_seals"]
        self.audit_chains: Collection = self.database["audit_chains"]
        self.freezes: Collection = self.database["freezes"]
        self.delegations: Collection = self.database["delegations"]
        self.denials: Collection = self.database["denials"]

    def in_time(self) -> AbstractContextManager[Any]:
        """Limits a whole block of commands to `operation`, from now on.

        Otherwise each command has that much time of its own, from when a thread is free for it: beside many others that
        wait for a silent database, it would end much later.
        """
        return pymongo.timeout(self.operation.total_seconds())

    def session(self) -> ClientSession:
        """Returns a new, causally consistent client session. Sends nothing; motor's own method would need a thread."""
        return ClientSession(self.client.delegate.start_session(causal_consistency=True), self.client)

    def transaction_ended(self, began: float, error: BaseException | None) -> None:
        """Records one try of a transaction, from `began` (by `time.perf_counter`) to the answer to its commit."""
        if self._record_transaction is not None:
            failure = error_type(error) if error is not None else ""
            self._record_transaction(seconds=time.perf_counter() - began, error_type=failure)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Returns what `work` returns, which runs in a thread and may call the driver often.

        Motor would switch threads for each call. Raises InvalidOperation if the connection is closed.
        """
        return await _in_thread(self._threads, work)

    async def read_in_thread(self, work: Callable[[], T]) -> T:
        """Does the same as `in_thread` in a thread for reads, which has the limit of a block of `in_time`."""
        return await _in_thread(self._reading_threads, partial(copy_context().run, work))

    async def close(self) -> None:
        """Disconnects within DISCONNECT_S. Without that limit the driver waits 10 s for a server that is lost."""
        with pymongo.timeout(DISCONNECT_S):
            await asyncio.to_thread(self.client.close)
        for threads in (self._threads, self._reading_threads):
            threads.shutdown(wait=False)


async def _in_thread(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    try:
        future = asyncio.get_running_loop().run_in_executor(threads, work)
    except RuntimeError as error:
        raise InvalidOperation("the connection is closed") from error
    return await future
