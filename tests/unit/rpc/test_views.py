"""What callers see of an agent's tools: what the policy decides, and why."""

import pytest

from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.pb.v1 import event_pb2
from turnkeeper.rpc.views import tool_view

POLICY = (
    PolicyRule(tool="send_*", action=PolicyAction.DENY),
    PolicyRule(tool="add", action=PolicyAction.AUTO),
)


@pytest.mark.parametrize(
    ("name", "tool_class", "asks", "rule", "action"),
    [
        ("send_mail", ToolClass.IRREVERSIBLE, False, "send_*", event_pb2.POLICY_ACTION_DENY),
        ("send_mail", ToolClass.IRREVERSIBLE, True, "send_*", event_pb2.POLICY_ACTION_DENY),
        ("add", ToolClass.IDEMPOTENT, False, "add", event_pb2.POLICY_ACTION_AUTO),
        ("add", ToolClass.IDEMPOTENT, True, "add", event_pb2.POLICY_ACTION_APPROVE),
        ("look", ToolClass.READ_ONLY, False, "", event_pb2.POLICY_ACTION_AUTO),
        ("refund", ToolClass.IRREVERSIBLE, False, "", event_pb2.POLICY_ACTION_APPROVE),
    ],
)
def test_a_tool_shows_what_happens_to_a_call_and_which_rule_decides(
    name: str, tool_class: ToolClass, asks: bool, rule: str, action: event_pb2.PolicyAction.ValueType
) -> None:
    spec = ToolSpec(
        name=name,
        description="Does it.",
        schema_json='{"type": "object"}',
        tool_class=tool_class,
        source="python:desk",
        asks=asks,
    )
    view = tool_view(spec, POLICY)
    assert (view.name, view.rule, view.action, view.asks) == (name, rule, action, asks)
    assert (view.description, view.schema_json, view.source) == ("Does it.", '{"type": "object"}', "python:desk")
    assert event_pb2.ToolClass.Name(view.tool_class) == f"TOOL_CLASS_{tool_class}"
