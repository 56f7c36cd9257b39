"""Reads that show everything that was acknowledged before, where a refusal rests on them.

A read with read concern majority may lag behind what was acknowledged. A new primary does not know at once what a
majority has; an old one may not know yet that it was replaced. A linearizable read shows all of it: the primary stores
an entry of its own, and answers once a majority has it. Reads that wait for the database's operation time of that
answer show no less, also on another primary.

So one linearizable read serves all callers that waited for its beginning. Whatever callers do, a replica has one under
way, and PAUSE_S between two.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import pymongo
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo.client import ClientSession, Collection, Connection, Document
from turnkeeper.store.mongo.transactions.tasks import Tasks

CONFIRM_S: Final = 2.0
"""Seconds that a caller waits for a linearizable read, at most, the one before it included."""
PAUSE_S: Final = 0.01
"""Seconds between two linearizable reads while callers wait for the second one."""
FLUSHES_S: Final = (0.002, 0.006, 0.024, 0.048)
"""Pauses between the flushes of the primary's journal while a linearizable read waits."""
ABSENT: Final = {"_id": "", "tenant": ""}
"""Names no document: only that the read is linearizable counts."""


@dataclass(slots=True)
class _Block:
    """A block whose reads are linearizable. Tasks that were started in it leave it when it ends."""

    cluster_time: Any
    operation_time: Any
    """Reads show what was stored up to this time, and with it everything that was acknowledged before the block."""
    is_open: bool = True
    task: asyncio.Task[Any] | None = None
    """The one that is in the block."""


_BLOCK: ContextVar[_Block | None] = ContextVar("the block that the current task is in", default=None)


class InSession:
    """A collection whose reads belong to a client session."""

    def __init__(self, collection: Collection, session: ClientSession, connection: Connection) -> None:
        self._collection = collection
        self._session = session
        self._connection = connection

    def find(self, *args: Any, **kwargs: Any) -> Any:
        """Finds in the session."""
        return self._collection.find(*args, session=self._session, **kwargs)

    async def find_one(self, *args: Any, **kwargs: Any) -> Any:
        """Finds one document in the session."""
        return await self._collection.find_one(*args, session=self._session, **kwargs)

    def aggregate(self, *args: Any, **kwargs: Any) -> Any:
        """Aggregates in the session."""
        return self._collection.aggregate(*args, session=self._session, **kwargs)

    async def list_of(self, match: Document, fields: Document, *, by: str, limit: int) -> Sequence[Document]:
        """Returns the first `limit` documents in this order. Motor's cursor would take each document by itself."""
        find = partial(self._collection.delegate.find, match, fields, session=self._session.delegate)
        return await self._connection.read_in_thread(lambda: find().sort(by).limit(limit).batch_size(limit).to_list())

    async def first_of(self, pipeline: Sequence[Document]) -> Document | None:
        """Returns the first document of an aggregation, or None.

        One thread does all of it: with motor's cursor the reader waits for four iterations of the event loop more.
        """
        aggregate = partial(self._collection.delegate.aggregate, pipeline, session=self._session.delegate)
        return await self._connection.read_in_thread(lambda: next(aggregate(), None))


Read: TypeAlias = Callable[[Collection], InSession]
"""Called before each command of a read, with its collection."""


class ConsistentReads:
    """Reads of one replica, linearizable where that is requested."""

    def __init__(self, connection: Connection, tasks: Tasks) -> None:
        """`tasks` owns the linearizable reads, which several callers share."""
        self._connection = connection
        self._tasks = tasks
        self._certain = connection.replicas.with_options(read_concern=ReadConcern("linearizable"))
        self._journaled = connection.replicas.with_options(write_concern=WriteConcern(w=1, j=True))
        self._waiting: list[asyncio.Future[_Block]] = []
        """Callers that need a linearizable read that has not begun."""
        self._is_running = False

    @asynccontextmanager
    async def linearizable(self) -> AsyncIterator[None]:
        """Makes the reads of this task linearizable inside the `async with` block.

        A block inside a block has been confirmed already. One in a task that was started there is confirmed anew: such
        a task may go on for long, and asks for what was acknowledged in the meantime. Raises ServiceUnavailable if no
        majority confirms that within CONFIRM_S.
        """
        outer, task = _BLOCK.get(), asyncio.current_task()
        if outer is not None and outer.is_open and outer.task is task:
            yield
            return
        block = await self._confirmed()
        block.task = task
        token = _BLOCK.set(block)
        try:
            yield
        finally:
            block.is_open = False
            _BLOCK.reset(token)

    @property
    def is_linearizable(self) -> bool:
        """Returns True inside such a block."""
        block = _BLOCK.get()
        return block is not None and block.is_open

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """Yields what gives each command of one read its collection."""
        session = self._connection.session()
        try:
            block = _BLOCK.get()
            if block is not None and block.is_open:
                session.advance_cluster_time(block.cluster_time)
                session.advance_operation_time(block.operation_time)
            yield lambda collection: InSession(collection, session, self._connection)
        finally:
            session.delegate.end_session()

    async def _confirmed(self) -> _Block:
        """Returns a new block after a linearizable read that began after this call. Raises ServiceUnavailable."""
        confirmed: asyncio.Future[_Block] = asyncio.get_running_loop().create_future()
        self._waiting.append(confirmed)
        if not self._is_running:
            self._is_running = True
            self._tasks.start(self._confirm_all())
        try:
            async with asyncio.timeout(CONFIRM_S):
                return await confirmed
        except TimeoutError:
            raise ServiceUnavailable from None

    async def _confirm_all(self) -> None:
        """Reads until no caller waits."""
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                await self._confirm([confirmed for confirmed in waiting if not confirmed.done()])
                if self._waiting:
                    await asyncio.sleep(PAUSE_S)
        finally:
            self._is_running = False

    async def _confirm(self, waiting: list["asyncio.Future[_Block]"]) -> None:
        """Makes one linearizable read for these callers."""
        if not waiting:
            return
        try:
            with self._connection.call("confirm"):
                cluster_time, operation_time = await self._read()
        except ServiceUnavailable:
            for confirmed in waiting:
                if not confirmed.done():
                    confirmed.set_exception(ServiceUnavailable())
            return
        for confirmed in waiting:
            if not confirmed.done():
                confirmed.set_result(_Block(cluster_time, operation_time))

    async def _read(self) -> tuple[Any, Any]:
        """Returns the cluster's time and the operation's, after a linearizable read."""
        with pymongo.timeout(CONFIRM_S):
            flushing = asyncio.create_task(self._flush())
            try:
                async with self._connection.session() as session:
                    await self._certain.find_one(ABSENT, {"_id": 1}, session=session)
                    return session.delegate.cluster_time, session.delegate.operation_time
            finally:
                flushing.cancel()

    async def _flush(self) -> None:
        """Has the primary flush its journal. A single node would wait for its next regular flush, up to 100 ms."""
        for pause in FLUSHES_S:
            await asyncio.sleep(pause)
            with suppress(PyMongoError):
                await self._journaled.update_one(ABSENT, {"$set": {"flushed": True}})
