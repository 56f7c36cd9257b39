"""Decisions on a caller's request: a message accepted, the last turn retried, a turn without an owner cancelled."""

from dataclasses import dataclass
from datetime import timedelta

from turnkeeper.copies import replace
from turnkeeper.domain.audit import NO_ORIGIN, Origin
from turnkeeper.domain.event import MessageReceived, SessionActivated, TurnQueued, TurnRetried, TurnStarted
from turnkeeper.domain.message import Part, text_of
from turnkeeper.domain.session import SessionState
from turnkeeper.domain.tool import CallState
from turnkeeper.domain.turn import CancelReason, Turn, TurnOptions, TurnState
from turnkeeper.engine.rules.audit import WITHDRAW_APPROVAL, Operation, record_approval, record_operation
from turnkeeper.engine.rules.sessions import created_event
from turnkeeper.engine.rules.synthetic_results import superseded_result
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import QuotaExceeded, SessionNotFound, ToolOutcomeUnknown, TurnInProgress, TurnNotRetryable
from turnkeeper.store.changeset import Cancel, Head, LeaseChange, RequestKey, RequestRecord

QUEUE_LIMIT = 64
"""The most messages that may wait in a session's queue."""
_RETRYABLE = frozenset({TurnState.FAILED, TurnState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A user's message."""

    key: RequestKey
    fingerprint: str
    """A hash of the request's content. A request with the same id and another fingerprint is refused."""
    content: tuple[Part, ...]
    if_busy: str
    """What to do while a turn is active: REJECT the message, ENQUEUE it, INTERRUPT the turn, or WITHDRAW_PENDING: end
    it if it waits for nothing but approvals."""
    options: TurnOptions
    origin: Origin = NO_ORIGIN
    """Who is on record for the approvals that the message withdraws."""
    trace: str = ""
    """The sender's span as a W3C `traceparent`; the turn's spans continue it. Empty: the message is not traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRequest:
    """A caller's request to run a turn again."""

    key: RequestKey
    fingerprint: str
    """A hash of the request's content. A request with the same id and another fingerprint is refused."""
    turn_id: str
    through: str = ""
    """The delegate that asks on behalf of the principal; empty without one."""
    operation: Operation | None = None
    """What goes on record with the retry; None if the session's owner asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOffer:
    """A replica that has room for a turn: it takes the lease in the changeset that makes the turn active."""

    owner: str
    """The replica's name."""
    lease: timedelta
    """How long the lease lasts unless it is renewed."""
    schema: int
    """The newest schema that the replica supports."""


def accept(uow: UnitOfWork, message: NewMessage, *, offer: LeaseOffer | None) -> tuple[Turn, RequestRecord]:
    """Accepts a message: stores it, and a new turn that answers it.

    In an idle session the turn becomes active. The replica of `offer` owns it at once; without an offer, or if the
    session's log needs a newer schema, any replica may claim it. In a busy session `if_busy` decides: ENQUEUE puts the
    turn at the queue's end. INTERRUPT puts it in front and asks the active turn's owner to cancel; if that turn has no
    owner it is cancelled here, and the new one becomes active. WITHDRAW_PENDING ends a turn that waits for approvals
    alone, and the new one becomes active. The first message activates the session and titles it.

    Returns the turn, and the record from which the request's repeats are answered. Raises SessionNotFound if another
    principal owns the session, TurnInProgress if it is busy and `if_busy` is REJECT, or is WITHDRAW_PENDING and the
    active turn does not wait for approvals alone. Raises QuotaExceeded if QUEUE_LIMIT turns are queued, and the errors
    of `Session.check_takes_messages`.
    """
    if uow.session.owner != message.key.principal:
        raise SessionNotFound(session_id=uow.session.id)
    uow.session.check_takes_messages()
    _check_room(uow, message)
    turn = _new_turn(uow, message)
    first = uow.next_sequence
    received = MessageReceived(
        message_id=turn.message_id, content=message.content, principal=turn.principal, through=message.origin.through
    )
    uow.append(received, turn=turn)
    _activate_session(uow, message)
    turn = _activate_or_queue(uow, turn, message, offer=_usable_offer(offer, uow.snapshot.head))
    uow.put_turn(turn, new=True)
    record = RequestRecord(key=message.key, fingerprint=message.fingerprint, turn_id=turn.id, sequence=first)
    uow.request = record
    return turn, record


def accept_first(uow: UnitOfWork, message: NewMessage, *, offer: LeaseOffer | None) -> tuple[Turn, RequestRecord]:
    """Accepts the message that creates its session. Begins the log; otherwise as `accept`."""
    uow.events.append(created_event(uow.session))
    return accept(uow, message, offer=offer)


def retry(
    uow: UnitOfWork, request: RetryRequest, *, last: Turn, offer: LeaseOffer | None
) -> tuple[Turn, RequestRecord]:
    """Runs the snapshot's turn again, in place: it keeps its id and its events; its limits start anew.

    Only the session's last turn can be retried, and only after it has failed or was cancelled. After a restoration to
    a point inside a turn, only that turn can be retried. `last` is the session's newest turn. The replica of
    `offer` owns the turn at once, as in `accept`. The turn's usage so far is taken off the session's, which counts it
    when the turn ends.

    Returns the turn, and the record from which the request's repeats are answered. Raises TurnNotRetryable for another
    turn or in a busy session, ToolOutcomeUnknown while the outcome of one of the turn's calls is open, and the errors
    of `Session.check_takes_messages`.
    """
    uow.session.check_takes_messages()
    _check_retryable(uow, last=last)
    offer = _usable_offer(offer, uow.snapshot.head)
    turn = uow.turn
    restored = replace(uow.session.restored, retried=True) if uow.session.restored else None
    uow.session = replace(uow.session, usage=uow.session.usage - turn.usage, restored=restored)
    is_first_start = offer is not None and turn.attempt == 0  # the turn was cancelled while it was queued
    turn = _reset(uow, turn).also_caused_by(request.key.principal, request.through)
    if offer is not None:
        turn = turn.next_attempt(next_message_id=turn.next_message_id, at=uow.at)
        _take_lease(uow, turn, offer)
    else:
        uow.change_head(active_turn=turn.id, wake=timedelta())
    record = RequestRecord(
        key=request.key, fingerprint=request.fingerprint, turn_id=turn.id, sequence=uow.next_sequence
    )
    retried = TurnRetried(principal=request.key.principal, message_id=turn.next_message_id, through=request.through)
    uow.append(retried, turn=turn)
    if is_first_start:
        uow.append(TurnStarted(message_id=turn.next_message_id), turn=turn)
    uow.put_turn(turn)
    uow.request = record
    record_operation(uow, request.operation, sequence=record.sequence, target=turn.id)
    return turn, record


def cancel_unowned(uow: UnitOfWork, *, by: str, operation: Operation | None = None) -> None:
    """Cancels the snapshot's turn if it is queued, or waits without an owner.

    Changes nothing of a turn that has ended, or that has an owner: the owner must cancel it. `by` is the principal.
    An `operation` goes on record with the cancellation.
    """
    head, turn = uow.snapshot.head, uow.turn
    if turn.state.ended or (head.active_turn == turn.id and head.owned):
        return
    uow.cancel_turn(turn, reason=CancelReason.REQUESTED, by=by)
    record_operation(uow, operation, sequence=uow.next_sequence - 1, target=turn.id)
    if head.active_turn == turn.id:
        uow.activate_next_turn()
        uow.change_head(lease=LeaseChange.BREAK)
    else:
        uow.add_usage(uow.turn)
        uow.change_head(queue=tuple(queued for queued in head.queue if queued != turn.id))


def _check_room(uow: UnitOfWork, message: NewMessage) -> None:
    head = uow.snapshot.head
    if head.active_turn and message.if_busy == "WITHDRAW_PENDING":
        _check_waits_for_approvals_alone(uow)
    if head.active_turn and message.if_busy == "REJECT":
        raise TurnInProgress(
            session_id=head.session_id, turn_id=head.active_turn, metadata={"turn_id": head.active_turn}
        )
    if len(head.queue) >= QUEUE_LIMIT:
        raise QuotaExceeded(
            f"{QUEUE_LIMIT} messages are queued in this session; send this one again after some of them are answered.",
            session_id=head.session_id,
            retry_after=timedelta(seconds=5),
        )


def _check_waits_for_approvals_alone(uow: UnitOfWork) -> None:
    """Raises TurnInProgress unless the active turn has no owner, and each of its open calls waits for a permission.

    A call that has started, that the client may have run, or whose outcome is unknown may have taken effect: only its
    result, or a person's answer, closes it. A call that was approved is let run.
    """
    head, turn = uow.snapshot.head, uow.turn
    open_calls = [call for call in uow.calls if call.state is not CallState.RETURNED]
    others = [call for call in open_calls if call.state is not CallState.AWAITING or call.started]
    if turn.state is TurnState.AWAITING_APPROVAL and not others and not head.owned:
        return
    metadata = {"turn_id": turn.id, "state": turn.state.value}
    raise TurnInProgress(
        "The session's turn does not wait for approvals alone, so none is withdrawn; wait for it, or cancel it.",
        session_id=head.session_id,
        turn_id=turn.id,
        metadata=metadata | ({"tool_call_id": others[0].id, "tool": others[0].tool} if others else {}),
    )


def _check_retryable(uow: UnitOfWork, *, last: Turn) -> None:
    head, turn = uow.snapshot.head, uow.turn
    retryable = uow.session.can_retry(turn.id, last=last.id, stopped=turn.state in _RETRYABLE)
    if (retryable or last.id == turn.id) and any(call.unsettled for call in uow.calls):
        raise ToolOutcomeUnknown(session_id=turn.session_id, turn_id=turn.id)
    if head.active_turn or head.queue or not retryable:
        raise TurnNotRetryable(
            session_id=turn.session_id, turn_id=turn.id, metadata={"state": turn.state.value, "last": last.id}
        )


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
        through=message.origin.through,
    ).also_caused_by(message.origin.through)


def _activate_session(uow: UnitOfWork, message: NewMessage) -> None:
    """Activates a session at its first message. Ends a restoration: its unfinished turn can no longer be retried."""
    if uow.session.restored is not None:
        uow.session = replace(uow.session, restored=None)
    if uow.session.state is SessionState.CREATED:
        text = text_of(message.content)
        uow.session = uow.session.activated(first_text=text, etag=uow.new_id(), at=uow.at)
        uow.append(SessionActivated(title=uow.session.title))


def _activate_or_queue(uow: UnitOfWork, turn: Turn, message: NewMessage, *, offer: LeaseOffer | None) -> Turn:
    """Makes the new turn active, or queues it. Returns the turn as changed."""
    head = uow.snapshot.head
    if not head.active_turn:
        return _activate(uow, turn, offer=offer)
    if message.if_busy == "INTERRUPT":
        return _interrupt(uow, turn, offer=offer)
    if message.if_busy == "WITHDRAW_PENDING":
        _withdraw_pending(uow, by=message.origin)
        return _take_over(uow, turn, reason=CancelReason.SUPERSEDED, offer=offer)
    uow.append(TurnQueued(position=len(head.queue) + 1), turn=turn)
    uow.change_head(queue=(*head.queue, turn.id))
    return turn


def _activate(uow: UnitOfWork, turn: Turn, *, offer: LeaseOffer | None) -> Turn:
    """Makes the turn the active one: owned by the replica of `offer`, or claimable at once."""
    if offer is None:
        uow.change_head(active_turn=turn.id, wake=timedelta())
        return turn
    turn = turn.next_attempt(next_message_id=turn.next_message_id, at=uow.at)
    uow.append(TurnStarted(message_id=turn.next_message_id), turn=turn)
    _take_lease(uow, turn, offer)
    return turn


def _interrupt(uow: UnitOfWork, turn: Turn, *, offer: LeaseOffer | None) -> Turn:
    """Asks the active turn's owner to cancel it, with `turn` next in the queue.

    Without an owner the active turn is cancelled here, and `turn` becomes the active one.
    """
    head = uow.snapshot.head
    if head.owned:
        uow.append(TurnQueued(position=1), turn=turn)
        request = Cancel(turn_id=head.active_turn, by=turn.principal, reason=CancelReason.INTERRUPTED.value)
        is_requested = head.cancel.turn_id == head.active_turn  # the first request counts
        uow.change_head(queue=(turn.id, *head.queue), cancel=head.cancel if is_requested else request)
        return turn
    return _take_over(uow, turn, reason=CancelReason.INTERRUPTED, offer=offer)


def _withdraw_pending(uow: UnitOfWork, *, by: Origin) -> None:
    """Withdraws the active turn's approvals, each on record, and closes their calls: the model reads why none ran."""
    for approval in uow.approvals:
        sequence = uow.next_sequence
        withdrawn = uow.withdraw(approval, turn=uow.turn)
        record_approval(uow, WITHDRAW_APPROVAL, withdrawn, origin=by, sequence=sequence)
    for call in uow.calls:
        if call.state is CallState.AWAITING:
            uow.close_call(call, superseded_result())


def _take_over(uow: UnitOfWork, turn: Turn, *, reason: CancelReason, offer: LeaseOffer | None) -> Turn:
    """Cancels the active turn, which has no owner, and makes `turn` the active one. Returns it as changed."""
    uow.cancel_turn(uow.turn, reason=reason, by=turn.principal)
    uow.add_usage(uow.turn)
    uow.change_head(cancel=Cancel())
    turn = _activate(uow, turn, offer=offer)
    if offer is None:
        uow.change_head(lease=LeaseChange.BREAK)
    return turn


def _reset(uow: UnitOfWork, turn: Turn) -> Turn:
    """Returns an ended turn as PENDING, without its result, and with its limits as at its start."""
    return replace(
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


def _usable_offer(offer: LeaseOffer | None, head: Head) -> LeaseOffer | None:
    """Returns the offer, or None if its replica is too old for this session's log."""
    return offer if offer is not None and head.log_needs <= offer.schema else None


def _take_lease(uow: UnitOfWork, turn: Turn, offer: LeaseOffer) -> None:
    uow.change_head(active_turn=turn.id, lease=LeaseChange.TAKE, owner=offer.owner, lease_for=offer.lease)
