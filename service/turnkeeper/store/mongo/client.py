"""The connection: driver options, collections, and the one place that translates the driver's exceptions."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, timedelta
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import pymongo
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorClientSession, AsyncIOMotorCollection
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.telemetry.open_spans import error_type

Document: TypeAlias = dict[str, Any]
ClientSession: TypeAlias = AsyncIOMotorClientSession
Collection: TypeAlias = "AsyncIOMotorCollection[Document]"

DISCONNECT_S: Final = 1.0
"""Most time for disconnecting."""
THREADS: Final = 32
"""For transactions. When the database stalls, each occupies a thread until its time limit."""
MAJORITY: Final = WriteConcern(w="majority", j=True)
"""A write is acknowledged when a majority has it in its journal."""
QUICK: Final = WriteConcern(w=1)
"""For previews only: they may get lost."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class RecordCall(Protocol):
    """`Metrics.database_finished`, or a function like it."""

    def __call__(self, operation: str, *, database: str, seconds: float, error_type: str = "") -> None: ...


class DatabaseCall:
    """A context manager around one call to the database, with its retries and the wait for others' writes.

    Raises ServiceUnavailable for every exception of the driver, without its text, which may quote documents.
    """

    __slots__ = ("_began", "_database", "_operation", "_record")

    def __init__(self, operation: str = "", *, database: str = "", record: RecordCall | None = None) -> None:
        """`record`, if there is one, gets the duration under the name `operation`."""
        self._operation = operation
        self._database = database
        self._record = record
        self._began = 0.0

    def __enter__(self) -> None:
        if self._record is not None:
            self._began = time.perf_counter()

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if self._record is not None:
            seconds = time.perf_counter() - self._began
            failure = error_type(error) if error is not None else ""
            self._record(self._operation, database=self._database, seconds=seconds, error_type=failure)
        if not isinstance(error, PyMongoError):
            return
        if isinstance(error, OperationFailure) and not error.has_error_label("TransientTransactionError"):
            # Without the error's text: it may quote a document.
            logger.warning(
                "the database refused an operation (%s, code %s); its caller gets UNAVAILABLE",
                *(type(error).__name__, error.code),
            )
        raise ServiceUnavailable from error


class Connection:
    """A client and its collections. Connects at the first call."""

    def __init__(
        self,
        uri: str,
        *,
        database: str,
        operation: timedelta,
        schema: int,
        record_call: RecordCall | None = None,
    ) -> None:
        """`operation` limits each call to the database, including the driver's own retries.

        `schema` is the newest schema that this replica supports, and the one that it writes.
        """
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="transactions")
        self.operation = operation
        self.call = partial(DatabaseCall, database=database, record=record_call)
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
            connectTimeoutMS=2_000,
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
            write_concern=QUICK, read_concern=ReadConcern("local")
        )
        self.replicas: Collection = self.database["replicas"]

    def session(self) -> ClientSession:
        """Returns a causally consistent client session. Sends nothing; motor's own method would use a thread."""
        return ClientSession(self.client.delegate.start_session(causal_consistency=True), self.client)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs several calls to the driver in one thread: motor would switch threads for each of them."""
        try:
            working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except RuntimeError as error:
            raise InvalidOperation("the connection is closed") from error
        return await working

    async def close(self) -> None:
        """Disconnects, in at most 1 s: ending its server sessions, the driver would wait 10 s for a lost server."""
        with pymongo.timeout(DISCONNECT_S):
            await asyncio.to_thread(self.client.close)
        self._threads.shutdown(wait=False)
