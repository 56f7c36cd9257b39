"""Stores a changeset as a broken version does: the service's own writes under a weaker filter."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from turnkeeper.store.changeset import Changeset, CommitResult, Committed, Conflict, Duplicate, RequestRecord
from turnkeeper.store.mongo import changesets, heads, keys
from turnkeeper.store.mongo.changesets import Changesets
from turnkeeper.store.mongo.client import MAJORITY, ClientSession, Connection, DatabaseCall, Document
from turnkeeper.store.mongo.documents import decode, encode
from turnkeeper.store.mongo.events import numbered
from turnkeeper.store.mongo.transactions.pipeline import CommandExchange
from turnkeeper.store.mongo.transactions.writes import Obstacle, TransactionStopped, Writes

Move = Callable[[ClientSession], Awaitable[Document | None]]
"""Changes the head inside the transaction; its `last_seq` and `fence` afterwards, or None."""


async def store(self: Changesets, changeset: Changeset, move: Move, *, fence: int | None) -> CommitResult:
    """Stores the changeset in one transaction after `move`, whose result has its numbers.

    `fence`: the fence of its events; None: the head's.
    """
    with DatabaseCall():
        while True:
            try:
                return await _store(self, changeset, move, fence=fence)
            except TransactionStopped:
                return Conflict()
            except PyMongoError as error:
                if not error.has_error_label("TransientTransactionError"):
                    raise


async def _store(self: Changesets, changeset: Changeset, move: Move, *, fence: int | None) -> CommitResult:
    connection = self._connection
    async with connection.session() as session, session.start_transaction(ReadConcern("snapshot"), MAJORITY):
        head = await move(session)
        if head is None:
            raise TransactionStopped(Obstacle.MISS)
        first = head["last_seq"] - len(changeset.events)
        events = tuple(
            numbered(self._codec, changeset.session_id, event, first + place)
            for place, event in enumerate(changeset.events, 1)
        )
        writes = Writes(schema=connection.schema)
        current_fence = head["fence"] if fence is None else fence
        changesets._write_events(writes, changeset, events, fence=current_fence)  # noqa: SLF001 - the service's own writes
        changesets._write_documents(writes, changeset)  # noqa: SLF001
        with CommandExchange(connection, session) as exchange:
            await connection.in_thread(partial(writes.send, exchange))
    return Committed(last_seq=head["last_seq"], fence=head["fence"], events=events)


def unconditional(self: Changesets, changeset: Changeset) -> Move:
    """Returns a move that increments the number, whatever the head is."""
    changed: Document = {
        **heads.moved(changeset)[0]["$set"],
        "last_seq": {"$add": ["$last_seq", len(changeset.events)]},
    }
    return partial(_increment, self._connection, session_of(changeset), [{"$set": changed}])


async def _increment(
    connection: Connection, match: Document, pipeline: list[Document], session: ClientSession
) -> Document | None:
    return await connection.heads.find_one_and_update(
        match, pipeline, projection=("last_seq", "fence"), return_document=True, session=session
    )


def taken(head: Document) -> Move:
    """Returns a move for numbers that were taken before."""

    async def move(_: ClientSession) -> Document:
        return head

    return move


def session_of(changeset: Changeset) -> Document:
    return keys.where(keys.of_session(changeset.session_key))


async def local_duplicate(self: Changesets, changeset: Changeset) -> CommitResult | None:
    """Returns the request's record as this node has it now, or None."""
    if changeset.request is None:
        return None
    connection: Any = self._connection
    local = connection.requests.with_options(read_concern=ReadConcern("local"))
    document = await local.find_one(keys.where(keys.of_request(changeset.request.key)))
    return (
        None
        if document is None
        else Duplicate(decode(RequestRecord, {**document, "key": encode(changeset.request.key)}))
    )
