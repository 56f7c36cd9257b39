"""What must be true of a session in memory whatever happened: promises, each in its own words."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.checker.compare import of_session
from tests.unit.engine.memory_log import Kept
from turnkeeper.domain.approval import ApprovalDecision
from turnkeeper.domain.event import (
    ApprovalDecided,
    ApprovalRequested,
    MessageCompleted,
    ToolCalled,
    ToolStarted,
    TurnCancelled,
    TurnRetried,
)
from turnkeeper.domain.history import History
from turnkeeper.domain.message import FinishReason, Message, Role, text_of
from turnkeeper.domain.tool import CallState, PolicyAction, ToolClass
from turnkeeper.store.mongo.documents import encode


def broken(kept: Kept) -> list[str]:
    """Every law that this session breaks."""
    return [f"{law.__name__}: {told}" for law in LAWS for told in law(kept)]


def documents_equal_the_fold(kept: Kept) -> Iterator[str]:
    """I1, I4, I6, I8, I11: the checker of a real database, on the same documents."""
    place = {"tenant": kept.session.tenant, "session_id": kept.session.id}
    head = place | {
        "last_seq": kept.last_seq,
        "active_turn": kept.active_turn,
        "queue": list(kept.queue),
        "cancel": encode(kept.cancel),
        "owner": kept.owner,
        "lease_until": kept.lease_until,
        "wake_at": kept.wake_at,
        "fence": kept.fence,
    }
    events: list[Mapping[str, Any]] = [
        place
        | {
            "seq": each.stored.sequence,
            "kind": each.stored.kind,
            "turn_id": each.stored.turn_id,
            "payload": each.stored.payload,
            "fence": each.fence,
        }
        for each in kept.log
    ]
    requests: list[Mapping[str, Any]] = [encode(each) | encode(each.key) for each in kept.requests.values()]
    members: dict[str, list[Mapping[str, Any]]] = {
        "turns": [encode(each) for each in kept.turns.values()],
        "tool_calls": [encode(each) for each in kept.calls.values()],
        "approvals": [encode(each) for each in kept.approvals.values()],
        "requests": requests,
    }
    yield from of_session(head, encode(kept.session), events, members)
    sent = [each["turn_id"] for each in requests if each["family"] == "message"]
    if sorted(sent) != sorted(kept.turns):
        yield f"turns {sorted(kept.turns)} of messages {sent}"


def starts_are_allowed(kept: Kept) -> Iterator[str]:
    """I5, I14: what cannot be taken back starts once per approval, and nothing that asks starts without one."""
    asks: dict[str, ToolCalled] = {}
    approved: Counter[str] = Counter()
    asked_for: dict[str, str] = {}
    hashes: dict[str, str] = {}
    started: Counter[str] = Counter()
    for event in (each.event for each in kept.log):
        match event.payload:
            case ToolCalled() as called:
                asks[called.tool_call_id] = called
            case ApprovalRequested(tool_call_id=call_id, arguments_hash=hashed):
                asked_for[call_id] = hashed
            case ApprovalDecided(decision=ApprovalDecision.APPROVE | ApprovalDecision.RETRY) as decided:
                approved[decided.tool_call_id] += 1
                hashes[decided.tool_call_id] = decided.arguments_hash
            case ToolStarted(tool_call_id=call_id):
                started[call_id] += 1
                called, call = asks[call_id], kept.calls[call_id]
                asked = call.action is PolicyAction.APPROVE
                allowed = approved[call_id] + (called.action is not PolicyAction.APPROVE)
                if called.tool_class is ToolClass.IRREVERSIBLE and started[call_id] > allowed:
                    yield f"{call_id} started {started[call_id]} times, approved {approved[call_id]} times"
                if asked and asked_for.get(call_id) != hashes.get(call_id):
                    yield f"{call_id} runs as {asked_for.get(call_id)}, approved was {hashes.get(call_id)}"


def nothing_starts_after_a_cancel(kept: Kept) -> Iterator[str]:
    """I12."""
    cancelled: set[str] = set()
    for event in (each.event for each in kept.log):
        match event.payload:
            case TurnCancelled():
                cancelled.add(event.turn_id)
            case TurnRetried():
                cancelled.discard(event.turn_id)
            case ToolStarted(tool_call_id=call_id) if event.turn_id in cancelled:
                yield f"{call_id} started after its turn was cancelled"
            case _:
                pass


def partial_text_is_closed(kept: Kept) -> Iterator[str]:
    """I10: what was said before a cancel is kept in the step that cancels, and nowhere else."""
    for at, each in enumerate(kept.log):
        said = each.event.payload
        if not isinstance(said, MessageCompleted) or said.finish_reason is not FinishReason.INTERRUPTED:
            continue
        same_step = (later.event.payload for later in kept.log[at:] if later.changeset_id == each.changeset_id)
        if not any(isinstance(payload, TurnCancelled) for payload in same_step):
            yield f"{said.message_id} was interrupted, and its turn goes on"


def history_pairs(kept: Kept) -> Iterator[str]:
    """I16: every call that the model is told of is followed by its result, unless its turn has it open still."""
    history = History()
    for each in kept.log:
        history.add(each.event)
    still = {call.id for call in kept.calls.values() if call.state is not CallState.RETURNED}
    yield from unpaired(history.messages("Be brief."), still)


def unpaired(messages: tuple[Message, ...], still: set[str]) -> Iterator[str]:
    """`still`: calls that are open."""
    due: set[str] = set()
    for message in messages:
        if message.role is Role.TOOL:
            if message.tool_call_id not in due:
                yield f"a result of {message.tool_call_id}, which nobody asked for"
            due.discard(message.tool_call_id or "")
            continue
        if due - still:
            yield f"{message.role} {message.text!r} follows while {sorted(due - still)} have no result"
        due = {request.tool_call_id for request in message.tool_requests}
    if due - still:
        yield f"at the end {sorted(due - still)} have no result"


def nobody_is_stranded(kept: Kept) -> Iterator[str]:
    """I9: an active turn is owned, or can be claimed at some time, or waits for a person who is asked."""
    if not kept.active_turn:
        if kept.queue:
            yield f"{kept.queue} wait for nobody"
        return
    turn = kept.turns[kept.active_turn]
    waits = turn.state.waits_for_people and bool(kept.pending(turn.id))
    if not (kept.owner or kept.wake_at or waits):
        yield f"{turn.id} is {turn.state}, and nobody will take it up"


def texts(kept: Kept) -> Iterator[tuple[str, str, FinishReason]]:
    """The model's messages in the log: id, text, how they ended."""
    for payload in (each.event.payload for each in kept.log):
        if isinstance(payload, MessageCompleted):
            yield payload.message_id, text_of(payload.content), payload.finish_reason


LAWS: Sequence[Callable[[Kept], Iterator[str]]] = (
    documents_equal_the_fold,
    starts_are_allowed,
    nothing_starts_after_a_cancel,
    partial_text_is_closed,
    history_pairs,
    nobody_is_stranded,
)
