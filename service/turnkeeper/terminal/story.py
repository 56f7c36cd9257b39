"""The event log of a session as a story for people: what happened, a line or two an event."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from turnkeeper.terminal.console import Output, Part
from turnkeeper.terminal.names import clock, day, in_one_line, seconds, short, word
from turnkeeper_client.pb.v1 import event_pb2
from turnkeeper_client.pb.v1.event_pb2 import REMEMBER_SCOPE_ARGUMENTS, REMEMBERED_STATE_REVOKED, Event
from turnkeeper_client.pb.v1.message_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_INTERRUPTED,
    FINISH_REASON_LENGTH,
    FinishReason,
)
from turnkeeper_client.pb.v1.message_pb2 import Part as MessagePart

_DIM, _BAD, _GOOD, _WAITS = "dim", "red", "green", "yellow"
_LONGEST: Final = 400
"""Characters of arguments and results that a line shows; `export` has all."""
_OUTCOMES: Final = {event_pb2.TOOL_OUTCOME_OK: _GOOD, event_pb2.TOOL_OUTCOME_UNKNOWN: _BAD}
_ACTIONS: Final = {
    event_pb2.POLICY_ACTION_APPROVE: "a person is asked",
    event_pb2.POLICY_ACTION_DENY: "the policy denies it",
    event_pb2.POLICY_ACTION_NOTIFY: "it runs, with a notice",
}
_DECISIONS: Final = {
    event_pb2.APPROVAL_DECISION_APPROVE: "approved",
    event_pb2.APPROVAL_DECISION_REJECT: "rejected",
    event_pb2.APPROVAL_DECISION_RETRY: "allowed to run again",
    event_pb2.APPROVAL_DECISION_MARK_DONE: "marked as done",
    event_pb2.APPROVAL_DECISION_GIVE_UP: "given up",
}
_CUT: Final = (FINISH_REASON_CONTENT_FILTER, FINISH_REASON_INTERRUPTED, FINISH_REASON_LENGTH)
Payload = Any
Line = Sequence[Part]


def show_event(event: Event, output: Output, *, shell: Callable[[str], str]) -> None:
    """Prints an event: its time, and beside it what happened. Text of others never begins a line of the screen.

    `shell` returns a command of this program as the reader's shell takes it.
    """
    kind = event.WhichOneof("payload")
    if kind == "approval_requested":
        line = _requested(event.approval_requested, shell)
    else:
        line = _LINES[kind](getattr(event, kind)) if kind is not None and kind in _LINES else _unknown(event)
    if line:
        output.show_beside((clock(event.create_time), _DIM), *line)


def text_of(content: Sequence[MessagePart]) -> str:
    """Returns the text of a message; another part is named in brackets."""
    return "".join(part.text if part.HasField("text") else f"[{part.WhichOneof('kind')}]" for part in content)


def decided_by(event: event_pb2.ApprovalDecided) -> str:
    """Returns what was decided, and by whom: `approved by anna`."""
    decision = _DECISIONS.get(event.decision) or f"decided as {word(event_pb2.ApprovalDecision, event.decision)}"
    through = f" through {event.decided_through}" if event.decided_through else ""
    before = f" before, in {short(event.remembered_from)}" if event.remembered_from else ""
    return f"{decision} by {event.decided_by}{through}{before}"


def _created(event: event_pb2.SessionCreated) -> Line:
    through = f" through {event.created_through}" if event.created_through else ""
    return [f"{event.owner}{through} began a session with {event.agent} ({event.agent_version})"]


def _received(event: event_pb2.MessageReceived) -> Line:
    return [(f"{event.principal}: ", "bold cyan"), text_of(event.content)]


def _completed(event: event_pb2.MessageCompleted) -> Line:
    text = text_of(event.content)
    cut = f" (cut: {word(FinishReason, event.finish_reason)})" if event.finish_reason in _CUT else ""
    return [("model: ", "bold magenta"), text, (cut, _BAD)] if text or cut else []


def _called(event: event_pb2.ToolCalled) -> Line:
    action = _ACTIONS.get(event.action, "")
    style = _BAD if event.action == event_pb2.POLICY_ACTION_DENY else _WAITS
    arguments = in_one_line(event.arguments_json, longest=_LONGEST)
    return [("call ", _DIM), (event.tool, "bold"), f" {arguments}", (f"  {action}" if action else "", style)]


def _returned(event: event_pb2.ToolReturned) -> Line:
    took = f" in {seconds(event.duration)}" if event.HasField("duration") else ""
    outcome = word(event_pb2.ToolOutcome, event.outcome)
    style = _OUTCOMES.get(event.outcome, _WAITS)
    return [(f"{event.tool} {outcome}{took} ", style), in_one_line(event.result_json, longest=_LONGEST)]


def _requested_of_client(event: event_pb2.ClientToolRequested) -> Line:
    return [("the client must run ", _WAITS), event.tool, " and hand in its result"]


def _requested(event: event_pb2.ApprovalRequested, shell: Callable[[str], str]) -> Line:
    what = "waits for you" if event.kind == event_pb2.APPROVAL_KIND_TOOL_CALL else "ended unknown"
    until = f", until {day(event.expire_time)}" if event.HasField("expire_time") else ""
    return [(f"{event.tool} {what}", _WAITS), f" → {shell(f'approve {short(event.approval_id)}')}", (until, _DIM)]


def _voted(event: event_pb2.ApprovalVoted) -> Line:
    through = f" through {event.through}" if event.through else ""
    place = f" in the place of {event.authority}" if event.authority not in ("", event.person) else ""
    return [(f"{event.person}{through}{place} voted to {word(event_pb2.ApprovalDecision, event.decision)}", _DIM)]


def _decided(event: event_pb2.ApprovalDecided) -> Line:
    style = _GOOD if event.decision == event_pb2.APPROVAL_DECISION_APPROVE else _BAD
    return [(decided_by(event), style), f": {event.reason}" if event.reason else ""]


def _remembered(event: event_pb2.RememberedDecision) -> Line:
    what = f"that {event.tool} may run" + (" with these arguments" if event.scope == REMEMBER_SCOPE_ARGUMENTS else "")
    if event.state == REMEMBERED_STATE_REVOKED:
        return [(f"{event.revoked_by} revoked {what}", _BAD)]
    uses = f"{event.uses_left} more times, until {day(event.expire_time)}"
    return [(f"remembered {what}, {uses}", _WAITS), (f" ({short(event.approval_id)})", _DIM)]


def _withdrawn(event: event_pb2.ApprovalWithdrawn) -> Line:
    instead = f"; {short(event.replaced_by)} takes its place" if event.replaced_by else ""
    return [(f"approval {short(event.approval_id)} was withdrawn{instead}", _DIM)]


def _attempt_failed(event: event_pb2.AttemptFailed) -> Line:
    again = f"; again in {seconds(event.retry_delay)}" if event.HasField("retry_delay") else ""
    return [("the model call failed: ", _BAD), event.error.message, again]


def _turn_completed(event: event_pb2.TurnCompleted) -> Line:
    usage = event.usage
    cut = "; the output limit cut the answer" if event.stop_reason == event_pb2.STOP_REASON_LENGTH else ""
    return [(f"done: {usage.input_tokens} tokens in, {usage.output_tokens} out{cut}", _DIM)]


def _turn_cancelled(event: event_pb2.TurnCancelled) -> Line:
    by = f" by {event.principal}" if event.principal else ""
    return [(f"the turn was cancelled{by} ({word(event_pb2.CancelReason, event.reason)})", _WAITS)]


def _forked(event: event_pb2.SessionForked) -> Line:
    return [(f"forked from {short(event.source_session_id)} after its event {event.source_sequence}", _DIM)]


def _unknown(event: Event) -> Line:
    kind = event.WhichOneof("payload") or "an event of a later release"
    return [(kind.replace("_", " "), _DIM)]


_LINES: Final[Mapping[str, Callable[[Payload], Line]]] = {
    "session_created": _created,
    "session_activated": lambda _: [],
    "session_suspended": lambda event: [(f"{event.principal} suspended the session", _WAITS)],
    "session_resumed": lambda event: [(f"{event.principal} resumed the session", _DIM)],
    "session_ended": lambda event: [(f"{event.principal} ended the session", _DIM), f" {event.reason}"],
    "session_updated": lambda event: [(f"changed: {', '.join(event.fields)}", _DIM)],
    "session_forked": _forked,
    "session_restored": lambda event: [(f"taken back to after event {event.to_sequence}", _WAITS)],
    "message_received": _received,
    "turn_queued": lambda event: [(f"queued behind {event.position}", _DIM)],
    "turn_started": lambda _: [],
    "message_completed": _completed,
    "tool_called": _called,
    "tool_started": lambda event: [(f"{event.tool} runs", _DIM)],
    "tool_reconciled": lambda event: [
        (f"its server tells of {event.tool}: {word(event_pb2.ReconciledState, event.state)}", _WAITS)
    ],
    "tool_returned": _returned,
    "client_tool_requested": _requested_of_client,
    "approval_voted": _voted,
    "approval_decided": _decided,
    "approval_expired": lambda event: [(f"approval {short(event.approval_id)} expired", _BAD)],
    "approval_withdrawn": _withdrawn,
    "remembered_decision": _remembered,
    "attempt_failed": _attempt_failed,
    "attempt_superseded": lambda _: [("another owner took the turn up", _DIM)],
    "turn_completed": _turn_completed,
    "turn_failed": lambda event: [("the turn failed: ", _BAD), event.error.message],
    "turn_cancelled": _turn_cancelled,
    "turn_retried": lambda event: [(f"{event.principal} retried the turn", _DIM)],
}
