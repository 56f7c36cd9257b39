"""Decisions on a session as a whole: created, updated, suspended, resumed, restored, ended, deleted, undeleted.

The verbs return the number of the first event that they append, or 0 if they change nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from turnkeeper.domain.event import (
    NewEvent,
    SessionCreated,
    SessionEnded,
    SessionRestored,
    SessionResumed,
    SessionSuspended,
    SessionUpdated,
)
from turnkeeper.domain.session import Restored, Session, SessionState
from turnkeeper.domain.turn import CancelReason, Turn, TurnState
from turnkeeper.engine.rules.decide_again import DecideAgain
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import EtagMismatch, TurnInProgress
from turnkeeper.store.changeset import Cancel, LeaseChange, RequestKey, RequestRecord

DELETE_TIME = ("delete_time",)
"""The field that `session_updated` names when a session is deleted or undeleted."""
_CLAIMABLE = frozenset({TurnState.PENDING, TurnState.RUNNING})
"""The states of a turn that a resumed session makes claimable; in any other it waits for an answer or a wake-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionChange:
    """The fields that UpdateSession changes; None leaves a field as it is."""

    title: str | None = None
    labels: Mapping[str, str] | None = None
    metadata_json: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """A caller's request to restore a session, by its request id. Its repeats are answered from the stored record."""

    key: RequestKey
    fingerprint: str
    """A hash of the request's content. A request with the same id and another fingerprint is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePoint:
    """A position of the log to which a session is restored, with what was read from the log there."""

    sequence: int
    """The number of the last event before the position."""
    unfinished: str
    """The id of the turn that had not ended at the position, and may be retried; empty if there is none."""
    last_seq: int
    """The number of the log's last event when the position was read."""


def created_event(session: Session) -> NewEvent:
    """Returns the event that begins a session's log."""
    created = SessionCreated(
        agent=session.agent,
        agent_version=session.agent_version,
        owner=session.owner,
        title=session.title,
        labels=session.labels,
        metadata_json=session.metadata_json,
        created_through=session.created_through,
    )
    return NewEvent(payload=created, at=session.create_time)


def update(uow: UnitOfWork, change: SessionChange, *, etag: str) -> int:
    """Changes the session's fields that differ from the request's.

    Raises EtagMismatch if `etag` is not empty and not the session's. If nothing differs the etag is not compared: the
    request may repeat one that has changed the etag already.
    """
    session, first = uow.session, uow.next_sequence
    changed = {
        name: value
        for name in ("title", "labels", "metadata_json")
        if (value := getattr(change, name)) is not None and value != getattr(session, name)
    }
    if not changed:
        return 0
    _check_etag(uow, etag)
    uow.session = replace(session, **changed, etag=uow.new_id(), update_time=uow.at)
    uow.append(SessionUpdated(fields=tuple(name.removesuffix("_json") for name in changed)))
    return first


def suspend(uow: UnitOfWork, *, by: str) -> int:
    """Suspends the session: no replica may claim its turns, and the time to decide its approvals stands still.

    `by` is the principal. Raises SessionNotActive or SessionExpired for a session that is over.
    """
    if uow.session.state is SessionState.SUSPENDED:
        return 0
    first, now = uow.next_sequence, uow.snapshot.head.now
    uow.session = uow.session.suspended(etag=uow.new_id(), at=uow.at)
    for approval in uow.approvals:
        if (paused := approval.paused(now=now)) is not approval:
            uow.put_approval(paused)
    uow.append(SessionSuspended(principal=by))
    uow.change_head(suspended=True)
    return first


def resume(uow: UnitOfWork, *, by: str) -> int:
    """Resumes a suspended session: its turn is claimable again, and the time to decide its approvals continues.

    `by` is the principal. Raises SessionNotActive or SessionExpired for a session that is over.
    """
    if uow.session.state is not SessionState.SUSPENDED:
        uow.session.check_takes_messages()
        return 0
    first, head = uow.next_sequence, uow.snapshot.head
    uow.session = uow.session.resumed(etag=uow.new_id(), at=uow.at)
    for approval in uow.approvals:
        if (unpaused := approval.unpaused(now=head.now)) is not approval:
            uow.put_approval(unpaused)
    uow.append(SessionResumed(principal=by))
    uow.change_head(suspended=False)
    if uow.snapshot.turn is not None and uow.turn.state in _CLAIMABLE and not head.owned:
        uow.change_head(wake=timedelta())
    return first


def restore(uow: UnitOfWork, point: RestorePoint, request: RestoreRequest | None) -> int:
    """Restores the session to a position of its log, by one event: nothing is erased. Returns that event's number.

    Raises TurnInProgress if a turn is active or queued, DecideAgain if the log has grown since `point` was read, and
    the errors of `Session.check_takes_messages`.
    """
    uow.session.check_takes_messages()
    head = uow.snapshot.head
    if head.active_turn or head.queue:
        raise TurnInProgress(
            "A turn is running or queued in this session; wait for it, or cancel it, then restore.",
            session_id=head.session_id,
            turn_id=head.active_turn,
            metadata={"turn_id": head.active_turn},
        )
    if head.last_seq != point.last_seq:
        raise DecideAgain
    sequence = uow.next_sequence
    uow.append(SessionRestored(to_sequence=point.sequence))
    uow.session = replace(uow.session, restored=Restored(turn_id=point.unfinished), remembered=(), update_time=uow.at)
    if request is not None:
        uow.request = RequestRecord(key=request.key, fingerprint=request.fingerprint, turn_id="", sequence=sequence)
    return sequence


def end(uow: UnitOfWork, queued: Mapping[str, Turn], *, by: str, reason: str) -> int:
    """Ends the session and cancels all its turns. `by` is the principal, `reason` the caller's.

    `queued` are the turns of the queue, by id. Raises DecideAgain if a turn was queued after they were read.
    """
    if uow.session.state.over:
        return 0
    first = uow.next_sequence
    _cancel_all_turns(uow, queued, by=by)
    uow.session = uow.session.ended(etag=uow.new_id(), at=uow.at)
    uow.append(SessionEnded(principal=by, reason=reason))
    if uow.snapshot.head.suspended:
        uow.change_head(suspended=False)
    return first


def delete(uow: UnitOfWork, queued: Mapping[str, Turn], *, by: str, etag: str) -> int:
    """Hides the session and cancels all its turns. `by` is the principal.

    `queued` are the turns of the queue, by id. Raises DecideAgain if a turn was queued after they were read, and
    EtagMismatch if `etag` is not empty and not the session's.
    """
    if uow.snapshot.head.deleted:
        return 0
    _check_etag(uow, etag)
    first = uow.next_sequence
    _cancel_all_turns(uow, queued, by=by)
    uow.session = uow.session.deleted(etag=uow.new_id(), at=uow.at)
    uow.append(SessionUpdated(fields=DELETE_TIME))
    uow.change_head(deleted=True)
    return first


def undelete(uow: UnitOfWork) -> int:
    """Shows a deleted session again."""
    if not uow.snapshot.head.deleted:
        return 0
    first = uow.next_sequence
    uow.session = uow.session.undeleted(etag=uow.new_id(), at=uow.at)
    uow.append(SessionUpdated(fields=DELETE_TIME))
    uow.change_head(deleted=False)
    return first


def _check_etag(uow: UnitOfWork, etag: str) -> None:
    if etag and etag != uow.session.etag:
        raise EtagMismatch(session_id=uow.session.id, metadata={"etag": uow.session.etag})


def _cancel_all_turns(uow: UnitOfWork, queued: Mapping[str, Turn], *, by: str) -> None:
    """Cancels the active turn, whose owner is fenced from here on, and every queued one.

    Raises DecideAgain if a turn was queued after `queued` was read.
    """
    head = uow.snapshot.head
    if not set(head.queue) <= set(queued):
        raise DecideAgain
    if uow.snapshot.turn is not None:
        uow.cancel_turn(uow.turn, reason=CancelReason.SESSION_ENDED, by=by)
        uow.add_usage(uow.turn)
    for turn_id in head.queue:
        uow.cancel_turn(queued[turn_id], reason=CancelReason.SESSION_ENDED, by=by)
    uow.change_head(lease=LeaseChange.BREAK, active_turn="", queue=(), cancel=Cancel())
