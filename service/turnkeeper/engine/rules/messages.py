"""What a caller's request decides on a draft: a message accepted, a turn taken up again or cancelled. No I/O."""

from dataclasses import dataclass, replace
from datetime import timedelta

from turnkeeper.domain.event import MessageReceived, SessionActivated, TurnQueued, TurnRetried, TurnStarted
from turnkeeper.domain.message import Part, text_of
from turnkeeper.domain.session import SessionState
from turnkeeper.domain.turn import CancelReason, Turn, TurnOptions, TurnState
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import QuotaExceeded, ToolOutcomeUnknown, TurnInProgress, TurnNotRetryable
from turnkeeper.store.changeset import Cancel, Head, LeaseChange, RequestKey, RequestRecord

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
    trace: str = ""
    """The sender's span as a W3C `traceparent`; the turn's spans continue it. Empty: the message is not traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOffer:
    """A replica that has room and takes the turn's lease in the step that makes it active; it supports `schema`."""

    owner: str
    lease: timedelta
    schema: int


def accept(uow: UnitOfWork, message: NewMessage, *, offer: LeaseOffer | None) -> tuple[Turn, RequestRecord]:
    uow.session.check_takes_messages()
    head = uow.snapshot.head
    offer = _usable(offer, head)
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
    turn = _new_turn(uow, message)
    first = uow.next_sequence
    uow.append(
        MessageReceived(message_id=turn.message_id, content=message.content, principal=turn.principal), turn=turn
    )
    if uow.session.restored is not None:
        uow.session = replace(uow.session, restored=None)
    if uow.session.state is SessionState.CREATED:
        text = text_of(message.content)
        uow.session = uow.session.activated(first_text=text, etag=uow.new_id(), at=uow.at)
        uow.append(SessionActivated(title=uow.session.title))
    if not busy:
        turn = _begin(uow, turn, offer=offer)
    elif message.if_busy == "INTERRUPT":
        turn = _interrupt(uow, turn, offer=offer)
    else:
        uow.append(TurnQueued(position=len(head.queue) + 1), turn=turn)
        uow.change_head(queue=(*head.queue, turn.id))
    uow.put_turn(turn, new=True)
    record = RequestRecord(key=message.key, fingerprint=message.fingerprint, turn_id=turn.id, sequence=first)
    uow.request = record
    return turn, record


def retry(
    uow: UnitOfWork, key: RequestKey, fingerprint: str, *, last: Turn, offer: LeaseOffer | None
) -> tuple[Turn, RequestRecord]:
    uow.session.check_takes_messages()
    head, turn = uow.snapshot.head, uow.turn
    offer = _usable(offer, head)
    may = uow.session.can_retry(turn.id, last=last.id, stopped=turn.state in _RETRYABLE)
    if (may or last.id == turn.id) and any(call.unsettled for call in uow.calls):
        raise ToolOutcomeUnknown(session_id=turn.session_id, turn_id=turn.id)
    if head.active_turn or head.queue or not may:
        raise TurnNotRetryable(
            session_id=turn.session_id, turn_id=turn.id, metadata={"state": turn.state.value, "last": last.id}
        )
    restored = replace(uow.session.restored, retried=True) if uow.session.restored else None
    uow.session = replace(uow.session, usage=uow.session.usage - turn.usage, restored=restored)
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
        next_message_id=uow.new_id(),
        update_time=uow.at,
    )
    begins = offer is not None and turn.attempt == 0  # it was cancelled while it was queued
    if offer is not None:
        turn = turn.taken_up(next_message_id=turn.next_message_id, at=uow.at)
        _take_lease(uow, turn, offer)
    else:
        uow.change_head(active_turn=turn.id, wake=timedelta())
    record = RequestRecord(key=key, fingerprint=fingerprint, turn_id=turn.id, sequence=uow.next_sequence)
    uow.append(TurnRetried(principal=key.principal, message_id=turn.next_message_id), turn=turn)
    if begins:
        uow.append(TurnStarted(message_id=turn.next_message_id), turn=turn)
    uow.put_turn(turn)
    uow.request = record
    return turn, record


def cancel_unowned(uow: UnitOfWork, *, by: str) -> None:
    """End a turn that nobody runs; change nothing of one that somebody runs, or that has ended."""
    head, turn = uow.snapshot.head, uow.turn
    if turn.state.ended or (head.active_turn == turn.id and head.owned):
        return
    uow.cancel_turn(turn, reason=CancelReason.REQUESTED, by=by)
    if head.active_turn == turn.id:
        uow.activate_next_turn()
        uow.change_head(lease=LeaseChange.BREAK)
    else:
        uow.add_usage(uow.turn)
        uow.change_head(queue=tuple(queued for queued in head.queue if queued != turn.id))


def _new_turn(uow: UnitOfWork, message: NewMessage) -> Turn:
    return Turn(
        id=uow.new_id(),
        tenant=message.key.tenant,
        session_id=message.key.session_id,
        principal=message.key.principal,
        agent=uow.session.agent,
        agent_version=uow.session.agent_version,
        state=TurnState.PENDING,
        message_id=uow.new_id(),
        next_message_id=uow.new_id(),
        options=message.options,
        first_sequence=uow.next_sequence,
        create_time=uow.at,
        update_time=uow.at,
        trace=message.trace,
    )


def _begin(uow: UnitOfWork, turn: Turn, *, offer: LeaseOffer | None) -> Turn:
    """It becomes the active turn: this replica takes it when it has room, or any may claim it."""
    if offer is None:
        uow.change_head(active_turn=turn.id, wake=timedelta())
        return turn
    turn = turn.taken_up(next_message_id=turn.next_message_id, at=uow.at)
    uow.append(TurnStarted(message_id=turn.next_message_id), turn=turn)
    _take_lease(uow, turn, offer)
    return turn


def _usable(offer: LeaseOffer | None, head: Head) -> LeaseOffer | None:
    """None for a replica that is too old for this session's log."""
    return offer if offer is not None and head.log_needs <= offer.schema else None


def _take_lease(uow: UnitOfWork, turn: Turn, offer: LeaseOffer) -> None:
    uow.change_head(active_turn=turn.id, lease=LeaseChange.TAKE, owner=offer.owner, lease_for=offer.lease)


def _interrupt(uow: UnitOfWork, turn: Turn, *, offer: LeaseOffer | None) -> Turn:
    """Cancel the active turn, then go on with this one. A live owner does it; otherwise it is done here."""
    head = uow.snapshot.head
    if head.owned:
        uow.append(TurnQueued(position=1), turn=turn)
        wish = Cancel(turn_id=head.active_turn, by=turn.principal, reason=CancelReason.INTERRUPTED.value)
        uow.change_head(queue=(turn.id, *head.queue), cancel=wish)
        return turn
    uow.cancel_turn(uow.turn, reason=CancelReason.INTERRUPTED, by=turn.principal)
    uow.add_usage(uow.turn)
    uow.change_head(cancel=Cancel())
    begun = _begin(uow, turn, offer=offer)
    if offer is None:
        uow.change_head(lease=LeaseChange.BREAK)
    return begun
