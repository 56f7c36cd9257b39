"""An agent's version names its content; its policy is read from the top."""

from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest

from turnkeeper.domain.agent import Agent, AgentLimits
from turnkeeper.domain.policy import PolicyRule, usual_ruling
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec

AGENT = Agent(
    name="clerk",
    model="small",
    instructions="Be brief.",
    tools=("send_*", "add"),
    policy=(
        PolicyRule(tool="send_mail", action=PolicyAction.DENY),
        PolicyRule(tool="send_*", action=PolicyAction.NOTIFY, ttl=timedelta(minutes=5)),
    ),
)


def a_tool(name: str, tool_class: ToolClass = ToolClass.IRREVERSIBLE) -> ToolSpec:
    return ToolSpec(name=name, description="", schema_json="{}", tool_class=tool_class, source="python")


@pytest.mark.parametrize(
    ("name", "tool_class", "action"),
    [
        ("send_mail", ToolClass.READ_ONLY, PolicyAction.DENY),
        ("send_fax", ToolClass.IRREVERSIBLE, PolicyAction.NOTIFY),
        ("add", ToolClass.READ_ONLY, PolicyAction.AUTO),
        ("add", ToolClass.IDEMPOTENT, PolicyAction.APPROVE),
        ("add", ToolClass.IRREVERSIBLE, PolicyAction.APPROVE),
        ("SEND_MAIL", ToolClass.IRREVERSIBLE, PolicyAction.APPROVE),
    ],
    ids=[
        "the first rule counts",
        "a pattern",
        "no rule: reading is free",
        "no rule: writing asks",
        "no rule: what cannot be taken back asks",
        "names have a case",
    ],
)
def test_the_policy_decides_what_happens_to_a_call(name: str, tool_class: ToolClass, action: PolicyAction) -> None:
    assert usual_ruling(AGENT.policy, a_tool(name, tool_class)).action is action


@pytest.mark.parametrize(("tool", "offered"), [("send_mail", True), ("add", True), ("adder", False), ("resend", False)])
def test_an_agent_offers_the_tools_that_it_names(tool: str, offered: bool) -> None:
    assert AGENT.offers(tool) is offered


def test_the_same_content_is_the_same_version_anywhere() -> None:
    assert replace(AGENT).version == AGENT.version
    assert Agent(name="assistant", model="small", instructions="Be brief.").version == "7a10c3723868"


CHANGED: dict[str, Any] = {
    "name": "other",
    "model": "large",
    "instructions": "Be long.",
    "description": "Sends.",
    "base_url": "http://127.0.0.1:1/v1",
    "api_key_env": "KEY",
    "temperature": 0.5,
    "limit_field": "max_tokens",
    "omit": ("temperature",),
    "extra_headers": (("x", "1"),),
    "extra_body_json": '{"top_p": 1}',
    "follow_redirects": True,
    "max_concurrent_turns": 3,
    "tools": ("add",),
    "limits": AgentLimits(tool_timeout=timedelta(seconds=31)),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Agent) if field.name != "policy"])
def test_any_change_of_the_content_is_another_version(name: str) -> None:
    changed = replace(AGENT, **{name: CHANGED[name]})
    assert changed.version != AGENT.version
    assert len(changed.version) == 12


def test_another_policy_is_the_same_version_because_rules_are_not_pinned() -> None:
    assert replace(AGENT, policy=AGENT.policy[:1]).version == AGENT.version
