"""Checks the ends of tool calls: what the log has of them is what their tools counted."""

from collections.abc import Mapping, Sequence

from tests.chaos.history import Effect, Finding, History, Logged
from turnkeeper.pb.v1 import event_pb2

_OUTCOME = event_pb2.APPROVAL_KIND_OUTCOME
_MARK_DONE = event_pb2.APPROVAL_DECISION_MARK_DONE


def outcomes_are_what_happened(history: History) -> Finding:
    """Falsified by a call that was STARTED and neither ended nor waits for a person who decides what became of it; by
    one that ended as UNKNOWN, which no person could decide on; by one that is OK, or DONE by its own server, and took
    no effect; by one that FAILED, or of which a server states that it did not start, and whose start took effect.
    """
    finding = Finding()
    effects: dict[str, list[Effect]] = {}
    for effect in history.effects:
        effects.setdefault(effect.call, []).append(effect)
    for call, events in history.events_of_call.items():
        starts = [event for event in events if event.kind == "tool_started"]
        if starts:
            counted = [effect.attempt for effect in effects.get(call, ())]
            _Call(f"{starts[0].session}: {starts[0].event.tool_started.tool} {call}", events, counted, finding).check(
                history.approvals
            )
    return finding


class _Call:
    """A call that started at least once. `counted`: the attempts of the starts that its tool wrote down."""

    def __init__(self, name: str, events: Sequence[Logged], counted: Sequence[int], finding: Finding) -> None:
        self._name = name
        self._events = events
        self._counted = counted
        self._found = finding

    def check(self, approvals: Mapping[str, Mapping[str, object]]) -> None:
        """Checks the call; `approvals` are the documents."""
        questions = [
            event.event.approval_requested.approval_id
            for event in self._events
            if event.kind == "approval_requested" and event.event.approval_requested.kind == _OUTCOME
        ]
        returned = next((event for event in self._events if event.kind == "tool_returned"), None)
        waits = any(approvals.get(name, {}).get("state") == "PENDING" for name in questions)
        self._expect(returned is not None or waits, "was STARTED, and neither ended nor is a question")
        for event in self._events:
            if event.kind == "tool_reconciled":
                self._reconciled(event.event.tool_reconciled)
        if returned is not None:
            self._returned(returned.event.tool_returned, is_question=bool(questions))

    def _reconciled(self, answer: event_pb2.ToolReconciled) -> None:
        state = event_pb2.ReconciledState.Name(answer.state).removeprefix("RECONCILED_STATE_")
        words = f"is {state} by its own server (attempt {answer.attempt}), which counted {sorted(self._counted)}"
        match state:
            case "NOT_STARTED":
                self._expect(not any(attempt <= answer.attempt for attempt in self._counted), words)
            case "DONE":
                self._expect(bool(self._counted), words)
            case "FAILED":
                self._expect(answer.took_effect or answer.attempt not in self._counted, words)

    def _returned(self, returned: event_pb2.ToolReturned, *, is_question: bool) -> None:
        outcome = event_pb2.ToolOutcome.Name(returned.outcome).removeprefix("TOOL_OUTCOME_")
        marked = any(
            event.kind == "approval_decided" and event.event.approval_decided.decision == _MARK_DONE
            for event in self._events
        )
        last = max(event.event.attempt for event in self._events if event.kind == "tool_started")
        words = f"ended {outcome} ({returned.result_json[:80]}), and its tool counted {sorted(self._counted)}"
        match outcome:
            case "OK":
                self._expect(marked or bool(self._counted), words)
            case "FAILED":
                self._expect(last not in self._counted, f"{words}, the last start being {last}")
            case "UNKNOWN":
                self._expect(is_question, f"{words}, and no person could decide on it")

    def _expect(self, holds: bool, otherwise: str) -> None:
        self._found.expect(holds, f"{self._name} {otherwise}")
