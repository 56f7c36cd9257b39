"""Compares what sessions' logs state with what the tool server did."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from turnkeeper.pb.v1 import event_pb2

OK, FAILED = event_pb2.TOOL_OUTCOME_OK, event_pb2.TOOL_OUTCOME_FAILED
OUTCOME = event_pb2.APPROVAL_KIND_OUTCOME
_ENDS = frozenset({"DONE", "FAILED", "NOT_STARTED"})
"""Answers of the tool's server that leave nothing to ask."""

Logs = Mapping[str, Sequence[event_pb2.Event]]


def answers_of(events: Iterable[event_pb2.Event]) -> "Counter[str]":
    """Counts the answers about calls by kind."""
    return Counter(_state(event.tool_reconciled) for event in events if event.HasField("tool_reconciled"))


def known_by(logs: Logs, cut: Collection[str]) -> "Counter[str]":
    """Counts the calls with these keys, which were cut off between effect and answer, by how their outcome is known.

    By the last answer of the tool's server; ASKED, after an answer that tells nothing, too; ANSWERED if the tool's own
    answer had arrived all the same; NOTHING otherwise.
    """
    return Counter(kind for _, kind in _kinds(logs, cut))


def complaints(logs: Logs, effects: Sequence[Mapping[str, Any]], cut: Collection[str] = ()) -> list[str]:
    """Returns how the logs and the effects break a promise: no effect twice, no result that is not true, and no
    outcome of a call in `cut` that stays unknown without an answer of the tool's server or a question.
    """
    count = Counter(line["key"] for line in effects)
    violations = [f"{key} took effect {times} times" for key, times in count.items() if times > 1]
    violations += [f"{key} was cut off, and is neither reconciled nor a question" for key in _unknown(logs, cut)]
    for session, events in logs.items():
        keys = {e.tool_started.tool_call_id: e.tool_started.key for e in events if e.HasField("tool_started")}
        in_question = {call for call in keys if _is_question(events, call)}
        for returned in (e.tool_returned for e in events if e.HasField("tool_returned")):
            times = count[keys.get(returned.tool_call_id, "")]
            name = event_pb2.ToolOutcome.Name(returned.outcome)
            if returned.outcome == OK and times != 1:
                violations.append(f"{session}: {name}, and {times} effects")
            elif returned.outcome == FAILED and times:
                violations.append(f"{session}: {name}, and it took effect: {returned.result_json[:80]}")
            elif returned.outcome not in (OK, FAILED) and returned.tool_call_id not in in_question:
                violations.append(f"{session}: {name}, and no person decided")
    return violations


def _unknown(logs: Logs, cut: Collection[str]) -> list[str]:
    """Returns the keys of calls that were cut off, and of which nothing tells the outcome."""
    kinds = dict(_kinds(logs, cut))
    return [key for key in cut if kinds.get(key, "NOTHING") == "NOTHING"]


def _kinds(logs: Logs, cut: Collection[str]) -> list[tuple[str, str]]:
    kinds: dict[str, str] = {}
    for events in logs.values():
        for started in (event.tool_started for event in events if event.HasField("tool_started")):
            if started.key in cut:
                kinds[started.key] = _kind(events, started.tool_call_id)
    return list(kinds.items())


def _kind(events: Sequence[event_pb2.Event], call: str) -> str:
    answers = [e.tool_reconciled for e in events if e.HasField("tool_reconciled")]
    last = next((_state(one) for one in reversed(answers) if one.tool_call_id == call), "")
    if last in _ENDS:
        return last
    if _is_question(events, call):
        return "ASKED"
    results = (e.tool_returned for e in events if e.HasField("tool_returned"))
    return "ANSWERED" if any(one.tool_call_id == call and one.outcome == OK for one in results) else "NOTHING"


def _is_question(events: Iterable[event_pb2.Event], call: str) -> bool:
    """Returns True if what became of the call is a question for a person."""
    questions = (event.approval_requested for event in events if event.HasField("approval_requested"))
    return any(one.tool_call_id == call and one.kind == OUTCOME for one in questions)


def _state(answer: event_pb2.ToolReconciled) -> str:
    return event_pb2.ReconciledState.Name(answer.state).removeprefix("RECONCILED_STATE_")
