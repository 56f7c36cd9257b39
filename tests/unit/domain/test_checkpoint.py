"""Which events are checkpoints, where each one is, and what it is called."""

import pytest

from tests.builders import NOON
from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.domain.approval import ApprovalKind
from turnkeeper.domain.approval_events import ApprovalRequested
from turnkeeper.domain.checkpoint import MARKS, CheckpointKind, checkpoint_of, event_named
from turnkeeper.domain.event import (
    NAMES,
    AttemptFailed,
    AttemptOutcome,
    AttemptSuperseded,
    Event,
    MessageCompleted,
    Payload,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnRetried,
    TurnStarted,
)
from turnkeeper.domain.message import FinishReason, Usage
from turnkeeper.domain.tool import PolicyAction, ToolClass
from turnkeeper.domain.tool_events import ToolCalled
from turnkeeper.domain.turn import CancelReason, StopReason

ERROR = ErrorDetail(code=Code.LLM_API_ERROR, message="It failed.")


def a_message(finish: FinishReason) -> MessageCompleted:
    return MessageCompleted(
        message_id="m", content=(), tool_requests=(), finish_reason=finish, usage=Usage(), model="small"
    )


CALLED = ToolCalled(
    tool_call_id="c",
    tool="add",
    arguments_json="{}",
    arguments_hash="h",
    action=PolicyAction.AUTO,
    tool_class=ToolClass.READ_ONLY,
    message_id="m",
)
RECEIVED = ApprovalRequested(
    approval_id="a",
    kind=ApprovalKind.TOOL_CALL,
    tool_call_id="c",
    tool="add",
    arguments_json="{}",
    arguments_hash="h",
    round=1,
    expire_time=NOON,
)
POSITIONS: list[tuple[Payload, str, int]] = [
    (TurnStarted(message_id="m"), "execution_start-12", 12),
    (TurnRetried(principal="ada", message_id="m"), "execution_start-12", 12),
    (CALLED, "tool_call-12", 12),
    (RECEIVED, "approval_pending-12", 12),
    (a_message(FinishReason.INTERRUPTED), "content_partial-12", 11),
    (AttemptSuperseded(superseded_attempt=1, message_id="m"), "content_partial-12", 11),
    (AttemptFailed(error=ERROR, outcome=AttemptOutcome.RETRYING), "content_partial-12", 11),
    (TurnCompleted(stop_reason=StopReason.FINISHED, usage=Usage(), message_id="m"), "execution_complete-12", 12),
    (TurnFailed(error=ERROR, usage=Usage()), "execution_complete-12", 12),
    (TurnCancelled(reason=CancelReason.REQUESTED, principal="ada", usage=Usage()), "execution_complete-12", 12),
]


def event(payload: Payload) -> Event:
    return Event(sequence=12, turn_id="t", attempt=1, create_time=NOON, payload=payload)


@pytest.mark.parametrize(("payload", "name", "position"), POSITIONS, ids=lambda value: type(value).__name__)
def test_each_mark_has_its_name_and_its_position(payload: Payload, name: str, position: int) -> None:
    mark = checkpoint_of(event(payload), kind=NAMES[type(payload)])
    assert mark is not None
    assert (mark.checkpoint_id, mark.sequence, mark.turn_id, mark.create_time) == (
        name,
        position,
        "t",
        NOON,
    )
    assert mark.kind.lower() == name.removesuffix("-12")
    assert event_named(name) == 12


def test_every_kind_of_mark_is_in_the_table() -> None:
    assert {NAMES[type(payload)] for payload, _, _ in POSITIONS} == MARKS
    assert {name.removesuffix("-12") for _, name, _ in POSITIONS} == {kind.lower() for kind in CheckpointKind}


@pytest.mark.parametrize("finish", sorted(set(FinishReason) - {FinishReason.INTERRUPTED}))
def test_a_whole_message_is_none(finish: FinishReason) -> None:
    assert checkpoint_of(event(a_message(finish)), kind="message_completed") is None


@pytest.mark.parametrize(
    "name", ["", "tool_call", "tool_call-", "tool_call-0", "tool_call-012", "tool_call--1", "tool_call-1x", "-1", "1"]
)
def test_what_is_no_name_names_no_event(name: str) -> None:
    assert event_named(name) == 0
