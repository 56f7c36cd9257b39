"""How a broken version stores a step: the service's own writes under a weaker filter."""

from collections.abc import Awaitable, Callable
from typing import Any

from pymongo.read_concern import ReadConcern

from turnkeeper.store.mongo import heads, keys, steps
from turnkeeper.store.mongo.client import ClientSession, Document, database_errors
from turnkeeper.store.mongo.documents import decode, encode
from turnkeeper.store.mongo.events import numbered
from turnkeeper.store.mongo.steps import Steps
from turnkeeper.store.mongo.writes import Obstacle, Writes
from turnkeeper.store.step import Committed, Duplicate, RequestRecord, Stale, Step, Verdict

Move = Callable[[Writes], Awaitable[Document]]
"""Changes the head inside the transaction; its `last_seq` and `fence` afterwards."""


async def store(self: Steps, step: Step, move: Move, *, fence: int | None) -> Verdict:
    """The step in one transaction after `move`, numbered by what that gave.

    `fence`: what its events say; None: the head's.
    """

    async def write(writes: Writes) -> Verdict:
        head = await move(writes)
        first = head["last_seq"] - len(step.events)
        events = [
            numbered(self._codec, step.session_id, event, first + place) for place, event in enumerate(step.events, 1)
        ]
        said = head["fence"] if fence is None else fence
        await steps._write_events(writes, step, events, fence=said)  # noqa: SLF001 - the service's own writes
        await steps._write_documents(writes, step)  # noqa: SLF001
        return Committed(last_seq=head["last_seq"], fence=head["fence"], events=tuple(events))

    async def look(_: ClientSession, obstacle: Obstacle) -> Verdict | None:
        return Stale() if obstacle is Obstacle.MISS else None

    with database_errors():
        return await self._transactions.run(write, look)


def unconditional(step: Step) -> Move:
    """The number is incremented, whoever has been there."""
    changed: Document = {**heads.moved(step)[0]["$set"], "last_seq": {"$add": ["$last_seq", len(step.events)]}}

    async def move(writes: Writes) -> Document:
        return await writes.find_and_update(
            "heads", session_of(step), [{"$set": changed}], fields=("last_seq", "fence")
        )

    return move


def taken(head: Document) -> Move:
    """The number was taken before."""

    async def move(_: Writes) -> Document:
        return head

    return move


def session_of(step: Step) -> Document:
    return keys.where(keys.of_session(step.tenant, step.session_id))


async def local_duplicate(self: Steps, step: Step) -> Verdict | None:
    """What this request made, as this node has it now."""
    if step.request is None:
        return None
    connection: Any = self._transactions.connection
    local = connection.requests.with_options(read_concern=ReadConcern("local"))
    document = await local.find_one(keys.where(keys.of_request(step.request.key)))
    return None if document is None else Duplicate(decode(RequestRecord, {**document, "key": encode(step.request.key)}))
