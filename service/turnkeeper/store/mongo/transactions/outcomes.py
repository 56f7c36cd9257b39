"""Determines what became of a changeset whose commit was refused or stayed unknown, from what a majority holds."""

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
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.events import events_of


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Reads what became of changesets and requests: the head first, then the rest.

    A client session that is passed must see everything that the transaction has seen.
    """

    connection: Connection

    async def of_changeset(self, changeset: Changeset, session: ClientSession) -> CommitResult | None:
        """Returns the result, or None if the changeset is not stored and the head is as its decision read it.

        Returns None also if the reading shows less than the decision read: the changeset may be stored all the same.
        """
        head = await self._head(changeset, session)
        if head is None:
            return None
        if stored := await self._stored(changeset, head, session):
            return stored
        if changeset.creates is not None and heads.is_hidden(head):
            return Conflict()  # its requests count no longer, or not yet
        if changeset.request is not None and (
            record := await self.find_request(changeset.request.key, session=session)
        ):
            # An uncertain commit may have succeeded since the head was read; then the record is this changeset's own.
            head = await self._head(changeset, session)
            return (head and await self._stored(changeset, head, session)) or Duplicate(record)
        if changeset.fence is not None and not changeset.is_owned_by(head["owner"], fence=head["fence"]):
            return Fenced()
        if changeset.creates is None and (_as_read(head, changeset) or _is_behind(head, changeset)):
            return None
        return Conflict()

    async def _head(self, changeset: Changeset, session: ClientSession) -> Document | None:
        """Returns the session's head as it is now, or None if it no longer has one."""
        key = keys.of_session(changeset.session_key)
        return await self.connection.heads.find_one(keys.where(key), session=session)

    async def find_request(self, key: RequestKey, *, session: ClientSession | None = None) -> RequestRecord | None:
        """Returns the request's record, or None if it had no effect so far."""
        document = await self.connection.requests.find_one(keys.where(keys.of_request(key)), session=session)
        return None if document is None else record_of(document)

    async def _stored(self, changeset: Changeset, head: Document, session: ClientSession) -> Committed | None:
        """Returns the result if the changeset is stored, otherwise None. Its id is on its events, or on the head."""
        if not changeset.events:
            for stored in head["silent_steps"]:
                if stored["step_id"] == changeset.changeset_id:
                    return Committed(last_seq=changeset.last_seq, fence=stored["fence"], events=())
            return None
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
        return Committed(last_seq=last["seq"], fence=last["fence"], events=tuple(events_of(documents)))


def record_of(document: Document) -> RequestRecord:
    """Returns the request's record that a document holds."""
    return decode(RequestRecord, {**document, "key": document["_id"]})


def _as_read(head: Document, changeset: Changeset) -> bool:
    """Returns True if the head is as the changeset's decision read it."""
    return (
        head["last_seq"] == changeset.last_seq
        and head["fence"] == changeset.head_fence
        and head["cancel"]["turn_id"] == changeset.cancel
        and changeset.last_changeset in ("", head.get("end", {}).get("step_id"))
        and changeset.revision in (None, head["revision"])
    )


def _is_behind(head: Document, changeset: Changeset) -> bool:
    """Returns True if the head is older than the one that the changeset's decision read."""
    return (
        head["last_seq"] < changeset.last_seq
        or head["fence"] < changeset.head_fence
        or (changeset.revision is not None and head["revision"] < changeset.revision)
    )
