"""What a caller's request decides on a draft: a message accepted, a turn taken up again or cancelled. No I/O."""

from dataclasses import dataclass, replace
from datetime import timedelta

from turnkeeper.domain.event import MessageReceived, SessionActivated, TurnQueued, TurnRetried, TurnStarted
from turnkeeper.domain.message import Part, text_of
from turnkeeper.domain.session import SessionState
from turnkeeper.domain.turn import CancelReason, Turn, TurnOptions, TurnState
from turnkeeper.engine.draft import Draft
from turnkeeper.errors import QuotaExceeded, ToolOutcomeUnknown, TurnInProgress, TurnNotRetryable
from turnkeeper.store.step import Cancel, Head, Lease, RequestKey, RequestRecord
from turnkeeper.telemetry.spans import Spans

QUEUE_LIMIT = 64
_RETRYABLE = frozenset({TurnState.FAILED, TurnState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A user's message. `if_busy` is REJECT, ENQUEUE or INTERRUPT."""

    key: RequestKey
    fingerprint: str
    content: tuple[Part, ...]
    if_busy: str
    options: TurnOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Taker:
    """A replica that has room and takes the turn's lease in the step that makes it active; it supports `schema`."""

    owner: str
    lease: timedelta
    schema: int


def accept(draft: Draft, message: NewMessage, *, taker: Taker | None) -> tuple[Turn, RequestRecord]:
    draft.session.check_takes_messages()
    head = draft.snapshot.head
    taker = _fit(taker, head)
    busy = bool(head.active_turn)
    if busy and message.if_busy == "REJECT":
        raise TurnInProgress(
            session_id=head.session_id, turn_id=head.active_turn, metadata={"turn_id": head.active_turn}
        )
    if len(head.queue) >= QUEUE_LIMIT:
        raise QuotaExceeded(
            f"{QUEUE_LIMIT} messages wait in this session already; send this one again when they are fewer.",
            session_id=head.session_id,
            retry_after=timedelta(seconds=5),
        )
    turn = _new_turn(draft, message)
    first = draft.next_sequence
    draft.say(MessageReceived(message_id=turn.message_id, content=message.content, principal=turn.principal), turn=turn)
    if draft.session.restored is not None:
        draft.session = replace(draft.session, restored=None)
    if draft.session.state is SessionState.CREATED:
        text = text_of(message.content)
        draft.session = draft.session.activated(first_text=text, etag=draft.new_id(), at=draft.at)
        draft.say(SessionActivated(title=draft.session.title))
    if not busy:
        turn = _begin(draft, turn, taker=taker)
    elif message.if_busy == "INTERRUPT":
        turn = _interrupt(draft, turn, taker=taker)
    else:
        draft.say(TurnQueued(position=len(head.queue) + 1), turn=turn)
        draft.change_head(queue=(*head.queue, turn.id))
    draft.put_turn(turn, new=True)
    record = RequestRecord(key=message.key, fingerprint=message.fingerprint, turn_id=turn.id, sequence=first)
    draft.request = record
    return turn, record


def take_up(
    draft: Draft, key: RequestKey, fingerprint: str, *, last: Turn, taker: Taker | None
) -> tuple[Turn, RequestRecord]:
    draft.session.check_takes_messages()
    head, turn = draft.snapshot.head, draft.turn
    taker = _fit(taker, head)
    may = draft.session.can_retry(turn.id, last=last.id, stopped=turn.state in _RETRYABLE)
    if (may or last.id == turn.id) and any(call.unsettled for call in draft.calls):
        raise ToolOutcomeUnknown(session_id=turn.session_id, turn_id=turn.id)
    if head.active_turn or head.queue or not may:
        raise TurnNotRetryable(
            session_id=turn.session_id, turn_id=turn.id, metadata={"state": turn.state.value, "last": last.id}
        )
    restored = replace(draft.session.restored, retried=True) if draft.session.restored else None
    draft.session = replace(draft.session, usage=draft.session.usage - turn.usage, restored=restored)
    turn = replace(
        turn,
        state=TurnState.PENDING,
        error=None,
        end_time=None,
        answer=(),
        stop_reason=None,
        finish_reason=None,
        iterations=0,
        tries=0,
        lapses=0,
        next_message_id=draft.new_id(),
        update_time=draft.at,
    )
    begins = taker is not None and turn.attempt == 0  # it was cancelled while it was queued
    if taker is not None:
        turn = turn.taken_up(next_message_id=turn.next_message_id, at=draft.at)
        _take(draft, turn, taker)
    else:
        draft.change_head(active_turn=turn.id, wake=timedelta())
    record = RequestRecord(key=key, fingerprint=fingerprint, turn_id=turn.id, sequence=draft.next_sequence)
    draft.say(TurnRetried(principal=key.principal, message_id=turn.next_message_id), turn=turn)
    if begins:
        draft.say(TurnStarted(message_id=turn.next_message_id), turn=turn)
    draft.put_turn(turn)
    draft.request = record
    return turn, record


def cancel_unowned(draft: Draft, *, by: str) -> None:
    """End a turn that nobody runs; change nothing of one that somebody runs, or that has ended."""
    head, turn = draft.snapshot.head, draft.turn
    if turn.state.ended or (head.active_turn == turn.id and head.owned):
        return
    draft.cancel_turn(turn, reason=CancelReason.REQUESTED, by=by)
    if head.active_turn == turn.id:
        draft.go_on_with_queue()
        draft.change_head(lease=Lease.BREAK)
    else:
        draft.add_usage(draft.turn)
        draft.change_head(queue=tuple(queued for queued in head.queue if queued != turn.id))


def _new_turn(draft: Draft, message: NewMessage) -> Turn:
    return Turn(
        id=draft.new_id(),
        tenant=message.key.tenant,
        session_id=message.key.session_id,
        principal=message.key.principal,
        agent=draft.session.agent,
        agent_version=draft.session.agent_version,
        state=TurnState.PENDING,
        message_id=draft.new_id(),
        next_message_id=draft.new_id(),
        options=message.options,
        first_sequence=draft.next_sequence,
        create_time=draft.at,
        update_time=draft.at,
        trace=Spans.traceparent(),
    )


def _begin(draft: Draft, turn: Turn, *, taker: Taker | None) -> Turn:
    """It becomes the active turn: this replica takes it when it has room, or any may claim it."""
    if taker is None:
        draft.change_head(active_turn=turn.id, wake=timedelta())
        return turn
    turn = turn.taken_up(next_message_id=turn.next_message_id, at=draft.at)
    draft.say(TurnStarted(message_id=turn.next_message_id), turn=turn)
    _take(draft, turn, taker)
    return turn


def _fit(taker: Taker | None, head: Head) -> Taker | None:
    """None for a replica that is too old for this session's log."""
    return taker if taker is not None and head.log_needs <= taker.schema else None


def _take(draft: Draft, turn: Turn, taker: Taker) -> None:
    draft.change_head(active_turn=turn.id, lease=Lease.TAKE, owner=taker.owner, lease_for=taker.lease)


def _interrupt(draft: Draft, turn: Turn, *, taker: Taker | None) -> Turn:
    """Cancel the active turn, then go on with this one. A live owner does it; otherwise it is done here."""
    head = draft.snapshot.head
    if head.owned:
        draft.say(TurnQueued(position=1), turn=turn)
        wish = Cancel(turn_id=head.active_turn, by=turn.principal, reason=CancelReason.INTERRUPTED.value)
        draft.change_head(queue=(turn.id, *head.queue), cancel=wish)
        return turn
    draft.cancel_turn(draft.turn, reason=CancelReason.INTERRUPTED, by=turn.principal)
    draft.add_usage(draft.turn)
    draft.change_head(cancel=Cancel())
    begun = _begin(draft, turn, taker=taker)
    if taker is None:
        draft.change_head(lease=Lease.BREAK)
    return begun
