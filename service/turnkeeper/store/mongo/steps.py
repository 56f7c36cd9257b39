"""What is stored whole or not at all: a step, and a new session."""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from pymongo.errors import DuplicateKeyError

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.event import NAMES, NewEvent
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn
from turnkeeper.store.contract import (
    ApprovalChange,
    Committed,
    EventCodec,
    RequestRecord,
    Stale,
    Step,
    StoredEvent,
    Verdict,
)
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.client import Connection, Document, database_errors
from turnkeeper.store.mongo.documents import SCHEMA, changes, decode, encode
from turnkeeper.store.mongo.outcomes import Outcomes
from turnkeeper.store.mongo.transactions import Obstacle, Transactions, Writes
from turnkeeper.store.mongo.transactions import Session as DriverSession

LARGEST_PAYLOAD: Final = (256 + 8) * 1024
"""A message's text of 256 KiB, and what is around it."""
KEPT: Final = timedelta(hours=72)
KEPT_WITH_SESSION: Final = frozenset({"message"})
"""Families whose records live as long as their session."""


@dataclass(frozen=True, slots=True)
class _Created:
    existing: Session | None


class Steps:
    """The writing half of the store."""

    _connection: Connection
    _transactions: Transactions
    _outcomes: Outcomes
    _codec: EventCodec

    async def commit(self, step: Step) -> Verdict:
        """Raises ValueError when an event is larger than 256 KiB, or a document belongs to another session."""
        _check_ownership(step)
        events = [
            self._stored(step.session_id, event, step.last_seq + place) for place, event in enumerate(step.events, 1)
        ]

        async def write(writes: Writes) -> Verdict:
            head = await writes.find_and_update(
                "heads", heads.unmoved(step), heads.moved(step), fields=("last_seq", "fence")
            )
            await _write_events(writes, step, events, fence=head["fence"])
            await _write_documents(writes, step)
            return Committed(last_seq=head["last_seq"], fence=head["fence"], events=tuple(events))

        async def look(session: DriverSession, obstacle: Obstacle) -> Verdict | None:
            found = await self._outcomes.of_step(step, session)
            return Stale() if found is None and obstacle is Obstacle.MISS else found

        with database_errors():
            return await self._transactions.run(write, look)

    async def create_session(self, session: Session, agent: Agent, *, event: NewEvent) -> Session | None:
        """Raises ValueError when the event is larger than 256 KiB."""
        step_id = secrets.token_hex(13)
        first = self._stored(session.id, event, 1)

        async def write(writes: Writes) -> _Created:
            key = keys.of_session(session.tenant, session.id)
            await writes.insert("heads", [heads.new(session)])
            await writes.insert(
                "events",
                [_event_document(first, of=(session.tenant, session.id), step_id=step_id, fence=0, at=event.at)],
            )
            await writes.insert("sessions", [{"_id": key, **encode(session), "schema": SCHEMA}])
            return _Created(existing=None)

        async def look(driver_session: DriverSession, _: Obstacle) -> _Created | None:
            return await self._found(session, step_id, driver_session)

        with database_errors():
            await self._keep(agent, tenant=session.tenant)
            return (await self._transactions.run(write, look)).existing

    async def _found(self, session: Session, step_id: str, driver_session: DriverSession) -> _Created | None:
        """The session that has this id now, unless it is the one that this very call made."""
        document = await self._connection.sessions.find_one(
            keys.where(keys.of_session(session.tenant, session.id)), session=driver_session
        )
        if document is None:
            return None
        first = await self._connection.events.find_one(
            {"tenant": session.tenant, "session_id": session.id, "seq": 1}, {"step_id": 1}, session=driver_session
        )
        ours = first is not None and first["step_id"] == step_id
        return _Created(existing=None if ours else decode(Session, document))

    async def _keep(self, agent: Agent, *, tenant: str) -> None:
        """Ahead of the session that pins it: the same version has the same content, so nothing can be overwritten."""
        key = keys.of_agent(tenant, agent.name, agent.version)
        if await self._connection.agents.find_one(keys.where(key), {"_id": 1}) is None:
            document = {"_id": key, **encode(agent), "tenant": tenant, "version": agent.version, "schema": SCHEMA}
            with suppress(DuplicateKeyError):
                await self._connection.agents.insert_one(document)

    def _stored(self, session_id: str, event: NewEvent, sequence: int) -> StoredEvent:
        payload = self._codec.number(self._codec.encode(session_id, event), sequence)
        if len(payload) > LARGEST_PAYLOAD:
            raise ValueError(f"an event of {len(payload)} bytes; {LARGEST_PAYLOAD} is the most")
        return StoredEvent(sequence=sequence, kind=NAMES[type(event.payload)], turn_id=event.turn_id, payload=payload)


_Member: TypeAlias = Turn | Call | Approval


def _check_ownership(step: Step) -> None:
    """A document of another session, or tenant, is a defect that must not reach the database (promise I13)."""
    here = (step.tenant, step.session_id)
    changed = tuple(each.approval for each in step.approvals)
    members: tuple[_Member, ...] = (
        *(*step.new_turns, *step.turns),
        *(*step.new_calls, *step.calls),
        *(*step.new_approvals, *changed),
    )
    owners = {(each.tenant, each.session_id) for each in members}
    if step.session is not None:
        owners.add((step.session.tenant, step.session.id))
    if step.request is not None:
        owners.add((step.request.key.tenant, step.request.key.session_id))
    if owners - {here}:
        raise ValueError("a step holds documents of another session")


async def _write_events(writes: Writes, step: Step, events: list[StoredEvent], *, fence: int) -> None:
    of = (step.tenant, step.session_id)
    await writes.insert(
        "events",
        [
            _event_document(stored, of=of, step_id=step.step_id, fence=fence, at=event.at)
            for stored, event in zip(events, step.events, strict=True)
        ],
    )


async def _write_documents(writes: Writes, step: Step) -> None:
    if step.session is not None:
        key = keys.of_session(step.tenant, step.session_id)
        await writes.update("sessions", [(keys.where(key), changes(step.session))])
    await writes.insert("turns", list(_new(step.new_turns)))
    await writes.update("turns", list(_changed(step.turns)))
    await writes.insert("tool_calls", list(_new(step.new_calls)))
    await writes.update("tool_calls", list(_changed(step.calls)))
    await writes.insert("approvals", list(_new(step.new_approvals)))
    await writes.update("approvals", [(_pending(each), changes(each.approval)) for each in step.approvals])
    if step.request is not None:
        await writes.insert("requests", [_request_document(step.request)])


def _event_document(stored: StoredEvent, *, of: tuple[str, str], step_id: str, fence: int, at: datetime) -> Document:
    tenant, session_id = of
    return {
        "tenant": tenant,
        "session_id": session_id,
        "seq": stored.sequence,
        "turn_id": stored.turn_id,
        "fence": fence,
        "step_id": step_id,
        "kind": stored.kind,
        "payload": stored.payload,
        "at": at,
        "schema": SCHEMA,
    }


def _key(member: _Member) -> Document:
    if isinstance(member, Approval):
        return keys.of_approval(member.tenant, member.id)
    return keys.of_member(member.tenant, member.session_id, member.id)


def _new(members: Iterable[_Member]) -> Iterator[Document]:
    for member in members:
        yield {"_id": _key(member), **encode(member), "schema": SCHEMA}


def _changed(members: Iterable[_Member]) -> Iterator[tuple[Document, Document]]:
    for member in members:
        yield keys.where(_key(member)), changes(member)


def _pending(change: ApprovalChange) -> Document:
    """An approval leaves PENDING once, in the round and for the arguments that were decided on (I6, I7, I14)."""
    approval = change.approval
    match: Document = {
        **keys.where(_key(approval)),
        "session_id": approval.session_id,
        "state": ApprovalState.PENDING.value,
        "round": approval.round,
        "arguments_hash": approval.arguments_hash,
    }
    if change.lapsed is not None:
        match["$expr"] = {"$lte" if change.lapsed else "$gt": ["$expire_time", heads.NOW]}
    return match


def _request_document(record: RequestRecord) -> Document:
    kept = {} if record.key.family in KEPT_WITH_SESSION else {"expire_at": datetime.now(UTC) + KEPT}
    content = encode(record)
    del content["key"]
    key = keys.of_request(record.key)
    return {"_id": key, **key, **content, **kept, "schema": SCHEMA}
