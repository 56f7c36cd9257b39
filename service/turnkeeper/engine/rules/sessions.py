"""What becomes of a session beside its turns: suspended, resumed, changed, deleted, undeleted. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from turnkeeper.domain.event import (
    SessionEnded,
    SessionResumed,
    SessionSuspended,
    SessionUpdated,
)
from turnkeeper.domain.session import SessionState
from turnkeeper.domain.turn import CancelReason, Turn, TurnState
from turnkeeper.engine.rules.decide_again import DecideAgain
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import EtagMismatch
from turnkeeper.store.changeset import Cancel, LeaseChange

DELETE_TIME = ("delete_time",)
"""What an update of a session names when it was deleted, or shown again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What UpdateSession changes; None leaves a field as it is."""

    title: str | None = None
    labels: Mapping[str, str] | None = None
    metadata_json: str | None = None


def suspend(uow: UnitOfWork, *, by: str) -> int:
    """No step starts from here on; the clocks of its approvals stand still. 0 when it is suspended already.

    Raises the errors of a session that is over.
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
    """Its turn may go on, and its approvals' clocks. 0 when it is not suspended; raises when it is over."""
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
    if uow.snapshot.turn is not None and uow.turn.state in _GOES_ON and not head.owned:
        uow.change_head(wake=timedelta())
    return first


def delete(uow: UnitOfWork, queued: Mapping[str, Turn], *, by: str, etag: str) -> int:
    """Hide the session; its turns are cancelled, and whoever owned one is fenced. 0 when it is deleted already.

    Raises EtagMismatch.
    """
    if uow.snapshot.head.deleted:
        return 0
    _check_etag(uow, etag)
    first = uow.next_sequence
    cancel_all(uow, queued, by=by)
    uow.session = uow.session.deleted(etag=uow.new_id(), at=uow.at)
    uow.append(SessionUpdated(fields=DELETE_TIME))
    uow.change_head(deleted=True)
    return first


def undelete(uow: UnitOfWork) -> int:
    """Show it again. 0 when it is not deleted."""
    if not uow.snapshot.head.deleted:
        return 0
    first = uow.next_sequence
    uow.session = uow.session.undeleted(etag=uow.new_id(), at=uow.at)
    uow.append(SessionUpdated(fields=DELETE_TIME))
    uow.change_head(deleted=False)
    return first


def update(uow: UnitOfWork, change: Change, *, etag: str) -> int:
    """Store what differs. 0 when nothing does, also with an older etag: it may be a repeat. Raises EtagMismatch."""
    session, first = uow.session, uow.next_sequence
    wanted = {
        name: value
        for name in ("title", "labels", "metadata_json")
        if (value := getattr(change, name)) is not None and value != getattr(session, name)
    }
    if not wanted:
        return 0
    _check_etag(uow, etag)
    uow.session = replace(session, **wanted, etag=uow.new_id(), update_time=uow.at)
    uow.append(SessionUpdated(fields=tuple(name.removesuffix("_json") for name in wanted)))
    return first


_GOES_ON = frozenset({TurnState.PENDING, TurnState.RUNNING})
"""A turn in another state waits for a person, or for a wake-up that it has."""


def _check_etag(uow: UnitOfWork, etag: str) -> None:
    if etag and etag != uow.session.etag:
        raise EtagMismatch(session_id=uow.session.id, metadata={"etag": uow.session.etag})


def end(uow: UnitOfWork, queued: Mapping[str, Turn], *, by: str, reason: str) -> int:
    """End the session and all its turns; the first event's number, 0 when it had ended before."""
    if uow.session.state.over:
        return 0
    first = uow.next_sequence
    cancel_all(uow, queued, by=by)
    uow.session = uow.session.ended(etag=uow.new_id(), at=uow.at)
    uow.append(SessionEnded(principal=by, reason=reason))
    if uow.snapshot.head.suspended:
        uow.change_head(suspended=False)
    return first


def cancel_all(uow: UnitOfWork, queued: Mapping[str, Turn], *, by: str) -> None:
    """Cancels every turn of the session, and fences the owner of the active one.

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
