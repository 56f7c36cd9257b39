"""What becomes of a session beside its turns: suspended, resumed, changed, deleted, undeleted. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from turnkeeper.domain.event import SessionResumed, SessionSuspended, SessionUpdated
from turnkeeper.domain.session import SessionState
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.engine.draft import Draft
from turnkeeper.engine.sessions import cancel_all
from turnkeeper.errors import EtagMismatch

DELETE_TIME = ("delete_time",)
"""What an update of a session names when it was deleted, or shown again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What UpdateSession changes; None leaves a field as it is."""

    title: str | None = None
    labels: Mapping[str, str] | None = None
    metadata_json: str | None = None


def suspend_in(draft: Draft, *, by: str) -> int:
    """No step starts from here on; the clocks of its approvals stand still. 0 when it is suspended already.

    Raises the errors of a session that is over.
    """
    if draft.session.state is SessionState.SUSPENDED:
        return 0
    first, now = draft.next_sequence, draft.snapshot.head.now
    draft.session = draft.session.suspended(etag=draft.new_id(), at=draft.at)
    for approval in draft.approvals:
        if (paused := approval.paused(now=now)) is not approval:
            draft.put_approval(paused)
    draft.say(SessionSuspended(principal=by))
    draft.change_head(suspended=True)
    return first


def resume_in(draft: Draft, *, by: str) -> int:
    """Its turn may go on, and its approvals' clocks. 0 when it is not suspended; raises when it is over."""
    if draft.session.state is not SessionState.SUSPENDED:
        draft.session.check_takes_messages()
        return 0
    first, head = draft.next_sequence, draft.snapshot.head
    draft.session = draft.session.resumed(etag=draft.new_id(), at=draft.at)
    for approval in draft.approvals:
        if (unpaused := approval.unpaused(now=head.now)) is not approval:
            draft.put_approval(unpaused)
    draft.say(SessionResumed(principal=by))
    draft.change_head(suspended=False)
    if draft.snapshot.turn is not None and draft.turn.state in _GOES_ON and not head.owned:
        draft.change_head(wake=timedelta())
    return first


def delete_in(draft: Draft, queued: Mapping[str, Turn], *, by: str, etag: str) -> int:
    """Hide the session; its turns are cancelled, and whoever owned one is fenced. 0 when it is deleted already.

    Raises EtagMismatch.
    """
    if draft.snapshot.head.deleted:
        return 0
    _check_etag(draft, etag)
    first = draft.next_sequence
    cancel_all(draft, queued, by=by)
    draft.session = draft.session.deleted(etag=draft.new_id(), at=draft.at)
    draft.say(SessionUpdated(fields=DELETE_TIME))
    draft.change_head(deleted=True)
    return first


def undelete_in(draft: Draft) -> int:
    """Show it again. 0 when it is not deleted."""
    if not draft.snapshot.head.deleted:
        return 0
    first = draft.next_sequence
    draft.session = draft.session.undeleted(etag=draft.new_id(), at=draft.at)
    draft.say(SessionUpdated(fields=DELETE_TIME))
    draft.change_head(deleted=False)
    return first


def update_in(draft: Draft, change: Change, *, etag: str) -> int:
    """Store what differs. 0 when nothing does, also with an older etag: it may be a repeat. Raises EtagMismatch."""
    session, first = draft.session, draft.next_sequence
    wanted = {
        name: value
        for name in ("title", "labels", "metadata_json")
        if (value := getattr(change, name)) is not None and value != getattr(session, name)
    }
    if not wanted:
        return 0
    _check_etag(draft, etag)
    draft.session = replace(session, **wanted, etag=draft.new_id(), update_time=draft.at)
    draft.say(SessionUpdated(fields=tuple(name.removesuffix("_json") for name in wanted)))
    return first


_GOES_ON = frozenset({TurnState.PENDING, TurnState.RUNNING})
"""A turn in another state waits for a person, or for a wake-up that it has."""


def _check_etag(draft: Draft, etag: str) -> None:
    if etag and etag != draft.session.etag:
        raise EtagMismatch(session_id=draft.session.id, metadata={"etag": draft.session.etag})
