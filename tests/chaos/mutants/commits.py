"""How a broken version stores a step: the service's own writes under a weaker filter."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from turnkeeper.store.changeset import Changeset, CommitResult, Committed, Conflict, Duplicate, RequestRecord
from turnkeeper.store.mongo import changesets as steps
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.changesets import Steps
from turnkeeper.store.mongo.client import MAJORITY, ClientSession, Connection, Document, database_errors
from turnkeeper.store.mongo.documents import decode, encode
from turnkeeper.store.mongo.events import numbered
from turnkeeper.store.mongo.transactions.writes import Obstacle, Stopped, Writes

Move = Callable[[ClientSession], Awaitable[Document | None]]
"""Changes the head inside the transaction; its `last_seq` and `fence` afterwards, or None."""


async def store(self: Steps, step: Changeset, move: Move, *, fence: int | None) -> CommitResult:
    """The step in one transaction after `move`, numbered by what that gave.

    `fence`: what its events say; None: the head's.
    """
    with database_errors():
        while True:
            try:
                return await _store(self, step, move, fence=fence)
            except Stopped:
                return Conflict()
            except PyMongoError as error:
                if not error.has_error_label("TransientTransactionError"):
                    raise


async def _store(self: Steps, step: Changeset, move: Move, *, fence: int | None) -> CommitResult:
    connection = self._connection
    async with connection.session() as session, session.start_transaction(ReadConcern("snapshot"), MAJORITY):
        head = await move(session)
        if head is None:
            raise Stopped(Obstacle.MISS)
        first = head["last_seq"] - len(step.events)
        events = tuple(
            numbered(self._codec, step.session_id, event, first + place) for place, event in enumerate(step.events, 1)
        )
        writes = Writes(schema=connection.schema)
        said = head["fence"] if fence is None else fence
        steps._write_events(writes, step, events, fence=said)  # noqa: SLF001 - the service's own writes
        steps._write_documents(writes, step)  # noqa: SLF001
        await connection.in_thread(partial(writes.send, connection, session))
    return Committed(last_seq=head["last_seq"], fence=head["fence"], events=events)


def unconditional(self: Steps, step: Changeset) -> Move:
    """The number is incremented, whoever has been there."""
    changed: Document = {**heads.moved(step)[0]["$set"], "last_seq": {"$add": ["$last_seq", len(step.events)]}}
    return partial(_increment, self._connection, session_of(step), [{"$set": changed}])


async def _increment(
    connection: Connection, match: Document, pipeline: list[Document], session: ClientSession
) -> Document | None:
    return await connection.heads.find_one_and_update(
        match, pipeline, projection=("last_seq", "fence"), return_document=True, session=session
    )


def taken(head: Document) -> Move:
    """The number was taken before."""

    async def move(_: ClientSession) -> Document:
        return head

    return move


def session_of(step: Changeset) -> Document:
    return keys.where(keys.of_session(step.session_key))


async def local_duplicate(self: Steps, step: Changeset) -> CommitResult | None:
    """What this request made, as this node has it now."""
    if step.request is None:
        return None
    connection: Any = self._connection
    local = connection.requests.with_options(read_concern=ReadConcern("local"))
    document = await local.find_one(keys.where(keys.of_request(step.request.key)))
    return None if document is None else Duplicate(decode(RequestRecord, {**document, "key": encode(step.request.key)}))
