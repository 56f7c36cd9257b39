"""The judgement of `make chaos-tools` can fail: each thing that it promises is broken in one session's log."""

from typing import Any

import pytest

from tests.chaos.tool_server.judgement import FAILED, OK, OUTCOME, answers_of, complaints, known_by
from turnkeeper.pb.v1 import event_pb2

STARTED = event_pb2.Event(tool_started=event_pb2.ToolStarted(tool_call_id="c", key="k"))
DECIDED = event_pb2.Event(approval_requested=event_pb2.ApprovalRequested(tool_call_id="c", kind=OUTCOME))


def returned(outcome: event_pb2.ToolOutcome.ValueType) -> event_pb2.Event:
    return event_pb2.Event(tool_returned=event_pb2.ToolReturned(tool_call_id="c", outcome=outcome))


@pytest.mark.parametrize(
    ("events", "effects", "complaint"),
    [
        ([STARTED, returned(OK)], 1, ""),
        ([STARTED, STARTED, returned(OK)], 1, ""),
        ([STARTED, returned(FAILED)], 0, ""),
        ([STARTED, DECIDED, returned(event_pb2.TOOL_OUTCOME_UNKNOWN)], 1, ""),
        ([STARTED], 2, "k took effect 2 times"),
        ([STARTED, returned(OK)], 0, "s: TOOL_OUTCOME_OK, and 0 effects"),
        ([STARTED, returned(FAILED)], 1, "s: TOOL_OUTCOME_FAILED, and it took effect: "),
        ([STARTED, returned(event_pb2.TOOL_OUTCOME_UNKNOWN)], 1, "s: TOOL_OUTCOME_UNKNOWN, and no person decided"),
        ([STARTED, returned(event_pb2.TOOL_OUTCOME_TIMED_OUT)], 0, "s: TOOL_OUTCOME_TIMED_OUT, and no person decided"),
    ],
)
def test_what_breaks_a_promise_is_named(events: list[event_pb2.Event], effects: int, complaint: str) -> None:
    done: list[dict[str, Any]] = [{"key": "k"}] * effects
    assert complaints({"s": events}, done) == ([complaint] if complaint else [])


def reconciled(state: event_pb2.ReconciledState.ValueType) -> event_pb2.Event:
    return event_pb2.Event(tool_reconciled=event_pb2.ToolReconciled(tool_call_id="c", state=state))


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([STARTED, reconciled(event_pb2.RECONCILED_STATE_DONE), returned(OK)], "DONE"),
        ([STARTED, reconciled(event_pb2.RECONCILED_STATE_NOT_STARTED), STARTED, returned(OK)], "NOT_STARTED"),
        ([STARTED, reconciled(event_pb2.RECONCILED_STATE_UNKNOWN), DECIDED], "ASKED"),
        ([STARTED, DECIDED], "ASKED"),
        ([STARTED, returned(OK)], "ANSWERED"),
        ([STARTED, reconciled(event_pb2.RECONCILED_STATE_NO_ANSWER)], "NOTHING"),
        ([STARTED, returned(FAILED)], "NOTHING"),
        ([STARTED], "NOTHING"),
    ],
)
def test_an_outcome_that_stays_unknown_is_named(events: list[event_pb2.Event], kind: str) -> None:
    assert known_by({"s": events}, {"k"}) == {kind: 1}
    unknown = [line for line in complaints({"s": events}, [], {"k"}) if line.startswith("k ")]
    assert unknown == (["k was cut off, and is neither reconciled nor a question"] if kind == "NOTHING" else [])


def test_a_call_that_was_cut_off_and_is_in_no_log_is_named() -> None:
    assert complaints({}, [], {"k"}) == ["k was cut off, and is neither reconciled nor a question"]


def test_a_person_who_decides_about_another_call_does_not_count() -> None:
    other = event_pb2.Event(approval_requested=event_pb2.ApprovalRequested(tool_call_id="another"))
    assert complaints({"s": [STARTED, other, returned(event_pb2.TOOL_OUTCOME_UNKNOWN)]}, [])


def test_answers_are_counted_by_kind() -> None:
    states = (event_pb2.RECONCILED_STATE_DONE, event_pb2.RECONCILED_STATE_NO_ANSWER, event_pb2.RECONCILED_STATE_DONE)
    answers = [
        event_pb2.Event(tool_reconciled=event_pb2.ToolReconciled(tool_call_id="c", state=state)) for state in states
    ]
    assert answers_of([STARTED, *answers]) == {"DONE": 2, "NO_ANSWER": 1}
