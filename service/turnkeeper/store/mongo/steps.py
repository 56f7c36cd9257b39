"""A step: everything that one decision changes, stored whole or not at all."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn
from turnkeeper.faults import fault
from turnkeeper.store.codec import EventCodec
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.client import ClientSession, Document, database_errors
from turnkeeper.store.mongo.documents import SCHEMA, changes, encode
from turnkeeper.store.mongo.events import event_document, numbered
from turnkeeper.store.mongo.outcomes import Outcomes
from turnkeeper.store.mongo.transactions import Transactions
from turnkeeper.store.mongo.writes import Obstacle, Writes
from turnkeeper.store.step import ApprovalChange, Committed, RequestRecord, Stale, Step, StoredEvent, Verdict

KEPT: Final = timedelta(hours=72)
KEPT_WITH_SESSION: Final = frozenset({"message"})
"""Families whose records live as long as their session."""


class Steps:
    """The one verb that changes a session."""

    _transactions: Transactions
    _outcomes: Outcomes
    _codec: EventCodec
    _replica: str

    async def commit(self, step: Step) -> Verdict:
        """Raises ValueError when an event is larger than 256 KiB, or a document belongs to another session."""
        _check_ownership(step)
        events = [
            numbered(self._codec, step.session_id, event, step.last_seq + place)
            for place, event in enumerate(step.events, 1)
        ]

        async def write(writes: Writes) -> Verdict:
            fault("step.before_first_write")
            head = await writes.find_and_update(
                "heads", heads.unmoved(step), heads.moved(step, replica=self._replica), fields=("last_seq", "fence")
            )
            fault("step.after_first_write")
            await _write_events(writes, step, events, fence=head["fence"])
            await _write_documents(writes, step)
            fault("step.before_commit")
            return Committed(last_seq=head["last_seq"], fence=head["fence"], events=tuple(events))

        async def look(session: ClientSession, obstacle: Obstacle) -> Verdict | None:
            found = await self._outcomes.of_step(step, session)
            return Stale() if found is None and obstacle is Obstacle.MISS else found

        with database_errors():
            verdict = await self._transactions.run(write, look)
        fault("step.after_commit")
        return verdict


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
            event_document(stored, of=of, step_id=step.step_id, fence=fence, at=event.at)
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
    await writes.update("tool_calls", [(_as_read(call), changes(call)) for call in step.calls])
    await writes.insert("approvals", list(_new(step.new_approvals)))
    await writes.update("approvals", [(_pending(each), changes(each.approval)) for each in step.approvals])
    if step.request is not None:
        await writes.insert("requests", [request_document(step.request)])


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
