"""Makes a fork: reserves its id, copies the log in batches, and makes it visible in one last transaction.

Until then its head has the field `forking` and there is no session document, so readers do not find it. Every attempt
at the same fork copies the same events: another replica, or the next attempt, continues where one stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn
from turnkeeper.event_loop import off_loop
from turnkeeper.faults import fault
from turnkeeper.store.changeset import Fork, RequestRecord, StoredEvent
from turnkeeper.store.contract import EventCodec
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.changesets import request_document
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.documents import SCHEMA, decode, encode
from turnkeeper.store.mongo.events import event_document, numbered
from turnkeeper.store.mongo.transactions.outcomes import Outcomes
from turnkeeper.store.mongo.transactions.transaction import LARGE, Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

BATCH: Final = 500
"""Events that one transaction copies, at most."""
BATCH_BYTES: Final = 8 << 20
"""Payload bytes that one transaction copies, at most, unless one event has more."""
UNFINISHED: Final[Document] = {"forking": {"$exists": True}, "purging": {"$ne": True}}


@dataclass(frozen=True, slots=True)
class _Answer:
    """Of a transaction: the fork, or None if a session has the id."""

    fork: Fork | None


class ForkWrites:
    """Implements `ForkStore`."""

    _connection: Connection
    _transactions: Transactions
    _outcomes: Outcomes
    _codec: EventCodec

    async def reserve_fork(self, fork: Fork) -> Fork | None:
        reserved = replace(fork, copied=0)
        none_copied = {"last_seq": 0, "log_needs": fork.log_needs, "forking": encode(reserved)}
        head = heads.new(fork.session, changeset_id="") | none_copied

        def write(writes: Writes) -> None:
            writes.insert("heads", head)

        async def look(session: ClientSession, _: Obstacle) -> _Answer | None:
            head = await self._head(fork, session)
            return None if head is None else _Answer(_fork_of(head))

        with self._connection.transaction_call("reserve_fork"):
            return (await self._transactions.run(Transaction(write, result=_Answer(reserved), look=look))).fork

    async def copy_events(self, fork: Fork, events: Sequence[NewEvent]) -> Fork | None:
        batch = await off_loop(partial(self._batch, fork, events), large=len(events) - fork.copied > LARGE)
        key = keys.of_session(fork.session.key)
        match = {**keys.where(key), **UNFINISHED, "last_seq": fork.copied}
        copied = fork.copied + len(batch)
        end = heads.literal(heads.end(copied, fork.session.etag))

        def write(writes: Writes) -> None:
            writes.compute("heads", match, [{"$set": {"last_seq": copied, "end": end}}])
            for event in batch:
                document = event_document(
                    event,
                    key=fork.session.key,
                    changeset_id=fork.session.etag,
                    fence=0,
                    at=fork.session.create_time,
                )
                writes.insert("events", document)

        async def look(session: ClientSession, _: Obstacle) -> _Answer | None:
            head = await self._head(fork, session)
            now = _fork_of(head) if head else None
            return None if now is not None and now.copied == fork.copied else _Answer(now)

        with self._connection.transaction_call("copy_events"):
            result = _Answer(replace(fork, copied=copied))
            transaction = Transaction(write, result=result, look=look, documents=len(batch))
            return (await self._transactions.run(transaction)).fork

    async def finish_fork(
        self, fork: Fork, session: Session, *, turns: Sequence[Turn], calls: Sequence[Call], request: RequestRecord
    ) -> RequestRecord:
        key = keys.of_session(session.key)
        match = {**keys.where(key), **UNFINISHED, "last_seq": fork.copied}

        def write(writes: Writes) -> None:
            writes.compute("heads", match, [{"$unset": "forking"}])
            writes.insert("sessions", {"_id": key, **encode(session), "schema": SCHEMA})
            writes.insert("turns", *(_member(turn) for turn in turns))
            writes.insert("tool_calls", *(_member(call) for call in calls))
            writes.insert("requests", request_document(request))

        async def look(reader: ClientSession, _: Obstacle) -> RequestRecord | None:
            return await self._outcomes.find_request(request.key, session=reader)

        fault("fork.before_commit")
        with self._connection.transaction_call("finish_fork"):
            transaction = Transaction(write, result=request, look=look, documents=len(turns) + len(calls))
            return await self._transactions.run(transaction)

    def _batch(self, fork: Fork, events: Sequence[NewEvent]) -> list[StoredEvent]:
        """Returns the next events to copy, as many as one transaction may hold."""
        batch: list[StoredEvent] = []
        room = BATCH_BYTES
        for place, event in enumerate(events[fork.copied : fork.copied + BATCH], fork.copied + 1):
            stored = numbered(self._codec, fork.session.id, event, place, changeset_id=fork.session.etag)
            room -= len(stored.payload)
            if batch and room < 0:
                break
            batch.append(stored)
        return batch

    async def _head(self, fork: Fork, session: ClientSession) -> Document | None:
        key = keys.of_session(fork.session.key)
        return await self._connection.heads.find_one(keys.where(key), session=session)


def _fork_of(head: Document) -> Fork | None:
    if "forking" not in head or head.get("purging"):
        return None
    return replace(decode(Fork, head["forking"]), copied=head["last_seq"])


def _member(member: Turn | Call) -> Document:
    key = keys.of_member(member.session_key, member.id)
    return {"_id": key, **encode(member), "schema": SCHEMA}
