"""A step: everything that one decision changes, stored whole or not at all."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeAlias

from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn
from turnkeeper.store.changeset import (
    ApprovalChange,
    Changeset,
    CommitResult,
    Committed,
    Conflict,
    RequestRecord,
    StoredEvent,
)
from turnkeeper.store.contract import EventCodec
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.client import ClientSession, Connection, Document, database_errors
from turnkeeper.store.mongo.documents import SCHEMA, changes, encode
from turnkeeper.store.mongo.events import event_document, numbered
from turnkeeper.store.mongo.transactions.group_commit import Committer, Entry
from turnkeeper.store.mongo.transactions.outcomes import Outcomes
from turnkeeper.store.mongo.transactions.transaction import Transaction
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

KEPT: Final = timedelta(hours=72)
KEPT_WITH_SESSION: Final = frozenset({"message"})
"""Families whose records live as long as their session."""


class Steps:
    """The one verb that changes a session."""

    _outcomes: Outcomes
    _committer: Committer
    _connection: Connection
    _codec: EventCodec
    _replica: str

    async def commit(self, step: Changeset) -> CommitResult:
        """Raises ValueError when an event is larger than 256 KiB, or a document belongs to another session."""
        _check_ownership(step)
        events = tuple(
            numbered(self._codec, step.session_id, event, step.last_seq + place)
            for place, event in enumerate(step.events, 1)
        )

        async def look(session: ClientSession, obstacle: Obstacle) -> CommitResult | None:
            found = await self._outcomes.of_step(step, session)
            return Conflict() if found is None and obstacle is Obstacle.MISS else found

        match = heads.unmoved(step)
        entry = Entry[CommitResult](
            head=match,
            transaction=Transaction(
                partial(_write, step, match, heads.moved(step, replica=self._replica), events),
                result=Committed(last_seq=step.last_seq + len(events), fence=step.next_fence, events=events),
                look=look,
                faulty=True,
            ),
            size=sum(len(event.payload) for event in events),
            alone=step.leased,
        )
        with database_errors():
            return await self._committer.commit(entry)


def _write(
    step: Changeset, match: Document, moved: Sequence[Document], events: Sequence[StoredEvent], writes: Writes
) -> None:
    writes.compute("heads", match, moved)
    _write_events(writes, step, events, fence=step.next_fence)
    _write_documents(writes, step)


_Member: TypeAlias = Turn | Call | Approval


def _check_ownership(step: Changeset) -> None:
    """A document of another session, or tenant, is a defect that must not reach the database (promise I13)."""
    here = step.session_key
    changed = tuple(each.approval for each in step.approvals)
    members: tuple[_Member, ...] = (
        *(*step.new_turns, *step.turns),
        *(*step.new_calls, *step.calls),
        *(*step.new_approvals, *changed),
    )
    owners = {each.session_key for each in members}
    if step.session is not None:
        owners.add(step.session.key)
    if step.request is not None:
        owners.add(step.request.key.session_key)
    if owners - {here}:
        raise ValueError("a step holds documents of another session")


def _write_events(writes: Writes, step: Changeset, events: Sequence[StoredEvent], *, fence: int) -> None:
    of = step.session_key
    for stored, event in zip(events, step.events, strict=True):
        writes.insert("events", event_document(stored, of=of, changeset_id=step.changeset_id, fence=fence, at=event.at))


def _write_documents(writes: Writes, step: Changeset) -> None:
    if step.session is not None:
        writes.update("sessions", keys.where(keys.of_session(step.session_key)), changes(step.session))
    writes.insert("turns", *_new(step.new_turns))
    for turn in step.turns:
        writes.update("turns", keys.where(_key(turn)), changes(turn))
    writes.insert("tool_calls", *_new(step.new_calls))
    for call in step.calls:
        writes.update("tool_calls", _as_read(call), changes(call))
    writes.insert("approvals", *_new(step.new_approvals))
    for change in step.approvals:
        writes.update("approvals", _pending(change), changes(change.approval))
    if step.request is not None:
        writes.insert("requests", request_document(step.request))


def _key(member: _Member) -> Document:
    if isinstance(member, Approval):
        return keys.of_approval(member.tenant, member.id)
    return keys.of_member(member.session_key, member.id)


def _new(members: Iterable[_Member]) -> Iterator[Document]:
    for member in members:
        yield {"_id": _key(member), **encode(member), "schema": SCHEMA}


def _as_read(call: Call) -> Document:
    """A late result that came since the call was read must be seen first: who decides on the call is shown it."""
    late = call.late_attempt or {"$in": [0, None]}
    return {**keys.where(_key(call)), "late_attempt": late}


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


def request_document(record: RequestRecord) -> Document:
    """Kept for KEPT, or as long as its session."""
    kept = {} if record.key.family in KEPT_WITH_SESSION else {"expire_at": datetime.now(UTC) + KEPT}
    content = encode(record)
    del content["key"]
    key = keys.of_request(record.key)
    return {"_id": key, **key, **content, **kept, "schema": SCHEMA}
