"""Folds a session from its events alone.

It knows the rules of the log, and shares only the wire format with the service. What no rule allows is a finding.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from tests.checker.reconciled import tool_reconciled as _tool_reconciled  # noqa: F401 - one of RULES
from tests.checker.times import announce, extend
from tests.checker.values import BrokenLog, Folded, FoldedApproval, FoldedCall, FoldedTurn, usage_of
from tests.checker.votes import add_vote, check_decided
from turnkeeper.pb.v1 import event_pb2, message_pb2

Event = event_pb2.Event
ANSWERS: Mapping[str, Mapping[str, str]] = {
    "TOOL_CALL": {"APPROVE": "APPROVED", "REJECT": "REJECTED"},
    "OUTCOME": {"RETRY": "APPROVED", "MARK_DONE": "APPROVED", "GIVE_UP": "REJECTED"},
}
REMEMBERED, MOST_USES = 16, 10
"""How many decisions a session remembers at most, and how many calls each of them approves."""
HELD_DELAY = 2.0
"""Seconds; before a next try that is farther away the turn is let go of, and is BACKING_OFF."""
DONE_AS = (event_pb2.TOOL_OUTCOME_OK, event_pb2.TOOL_OUTCOME_FAILED)
"""How a call returns that was unknown and is marked as done: with a person's result, or with the tool's late one."""

STARTS = frozenset({"message_received", "turn_started", "tool_started", "turn_retried"})
"""What a suspended session does not do. (A model's message that was under way is completed.)"""


def fold(events: Iterable[Event]) -> Folded:
    """Folds a whole log. Raises BrokenLog."""
    folded = Folded()
    for event in events:
        if event.sequence != folded.last_seq + 1:
            raise BrokenLog(f"event {event.sequence} follows {folded.last_seq}")
        folded.last_seq = event.sequence
        kind = str(event.WhichOneof("payload"))
        if kind == "None" and event.ignorable:
            continue
        if kind != "session_updated" and (folded.deleted or folded.state == "ENDED"):
            raise BrokenLog(f"{kind} ({event.sequence}) after the session's end")
        if folded.state == "SUSPENDED" and kind in STARTS:
            raise BrokenLog(f"{kind} ({event.sequence}) while the session is suspended")
        if kind not in RULES:
            raise BrokenLog(f"{kind} ({event.sequence}): no rule knows it")
        RULES[kind](folded, event)
        folded.places.append(folded.standing)
    return folded


# --- the session -----------------------------------------------------------------------------------------------


def _session_created(folded: Folded, event: Event) -> None:
    created = event.session_created
    folded.state, folded.agent, folded.agent_version = "CREATED", created.agent, created.agent_version
    folded.owner, folded.title, folded.labels = created.owner, created.title, dict(created.labels)


def _session_activated(folded: Folded, event: Event) -> None:
    if folded.state != "CREATED":
        raise BrokenLog(f"activated when {folded.state}")
    folded.state, folded.title = "ACTIVE", event.session_activated.title or folded.title


def _session_suspended(folded: Folded, event: Event) -> None:
    if folded.state not in ("CREATED", "ACTIVE"):
        raise BrokenLog(f"suspended ({event.sequence}) when {folded.state}")
    folded.state, folded.resumes_as = "SUSPENDED", folded.state


def _session_resumed(folded: Folded, event: Event) -> None:
    if folded.state != "SUSPENDED":
        raise BrokenLog(f"resumed ({event.sequence}) when {folded.state}")
    folded.state = folded.resumes_as


def _session_updated(folded: Folded, event: Event) -> None:
    fields = set(event.session_updated.fields)
    if not fields or not fields <= {"title", "labels", "metadata", "delete_time"}:
        raise BrokenLog(f"an update ({event.sequence}) of {sorted(fields)}")
    folded.changed |= fields
    if "delete_time" in fields:
        folded.deleted, folded.remembered = not folded.deleted, {}
        if folded.active or folded.queue:
            raise BrokenLog("the session was deleted before its turns had ended")


def _session_ended(folded: Folded, event: Event) -> None:
    if folded.active or folded.queue:
        raise BrokenLog("the session ended before its turns")
    folded.state, folded.remembered = "ENDED", {}


def _session_forked(folded: Folded, event: Event) -> None:
    if event.sequence != 2:
        raise BrokenLog(f"session_forked is event {event.sequence}")
    folded.copied_through = event.session_forked.copied_through


def _session_restored(folded: Folded, event: Event) -> None:
    place = event.session_restored.to_sequence
    if folded.active or folded.queue or not 0 < place < event.sequence:
        raise BrokenLog(f"restored ({event.sequence}) to {place} while {folded.active or 'nothing'} was active")
    folded.standing, folded.remembered = folded.places[place - 1], {}
    back = folded.standing
    folded.restored = {"turn_id": "" if back.completed else back.turn_id, "retried": False}


# --- turns -----------------------------------------------------------------------------------------------------


def _message_received(folded: Folded, event: Event) -> None:
    message = event.message_received
    if event.turn_id in folded.turns:
        raise BrokenLog(f"a second message ({event.sequence}) of turn {event.turn_id}")
    folded.turns[event.turn_id] = FoldedTurn(
        first_sequence=event.sequence, message_id=message.message_id, principal=message.principal
    )
    folded.turns[event.turn_id].add_causers(message.through)
    folded.arrive(event.turn_id)


def _turn_queued(folded: Folded, event: Event) -> None:
    folded.turn_of(event)
    folded.enqueue(event.turn_id, event.turn_queued.position)


def _turn_started(folded: Folded, event: Event) -> None:
    turn = folded.turn_of(event)
    if turn.started or event.turn_id != folded.active:
        raise BrokenLog(f"turn {event.turn_id} started twice, or out of turn ({event.sequence})")
    turn.started = True
    folded.begin(event.turn_id)


def _message_completed(folded: Folded, event: Event) -> None:
    turn, message = _running(folded, event), event.message_completed
    if message.message_id in turn.message_ids:
        raise BrokenLog(f"message {message.message_id} was completed twice")
    turn.message_ids.add(message.message_id)
    if message.finish_reason == message_pb2.FINISH_REASON_INTERRUPTED:
        return
    turn.iterations += 1
    turn.answer = "" if message.tool_requests else "".join(part.text for part in message.content)
    turn.add_usage(usage_of(message.usage))


def _attempt_failed(folded: Folded, event: Event) -> None:
    turn, failed = _running(folded, event), event.attempt_failed
    delay = failed.retry_delay.ToTimedelta().total_seconds() if failed.HasField("retry_delay") else 0.0
    turn.backing_off = failed.outcome == event_pb2.ATTEMPT_OUTCOME_RETRYING and delay > HELD_DELAY


def _attempt_superseded(folded: Folded, event: Event) -> None:
    _running(folded, event)


def _turn_completed(folded: Folded, event: Event) -> None:
    turn = folded.end_turn(event, "COMPLETED", event.turn_completed.usage)
    folded.standing = replace(folded.standing, completed=True)
    turn.stop_reason = event_pb2.StopReason.Name(event.turn_completed.stop_reason).removeprefix("STOP_REASON_")
    if event.turn_completed.message_id not in turn.message_ids:
        raise BrokenLog(f"the answer of {event.turn_id} is not a message of its own")


def _turn_failed(folded: Folded, event: Event) -> None:
    folded.end_turn(event, "FAILED", event.turn_failed.usage).error_code = event.turn_failed.error.code


def _turn_cancelled(folded: Folded, event: Event) -> None:
    folded.end_turn(event, "CANCELLED", event.turn_cancelled.usage)


def _turn_retried(folded: Folded, event: Event) -> None:
    turn = folded.turns[event.turn_id]
    turn.add_causers(event.turn_retried.principal, event.turn_retried.through)
    last = max(folded.turns.values(), key=lambda other: other.first_sequence)
    stopped = turn.end in ("FAILED", "CANCELLED")
    if folded.restored is None:
        allowed = stopped and turn is last
    else:
        allowed = folded.restored["turn_id"] == event.turn_id and (stopped or not folded.restored["retried"])
        folded.restored["retried"] = True
    if not allowed or not turn.end or folded.active:
        raise BrokenLog(f"turn {event.turn_id} was retried when {turn.end or 'running'}")
    folded.standing = replace(folded.standing, completed=False)
    folded.take_back(turn)
    turn.end, turn.iterations, turn.error_code, turn.retried = "", 0, 0, True
    folded.active = event.turn_id


def _running(folded: Folded, event: Event) -> FoldedTurn:
    """Returns the event's turn. Raises BrokenLog unless it is the active one."""
    if event.turn_id != folded.active:
        raise BrokenLog(f"{event.WhichOneof('payload')} ({event.sequence}) of a turn that is not active")
    turn = folded.turn_of(event)
    turn.backing_off = turn.retried = False
    return turn


# --- tools and approvals ---------------------------------------------------------------------------------------


def _tool_called(folded: Folded, event: Event) -> None:
    _running(folded, event)
    call = event.tool_called
    if call.tool_call_id in folded.calls:
        raise BrokenLog(f"call {call.tool_call_id} came twice")
    free = call.action in (event_pb2.POLICY_ACTION_AUTO, event_pb2.POLICY_ACTION_NOTIFY)
    folded.calls[call.tool_call_id] = FoldedCall(
        turn_id=event.turn_id,
        tool=call.tool,
        arguments_json=call.arguments_json,
        arguments_hash=call.arguments_hash,
        irreversible=call.tool_class == event_pb2.TOOL_CLASS_IRREVERSIBLE,
        state="READY" if free else "AWAITING",
    )


def _tool_started(folded: Folded, event: Event) -> None:
    _running(folded, event)
    call, started = folded.calls[event.tool_started.tool_call_id], event.tool_started
    copied = event.sequence <= folded.copied_through
    if call.state != "READY" and not call.may_start_again and not copied:
        raise BrokenLog(f"a {call.tool} that was {call.state} started ({event.sequence})")
    if call.key not in ("", started.key):
        raise BrokenLog(f"call {started.tool_call_id} started under another key")
    call.state, call.key = "STARTED", started.key
    folded.turns[event.turn_id].add_usage({"tool_calls": 1})


def _tool_returned(folded: Folded, event: Event) -> None:
    call, returned = folded.calls[event.tool_returned.tool_call_id], event.tool_returned
    folded.turn_of(event).add_causers(returned.submitted_by, returned.submitted_through)
    if call.state == "RETURNED":
        raise BrokenLog(f"call {returned.tool_call_id} returned twice")
    if returned.started != (bool(call.key) or call.requested):
        raise BrokenLog(
            f"call {returned.tool_call_id} has returned as if it was{'' if returned.started else ' not'} started"
        )
    of_unknown = DONE_AS if call.done else (event_pb2.TOOL_OUTCOME_UNKNOWN,)
    if call.state == "UNKNOWN" and returned.outcome not in of_unknown:
        raise BrokenLog(f"call {returned.tool_call_id} was unknown, and then {returned.outcome} ({event.sequence})")
    if call.state == "STARTED" and call.irreversible and returned.outcome == event_pb2.TOOL_OUTCOME_CANCELLED:
        folded.unknown.insert(0, returned.tool_call_id)
    call.state = "RETURNED"
    call.outcome = event_pb2.ToolOutcome.Name(returned.outcome).removeprefix("TOOL_OUTCOME_")
    if call.outcome == "UNKNOWN" and event.sequence <= folded.copied_through:
        folded.unknown.insert(0, returned.tool_call_id)
    if call.requested and call.outcome in ("OK", "FAILED"):
        call.sequence = event.sequence


def _client_tool_requested(folded: Folded, event: Event) -> None:
    _running(folded, event)
    request = event.client_tool_requested
    call = folded.calls[request.tool_call_id]
    if (
        (call.state != "READY" and event.sequence > folded.copied_through)
        or call.key
        or request.arguments_json != call.arguments_json
    ):
        raise BrokenLog(f"a client got call {request.tool_call_id}, which was {call.state}")
    call.state, call.requested = "REQUESTED", True


def _approval_requested(folded: Folded, event: Event) -> None:
    _running(folded, event)
    approval_event = event.approval_requested
    call = folded.calls[approval_event.tool_call_id]
    call.rounds += 1
    if approval_event.approval_id == call.edited_in:
        call.arguments_json = approval_event.arguments_json
    if approval_event.round != call.rounds or approval_event.arguments_json != call.arguments_json:
        raise BrokenLog(
            f"approval {approval_event.approval_id} is of round {approval_event.round}, or of other arguments"
        )
    kind = event_pb2.ApprovalKind.Name(approval_event.kind).removeprefix("APPROVAL_KIND_")
    if kind == "OUTCOME":
        _lose(folded, approval_event.tool_call_id)
    elif call.state not in ("READY", "AWAITING") and not call.may_start_again:
        raise BrokenLog(f"call {approval_event.tool_call_id} was {call.state}, and has an approval ({event.sequence})")
    call.state, call.arguments_hash = "UNKNOWN" if kind == "OUTCOME" else "AWAITING", approval_event.arguments_hash[:64]
    approval = folded.approvals[approval_event.approval_id] = FoldedApproval(
        turn_id=event.turn_id,
        tool_call_id=approval_event.tool_call_id,
        round=approval_event.round,
        arguments_hash=approval_event.arguments_hash,
        kind=kind,
        unknown_tool_call_ids=folded.unknown_of(approval_event.tool, but=approval_event.tool_call_id),
        exclude_requester=not approval_event.HasField("approvers") or approval_event.approvers.exclude_requester,
    )
    if kind == "OUTCOME":
        _ask_together(folded, event, approval)


def _ask_together(folded: Folded, event: Event, approval: FoldedApproval) -> None:
    """Adds a call to the approvals before it: calls lost with one owner are all unknown before the first request."""
    approval_event = event.approval_requested
    before = folded.together
    if before and (before[-1][0].sequence, before[-1][0].create_time) != (event.sequence - 1, event.create_time):
        before.clear()
    for other, earlier in before:
        if other.approval_requested.tool == approval_event.tool:
            earlier.unknown_tool_call_ids.insert(0, approval_event.tool_call_id)
    before.append((event, approval))


def _lose(folded: Folded, call_id: str) -> None:
    call = folded.calls[call_id]
    if call.state != "STARTED" or not call.irreversible:
        raise BrokenLog(f"call {call_id} was {call.state}, and its outcome is unknown")
    call.unsettled = True
    folded.unknown.insert(0, call_id)


def _approval_voted(folded: Folded, event: Event) -> None:
    add_vote(folded.approvals[event.approval_voted.approval_id], event, causers=folded.turn_of(event).causers)


def _approval_decided(folded: Folded, event: Event) -> None:
    decided = event.approval_decided
    approval = _pending(folded, event, decided.approval_id)
    same = approval.kind == "OUTCOME" or decided.arguments_hash == approval.arguments_hash  # a late result changes it
    if decided.round != approval.round or not same:
        raise BrokenLog(f"approval {decided.approval_id} was decided on something else")
    check_decided(approval, event)
    decision = event_pb2.ApprovalDecision.Name(decided.decision).removeprefix("APPROVAL_DECISION_")
    approval.state, approval.decision = ANSWERS[approval.kind][decision], decision
    approval.decided_by, approval.reason, approval.sequence = decided.decided_by, decided.reason, event.sequence
    approval.remembered_from = decided.remembered_from
    if decided.remembered_from:
        _use(folded, event, decided.remembered_from)
    call = folded.calls[approval.tool_call_id]
    call.unsettled, call.done = False, decision == "MARK_DONE"
    if decision in ("RETRY", "MARK_DONE"):
        folded.unknown.remove(approval.tool_call_id)
    if decision in ("APPROVE", "RETRY"):
        call.state = "READY"


def _use(folded: Folded, event: Event, approval_id: str) -> None:
    """Takes one use of a remembered decision."""
    if approval_id not in folded.remembered:
        raise BrokenLog(f"a call was approved ({event.sequence}) by {approval_id}, which is not remembered")
    binding, uses = folded.remembered[approval_id]
    folded.remembered[approval_id] = binding, uses - 1
    if uses == 1:
        del folded.remembered[approval_id]


def _remembered_decision(folded: Folded, event: Event) -> None:
    decision = event.remembered_decision
    if decision.state == event_pb2.REMEMBERED_STATE_REVOKED:
        if folded.remembered.pop(decision.approval_id, None) != (decision.binding, decision.uses_left):
            raise BrokenLog(f"{decision.approval_id} was revoked ({event.sequence}), and is remembered otherwise")
        return
    if folded.approvals[decision.approval_id].state != "APPROVED" or not 1 <= decision.uses_left <= MOST_USES:
        raise BrokenLog(f"approval {decision.approval_id} is not to be remembered ({event.sequence})")
    folded.remembered[decision.approval_id] = decision.binding, decision.uses_left
    for oldest in list(folded.remembered)[:-REMEMBERED]:
        del folded.remembered[oldest]


def _approval_expired(folded: Folded, event: Event) -> None:
    approval = _pending(folded, event, event.approval_expired.approval_id)
    approval.state, approval.sequence = "EXPIRED", event.sequence
    folded.calls[approval.tool_call_id].unsettled = False


def _approval_expiring(folded: Folded, event: Event) -> None:
    announce(_pending(folded, event, event.approval_expiring.approval_id), event)


def _approval_extended(folded: Folded, event: Event) -> None:
    extend(_pending(folded, event, event.approval_extended.approval_id), event)


def _approval_withdrawn(folded: Folded, event: Event) -> None:
    approval = _pending(folded, event, event.approval_withdrawn.approval_id)
    approval.state, approval.replaced_by = "WITHDRAWN", event.approval_withdrawn.replaced_by
    folded.calls[approval.tool_call_id].edited_in = approval.replaced_by


def _pending(folded: Folded, event: Event, approval_id: str) -> FoldedApproval:
    folded.turn_of(event)
    approval = folded.approvals[approval_id]
    if approval.state != "PENDING":
        raise BrokenLog(f"approval {approval_id} left {approval.state} ({event.sequence})")
    return approval


RULES: Mapping[str, Callable[[Folded, Event], None]] = {
    name.removeprefix("_"): rule
    for name, rule in list(globals().items())
    if name.removeprefix("_") in Event.DESCRIPTOR.fields_by_name
}
"""The rules by the events' kinds; the functions above have the kinds' names."""
