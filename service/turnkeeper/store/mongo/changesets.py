"""Stores changesets: everything that one decision changes, in one transaction."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeAlias

from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn
from turnkeeper.event_loop import off_loop
from turnkeeper.store.changeset import (
    ApprovalChange,
    Changeset,
    CommitResult,
    Committed,
    Conflict,
    LeaseChange,
    RequestRecord,
    StoredEvent,
)
from turnkeeper.store.contract import EventCodec
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.agent_documents import AgentDocuments
from turnkeeper.store.mongo.approval_matches import deciders_of
from turnkeeper.store.mongo.audit_documents import audit_document
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.documents import SCHEMA, changes, encode
from turnkeeper.store.mongo.events import event_document, numbered
from turnkeeper.store.mongo.transactions.group_commit import Entry, GroupCommit
from turnkeeper.store.mongo.transactions.outcomes import Outcomes
from turnkeeper.store.mongo.transactions.transaction import LARGE, Transaction, Unsettled
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

REQUESTS_KEPT: Final = timedelta(hours=72)
"""Records of requests are found for this long; then the database removes them."""
KEPT_WITH_SESSION: Final = frozenset({"message"})
"""Families whose records are kept as long as their session."""


class Changesets:
    """Implements `EventLog.commit`."""

    _outcomes: Outcomes
    _group_commit: GroupCommit
    _agent_documents: AgentDocuments
    _connection: Connection
    _codec: EventCodec
    _replica: str
    _process: str
    _unsettled: dict[str, Unsettled[CommitResult]]

    async def commit(self, changeset: Changeset) -> CommitResult:
        """Commits as the contract specifies.

        Raises ValueError if an event is larger than LARGEST_PAYLOAD, or a document belongs to another session.
        """
        _check_ownership(changeset)
        events = await off_loop(partial(_numbered, self._codec, changeset), large=len(changeset.events) > LARGE)

        async def look(session: ClientSession, obstacle: Obstacle) -> CommitResult | None:
            result = await self._outcomes.of_changeset(changeset, session)
            return Conflict() if result is None and obstacle is Obstacle.MISS else result

        match = heads.unmoved(changeset)
        creates = changeset.creates is not None
        moved = heads.moved(changeset, replica=self._replica, process=self._process)
        entry = Entry[CommitResult](
            head=keys.where(keys.of_session(changeset.session_key)) if creates else match,
            creates=creates,
            transaction=Transaction(
                partial(_write, changeset, match, moved, events),
                result=Committed(last_seq=changeset.last_seq + len(events), fence=changeset.next_fence, events=events),
                look=look,
                has_fault_points=True,
                documents=len(changeset.events),
            ),
            size=sum(len(event.payload) for event in events),
            alone=changeset.leased,
            wanted_until=changeset.wanted_until,
        )
        with self._connection.transaction_call("commit"):
            if changeset.creates is not None:
                await self._agent_documents.store(changeset.creates.agent, tenant=changeset.tenant)
            try:
                return await self._group_commit.commit(entry)
            finally:
                if entry.unsettled is not None and changeset.head.lease is LeaseChange.TAKE:
                    self._unsettled[changeset.changeset_id] = entry.unsettled  # until `outcome` is called

    async def outcome(self, changeset: Changeset) -> CommitResult | None:
        unsettled = self._unsettled.pop(changeset.changeset_id, None)
        return None if unsettled is None else await unsettled.outcome


def _numbered(codec: EventCodec, changeset: Changeset) -> tuple[StoredEvent, ...]:
    return tuple(
        numbered(codec, changeset.session_id, event, changeset.last_seq + place, changeset_id=changeset.changeset_id)
        for place, event in enumerate(changeset.events, 1)
    )


def _write(
    changeset: Changeset, match: Document, moved: Sequence[Document], events: Sequence[StoredEvent], writes: Writes
) -> None:
    if changeset.creates is not None:
        writes.insert("heads", heads.new(changeset.creates.session, changeset_id="") | {"last_seq": 0})
    writes.compute("heads", match, moved)
    _write_events(writes, changeset, events, fence=changeset.next_fence)
    _write_documents(writes, changeset)


_Member: TypeAlias = Turn | Call | Approval


def _check_ownership(changeset: Changeset) -> None:
    """Raises ValueError for a document of another session or tenant: a defect that must not be stored (promise I13)."""
    changed = tuple(change.approval for change in changeset.approvals)
    members: tuple[_Member, ...] = (
        *(*changeset.new_turns, *changeset.turns),
        *(*changeset.new_calls, *changeset.calls),
        *(*changeset.new_approvals, *changed),
    )
    sessions = {member.session_key for member in members}
    if changeset.session is not None:
        sessions.add(changeset.session.key)
    if changeset.creates is not None:
        sessions.add(changeset.creates.session.key)
    if changeset.request is not None:
        sessions.add(changeset.request.key.session_key)
    sessions.update(SessionKey(record.tenant, record.session_id) for record in changeset.audit)
    if sessions - {changeset.session_key}:
        raise ValueError("a changeset holds documents of another session")


def _write_events(writes: Writes, changeset: Changeset, events: Sequence[StoredEvent], *, fence: int) -> None:
    key = changeset.session_key
    for stored, event in zip(events, changeset.events, strict=True):
        writes.insert(
            "events", event_document(stored, key=key, changeset_id=changeset.changeset_id, fence=fence, at=event.at)
        )


def _write_documents(writes: Writes, changeset: Changeset) -> None:
    if changeset.creates is not None:
        session = changeset.session or changeset.creates.session
        writes.insert("sessions", {"_id": keys.of_session(session.key), **encode(session), "schema": SCHEMA})
    elif changeset.session is not None:
        changed = changes(changeset.session, since=changeset.session_as_read)
        writes.update("sessions", keys.where(keys.of_session(changeset.session_key)), changed)
    writes.insert("turns", *_new(changeset.new_turns))
    for turn in changeset.turns:
        read = changeset.turn_as_read
        changed = changes(turn, since=read if read is not None and read.id == turn.id else None)
        writes.update("turns", keys.where(_key(turn)), changed)
    writes.insert("tool_calls", *_new(changeset.new_calls))
    for call in changeset.calls:
        writes.update("tool_calls", _as_read(call), changes(call))
    approvals = zip(_new(changeset.new_approvals), map(deciders_of, changeset.new_approvals), strict=True)
    writes.insert("approvals", *(document | deciders for document, deciders in approvals))
    for change in changeset.approvals:
        writes.update("approvals", _pending(change), changes(change.approval))
    if changeset.request is not None:
        writes.insert("requests", request_document(changeset.request))
    writes.insert("audit_records", *map(audit_document, changeset.audit))


def _key(member: _Member) -> Document:
    if isinstance(member, Approval):
        return keys.of_approval(member.tenant, member.id)
    return keys.of_member(member.session_key, member.id)


def _new(members: Iterable[_Member]) -> Iterator[Document]:
    for member in members:
        yield {"_id": _key(member), **encode(member), "schema": SCHEMA}


def _as_read(call: Call) -> Document:
    """Returns the filter for a call whose late result, if any, was part of the decision."""
    late = call.late_attempt or {"$in": [0, None]}
    return {**keys.where(_key(call)), "late_attempt": late}


def _pending(change: ApprovalChange) -> Document:
    """Returns the filter for an approval: it leaves PENDING once, in the round and with the arguments that were decided
    on (promises I6, I7, I14)."""
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
    """Returns the document to insert. It is kept for REQUESTS_KEPT, or as long as its session."""
    expiry = {} if record.key.family in KEPT_WITH_SESSION else {"expire_at": datetime.now(UTC) + REQUESTS_KEPT}
    content = encode(record)
    del content["key"]
    key = keys.of_request(record.key)
    return {"_id": key, **key, **content, **expiry, "schema": SCHEMA}
