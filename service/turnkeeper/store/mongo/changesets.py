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
from turnkeeper.store.mongo.transactions.group_commit import Entry, GroupCommit
from turnkeeper.store.mongo.transactions.outcomes import Outcomes
from turnkeeper.store.mongo.transactions.transaction import Transaction
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

KEPT: Final = timedelta(hours=72)
KEPT_WITH_SESSION: Final = frozenset({"message"})
"""Families whose records live as long as their session."""


class Changesets:
    """The one verb that changes a session."""

    _outcomes: Outcomes
    _group_commit: GroupCommit
    _connection: Connection
    _codec: EventCodec
    _replica: str

    async def commit(self, changeset: Changeset) -> CommitResult:
        """Raises ValueError when an event is larger than 256 KiB, or a document belongs to another session."""
        _check_ownership(changeset)
        events = tuple(
            numbered(self._codec, changeset.session_id, event, changeset.last_seq + place)
            for place, event in enumerate(changeset.events, 1)
        )

        async def look(session: ClientSession, obstacle: Obstacle) -> CommitResult | None:
            found = await self._outcomes.of_changeset(changeset, session)
            return Conflict() if found is None and obstacle is Obstacle.MISS else found

        match = heads.unmoved(changeset)
        entry = Entry[CommitResult](
            head=match,
            transaction=Transaction(
                partial(_write, changeset, match, heads.moved(changeset, replica=self._replica), events),
                result=Committed(last_seq=changeset.last_seq + len(events), fence=changeset.next_fence, events=events),
                look=look,
                faulty=True,
            ),
            size=sum(len(event.payload) for event in events),
            alone=changeset.leased,
        )
        with database_errors():
            return await self._group_commit.commit(entry)


def _write(
    changeset: Changeset, match: Document, moved: Sequence[Document], events: Sequence[StoredEvent], writes: Writes
) -> None:
    writes.compute("heads", match, moved)
    _write_events(writes, changeset, events, fence=changeset.next_fence)
    _write_documents(writes, changeset)


_Member: TypeAlias = Turn | Call | Approval


def _check_ownership(changeset: Changeset) -> None:
    """A document of another session, or tenant, is a defect that must not reach the database (promise I13)."""
    here = changeset.session_key
    changed = tuple(each.approval for each in changeset.approvals)
    members: tuple[_Member, ...] = (
        *(*changeset.new_turns, *changeset.turns),
        *(*changeset.new_calls, *changeset.calls),
        *(*changeset.new_approvals, *changed),
    )
    owners = {each.session_key for each in members}
    if changeset.session is not None:
        owners.add(changeset.session.key)
    if changeset.request is not None:
        owners.add(changeset.request.key.session_key)
    if owners - {here}:
        raise ValueError("a step holds documents of another session")


def _write_events(writes: Writes, changeset: Changeset, events: Sequence[StoredEvent], *, fence: int) -> None:
    of = changeset.session_key
    for stored, event in zip(events, changeset.events, strict=True):
        writes.insert(
            "events", event_document(stored, of=of, changeset_id=changeset.changeset_id, fence=fence, at=event.at)
        )


def _write_documents(writes: Writes, changeset: Changeset) -> None:
    if changeset.session is not None:
        writes.update("sessions", keys.where(keys.of_session(changeset.session_key)), changes(changeset.session))
    writes.insert("turns", *_new(changeset.new_turns))
    for turn in changeset.turns:
        writes.update("turns", keys.where(_key(turn)), changes(turn))
    writes.insert("tool_calls", *_new(changeset.new_calls))
    for call in changeset.calls:
        writes.update("tool_calls", _as_read(call), changes(call))
    writes.insert("approvals", *_new(changeset.new_approvals))
    for change in changeset.approvals:
        writes.update("approvals", _pending(change), changes(change.approval))
    if changeset.request is not None:
        writes.insert("requests", request_document(changeset.request))


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
