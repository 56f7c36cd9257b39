"""Compares what sessions' logs state with what the tool server did."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from turnkeeper.pb.v1 import event_pb2

OK, FAILED = event_pb2.TOOL_OUTCOME_OK, event_pb2.TOOL_OUTCOME_FAILED


def answers_of(events: Iterable[event_pb2.Event]) -> "Counter[str]":
    """Counts the answers about calls by kind."""
    states = (event.tool_reconciled.state for event in events if event.WhichOneof("payload") == "tool_reconciled")
    return Counter(event_pb2.ReconciledState.Name(state).removeprefix("RECONCILED_STATE_") for state in states)


def complaints(logs: Mapping[str, Sequence[event_pb2.Event]], effects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns how the logs and the effects break a promise: no effect twice, and no result that is not true."""
    count = Counter(line["key"] for line in effects)
    violations = [f"{key} took effect {times} times" for key, times in count.items() if times > 1]
    for session, events in logs.items():
        keys = {e.tool_started.tool_call_id: e.tool_started.key for e in events if e.HasField("tool_started")}
        in_question = {e.approval_requested.tool_call_id for e in events if e.HasField("approval_requested")}
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
