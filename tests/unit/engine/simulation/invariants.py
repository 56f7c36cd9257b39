"""What must be true of a stored session whatever happened. Each invariant yields how the session violates it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.checker.compare import of_session
from tests.memory_store.state import StoredSession
from turnkeeper.domain.approval import ApprovalDecision, hash_with_late_result
from turnkeeper.domain.approval_events import ApprovalDecided, ApprovalRequested
from turnkeeper.domain.event import MessageCompleted, TurnCancelled, TurnRetried
from turnkeeper.domain.history import History
from turnkeeper.domain.message import FinishReason, Message, Role, text_of
from turnkeeper.domain.tool import CallState, PolicyAction, ReconciledState, ToolClass
from turnkeeper.domain.tool_events import ToolCalled, ToolReconciled, ToolStarted
from turnkeeper.store.mongo.documents import encode


def violations(stored: StoredSession) -> list[str]:
    """Returns how the session violates the invariants; an empty list if it does not."""
    return [f"{check.__name__}: {violation}" for check in INVARIANTS for violation in check(stored)]


def documents_equal_the_fold(stored: StoredSession) -> Iterator[str]:
    """I1, I4, I6, I8, I11: checks the same documents as the checker of a real database."""
    key = {"tenant": stored.session.tenant, "session_id": stored.session.id}
    head = key | {
        "last_seq": stored.last_seq,
        "active_turn": stored.active_turn,
        "queue": list(stored.queue),
        "cancel": encode(stored.cancel),
        "owner": stored.owner,
        "lease_until": stored.lease_until,
        "wake_at": stored.wake_at,
        "fence": stored.fence,
    }
    events: list[Mapping[str, Any]] = [
        key
        | {
            "seq": logged.stored.sequence,
            "kind": logged.stored.kind,
            "turn_id": logged.stored.turn_id,
            "payload": logged.stored.payload,
            "fence": logged.fence,
        }
        for logged in stored.log
    ]
    requests: list[Mapping[str, Any]] = [encode(record) | encode(record.key) for record in stored.requests.values()]
    members: dict[str, list[Mapping[str, Any]]] = {
        "turns": [encode(turn) for turn in stored.turns.values()],
        "tool_calls": [encode(call) for call in stored.calls.values()],
        "approvals": [encode(approval) for approval in stored.approvals.values()],
        "requests": requests,
    }
    yield from of_session(head, encode(stored.session), events, members)
    sent = [record["turn_id"] for record in requests if record["family"] == "message"]
    if sorted(sent) != sorted(stored.turns):
        yield f"turns {sorted(stored.turns)} of messages {sent}"


def starts_are_allowed(stored: StoredSession) -> Iterator[str]:
    """I5, I14: an irreversible call starts once per approval, and no call that needs an approval starts without one."""
    tool_calls: dict[str, ToolCalled] = {}
    approved: Counter[str] = Counter()
    requested: dict[str, str] = {}
    decided_on: dict[str, str] = {}
    started: Counter[str] = Counter()
    for event in (logged.event for logged in stored.log):
        started.subtract(_without_effect(event.payload))
        match event.payload:
            case ToolCalled() as called:
                tool_calls[called.tool_call_id] = called
            case ApprovalRequested(tool_call_id=call_id, arguments_hash=hashed):
                requested[call_id] = hashed
            case ApprovalDecided(decision=ApprovalDecision.APPROVE | ApprovalDecision.RETRY) as decided:
                approved[decided.tool_call_id] += 1
                decided_on[decided.tool_call_id] = _decided_hash(stored, decided, requested[decided.tool_call_id])
            case ToolStarted(tool_call_id=call_id):
                started[call_id] += 1
                called, call = tool_calls[call_id], stored.calls[call_id]
                needs_approval = call.action is PolicyAction.APPROVE
                allowed = approved[call_id] + (called.action is not PolicyAction.APPROVE)
                if called.tool_class is ToolClass.IRREVERSIBLE and started[call_id] > allowed:
                    yield f"{call_id} started {started[call_id]} times, approved {approved[call_id]} times"
                if needs_approval and requested.get(call_id) != decided_on.get(call_id):
                    yield f"{call_id} runs as {requested.get(call_id)}, approved was {decided_on.get(call_id)}"


def _without_effect(payload: object) -> Sequence[str]:
    """Returns the id of the call if the event proves that its start had no effect; otherwise nothing."""
    if isinstance(payload, ToolReconciled) and payload.state is ReconciledState.NOT_STARTED:
        return [payload.tool_call_id]
    return []


def _decided_hash(stored: StoredSession, decided: ApprovalDecided, requested: str) -> str:
    """Returns the hash of the arguments that were decided on: the one that was requested, also with a late result."""
    late = stored.approvals[decided.approval_id].late_result_json
    with_late_result = late and decided.arguments_hash == hash_with_late_result(requested, late)
    return requested if with_late_result else decided.arguments_hash


def nothing_starts_after_a_cancel(stored: StoredSession) -> Iterator[str]:
    """I12: after a turn is cancelled none of its calls starts, unless the turn is retried."""
    cancelled: set[str] = set()
    for event in (logged.event for logged in stored.log):
        match event.payload:
            case TurnCancelled():
                cancelled.add(event.turn_id)
            case TurnRetried():
                cancelled.discard(event.turn_id)
            case ToolStarted(tool_call_id=call_id) if event.turn_id in cancelled:
                yield f"{call_id} started after its turn was cancelled"
            case _:
                pass


def partial_text_is_closed(stored: StoredSession) -> Iterator[str]:
    """I10: partial text is stored in the changeset that cancels its turn, and nowhere else."""
    for place, logged in enumerate(stored.log):
        message = logged.event.payload
        if not isinstance(message, MessageCompleted) or message.finish_reason is not FinishReason.INTERRUPTED:
            continue
        same_changeset = (
            later.event.payload for later in stored.log[place:] if later.changeset_id == logged.changeset_id
        )
        if not any(isinstance(payload, TurnCancelled) for payload in same_changeset):
            yield f"{message.message_id} was interrupted, and its turn goes on"


def history_pairs(stored: StoredSession) -> Iterator[str]:
    """I16: in a model's context every call is followed by its result, unless the call is still open."""
    history = History()
    for logged in stored.log:
        history.add(logged.event)
    still_open = {call.id for call in stored.calls.values() if call.state is not CallState.RETURNED}
    yield from unpaired(history.messages("Be brief."), still_open)


def unpaired(messages: tuple[Message, ...], still_open: set[str]) -> Iterator[str]:
    """Yields the calls without a result, except those in `still_open`, and the results without a call."""
    due: set[str] = set()
    for message in messages:
        if message.role is Role.TOOL:
            if message.tool_call_id not in due:
                yield f"a result of {message.tool_call_id}, which the model did not request"
            due.discard(message.tool_call_id or "")
            continue
        if due - still_open:
            yield f"{message.role} {message.text!r} follows while {sorted(due - still_open)} have no result"
        due = {request.tool_call_id for request in message.tool_requests}
    if due - still_open:
        yield f"at the end {sorted(due - still_open)} have no result"


def no_turn_is_stranded(stored: StoredSession) -> Iterator[str]:
    """I9: an active turn is owned, or claimable at some time, or waits for a PENDING approval."""
    if not stored.active_turn:
        if stored.queue:
            yield f"{stored.queue} wait for no turn"
        return
    turn = stored.turns[stored.active_turn]
    waits = turn.state.waits_for_people and bool(stored.pending(turn.id))
    if not (stored.owner or stored.wake_at or waits):
        yield f"{turn.id} is {turn.state}, and no replica will ever claim it"


def texts(stored: StoredSession) -> Iterator[tuple[str, str, FinishReason]]:
    """Yields the id, the text and the finish reason of each message of the model in the log."""
    for payload in (logged.event.payload for logged in stored.log):
        if isinstance(payload, MessageCompleted):
            yield payload.message_id, text_of(payload.content), payload.finish_reason


INVARIANTS: Sequence[Callable[[StoredSession], Iterator[str]]] = (
    documents_equal_the_fold,
    starts_are_allowed,
    nothing_starts_after_a_cancel,
    partial_text_is_closed,
    history_pairs,
    no_turn_is_stranded,
)
