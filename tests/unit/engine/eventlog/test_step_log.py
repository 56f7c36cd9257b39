"""At level DEBUG the log tells each step of a turn, and which rule of the policy decided; it has no content."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.builders import AGENT, a_session_key, a_turn
from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.domain import event as events
from turnkeeper.domain.event import NewEvent, Payload
from turnkeeper.domain.message import ToolRequest, Usage
from turnkeeper.domain.policy import PolicyRule, usual_ruling
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolOutcome, ToolSpec
from turnkeeper.domain.tool_events import ToolCalled, ToolReturned
from turnkeeper.engine.eventlog.step_log import log_policy, log_steps
from turnkeeper.store.changeset import Changeset, Committed
from turnkeeper.tools.toolbox import CheckedRequest

SECRET = "a secret of the caller's"
AUTO = PolicyRule(tool="search_*", action=PolicyAction.AUTO)


def changeset(*payloads: Payload) -> Changeset:
    return Changeset(
        changeset_id="c",
        tenant="default",
        session_id="session-1",
        last_seq=4,
        fence=None,
        head_fence=0,
        cancel="",
        events=tuple(
            NewEvent(payload=payload, at=datetime.now(UTC), turn_id="turn-1", attempt=2) for payload in payloads
        ),
    )


def test_each_event_is_a_line_with_its_place_and_without_content(caplog: pytest.LogCaptureFixture) -> None:
    called = ToolCalled(
        tool_call_id="call",
        tool="refund",
        arguments_json=SECRET,
        arguments_hash="h",
        action=PolicyAction.APPROVE,
        tool_class=ToolClass.IRREVERSIBLE,
        message_id="m",
    )
    returned = ToolReturned(
        tool_call_id="call",
        tool="refund",
        outcome=ToolOutcome.FAILED,
        result_json=SECRET,
        started=True,
        duration=timedelta(milliseconds=12),
    )
    error = ErrorDetail(code=Code.LLM_API_ERROR, message=SECRET, metadata={"reason": "STALL_TIMEOUT"})
    failed = events.TurnFailed(error=error, usage=Usage())
    with caplog.at_level(logging.DEBUG, "turnkeeper"):
        log_steps(changeset(called, returned, failed), Committed(last_seq=7, fence=1, events=()))
    assert [record.getMessage() for record in caplog.records] == [
        "tool_called refund IRREVERSIBLE APPROVE",
        "tool_returned refund FAILED after 0.012 s",
        "turn_failed LLM_API_ERROR STALL_TIMEOUT",
    ]
    places = [(vars(record)["session"], vars(record)["turn"], vars(record)["sequence"]) for record in caplog.records]
    assert places == [("session-1", "turn-1", 5), ("session-1", "turn-1", 6), ("session-1", "turn-1", 7)]
    caplog.clear()
    with caplog.at_level(logging.INFO, "turnkeeper"):
        log_steps(changeset(failed), Committed(last_seq=5, fence=1, events=()))
    assert caplog.records == []


TEXT = 'tool = "search_*", action = "auto", ttl = "1h"'


@pytest.mark.parametrize(
    ("policy", "asks", "rule", "text"),
    [
        ((), False, "", "no rule covers the call, and it is IRREVERSIBLE"),
        ((), True, "", "no rule covers the call, and it is IRREVERSIBLE"),
        ((PolicyRule(tool="x", action=PolicyAction.DENY), AUTO), False, "search_*", TEXT),
        ((AUTO,), True, "search_*", f"{TEXT}; the tool asks itself"),
        ((replace(AUTO, name="free search"),), False, "free search", TEXT),
    ],
)
def test_the_reason_of_a_decision_names_the_rule_the_class_or_the_tool(
    policy: tuple[PolicyRule, ...], asks: bool, rule: str, text: str
) -> None:
    spec = ToolSpec(
        name="search_web",
        description="",
        schema_json="{}",
        tool_class=ToolClass.IRREVERSIBLE,
        source="python",
        asks=asks,
    )
    ruling = usual_ruling(policy, spec)
    assert (ruling.rule, ruling.rule_text) == (rule, text)


def test_each_decision_of_a_policy_is_a_line_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    spec = ToolSpec(
        name="search_web", description="", schema_json="{}", tool_class=ToolClass.IRREVERSIBLE, source="python"
    )
    client_tool = replace(spec, name="locate", source="client")

    def checked(name: str, spec: ToolSpec | None, problem: str = "") -> CheckedRequest:
        request = ToolRequest(tool_call_id="call", tool=name, arguments_json=SECRET)
        return CheckedRequest(request=request, spec=spec, arguments_json=SECRET, problem=problem)

    requests = [
        replace(checked("search_web", spec), ruling=usual_ruling((AUTO,), spec)),
        checked("search_web", spec, SECRET),
        checked("locate", client_tool),
        checked("x" * 100, None),
    ]
    with caplog.at_level(logging.DEBUG, "turnkeeper"):
        log_policy(replace(AGENT, policy=(AUTO,)), requests, turn=a_turn(a_session_key()))
    assert [record.getMessage() for record in caplog.records] == [
        "policy of assistant on search_web: AUTO: rule search_*: " + TEXT,
        "policy of assistant on search_web: its arguments do not fit",
        "policy of assistant on locate: the client runs it",
        f"policy of assistant on {'x' * 64}: there is no such tool",
    ]
