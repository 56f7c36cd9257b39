"""Determines the result of a changeset whose commit did not simply succeed, from what a majority holds."""

from dataclasses import dataclass

from turnkeeper.store.changeset import (
    Changeset,
    CommitResult,
    Committed,
    Conflict,
    Duplicate,
    Fenced,
    RequestKey,
    RequestRecord,
)
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.events import event_of


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Reads the head first, then the rest, in a session that sees everything that the transaction has seen."""

    connection: Connection

    async def of_changeset(self, changeset: Changeset, session: ClientSession) -> CommitResult | None:
        """Returns the result. Returns None if the changeset is not stored and the head is as it was read."""
        head = await self._head(changeset, session)
        if head is None:
            return Conflict()
        if stored := await self._stored(changeset, head, session):
            return stored
        if changeset.request is not None and (
            record := await self.find_request(changeset.request.key, session=session)
        ):
            # An uncertain commit may have succeeded since the head was read; then the record is this changeset's own.
            head = await self._head(changeset, session)
            return (head and await self._stored(changeset, head, session)) or Duplicate(record)
        if changeset.fence is not None and (head["fence"] != changeset.fence or not head["owner"]):
            return Fenced()
        return None if _as_read(head, changeset) else Conflict()

    async def _head(self, changeset: Changeset, session: ClientSession) -> Document | None:
        key = keys.of_session(changeset.session_key)
        return await self.connection.heads.find_one(keys.where(key), session=session)

    async def find_request(self, key: RequestKey, *, session: ClientSession | None = None) -> RequestRecord | None:
        """Returns the request's record, or None. With `session`, sees everything that the session has seen."""
        document = await self.connection.requests.find_one(keys.where(keys.of_request(key)), session=session)
        return None if document is None else record_of(document)

    async def _stored(self, changeset: Changeset, head: Document, session: ClientSession) -> Committed | None:
        """Returns the result if the changeset is stored: its id is on its events, or on the head."""
        if not changeset.events:
            traces = (trace for trace in head["silent_steps"] if trace["step_id"] == changeset.changeset_id)
            return next(
                (Committed(last_seq=changeset.last_seq, fence=trace["fence"], events=()) for trace in traces), None
            )
        if head["last_seq"] == changeset.last_seq:
            return None
        events = self.connection.events.find(
            {
                "tenant": changeset.tenant,
                "session_id": changeset.session_id,
                "seq": {"$gt": changeset.last_seq, "$lte": changeset.last_seq + len(changeset.events)},
                "step_id": changeset.changeset_id,
            },
            session=session,
        ).sort("seq")
        documents = await events.to_list(None)
        if not documents:
            return None
        last = documents[-1]
        return Committed(
            last_seq=last["seq"], fence=last["fence"], events=tuple(event_of(document) for document in documents)
        )


def record_of(document: Document) -> RequestRecord:
    """Returns the record that a document holds."""
    return decode(RequestRecord, {**document, "key": document["_id"]})


def _as_read(head: Document, changeset: Changeset) -> bool:
    return (
        head["last_seq"] == changeset.last_seq
        and head["fence"] == changeset.head_fence
        and head["cancel"]["turn_id"] == changeset.cancel
        and changeset.revision in (None, head["revision"])
    )
