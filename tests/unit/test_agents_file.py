"""A file of agents: what it can say, and how a mistake in it is named."""

from datetime import timedelta
from pathlib import Path

import pytest

from turnkeeper import agents_file
from turnkeeper.domain.agent import Agent, AgentLimits, PolicyRule
from turnkeeper.domain.tool import PolicyAction
from turnkeeper.errors import AgentConfigError

FULL = """
[[agent]]
name = "clerk-2"
model = "large"
instructions = "Be careful."
description = "Sends."
base_url = "http://127.0.0.1:8000/v1"
api_key_env = "CLERK_KEY"
temperature = 0.2
tools = ["send_*", "add"]

[agent.limits]
max_iterations = 3
max_output_tokens = 0
max_attempts = 2
tool_timeout = "1.5s"
parallel_tools = 1

[[agent.policy]]
tool = "send_mail"
action = "deny"

[[agent.policy]]
tool = "*"
action = "approve"
ttl = "7d"

[[agent]]
name = "plain"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agents.toml"


def test_a_file_with_every_field(file: Path) -> None:
    file.write_text(FULL)
    assert agents_file.load(file, default_model="small") == {
        "clerk-2": Agent(
            name="clerk-2",
            model="large",
            instructions="Be careful.",
            description="Sends.",
            base_url="http://127.0.0.1:8000/v1",
            api_key_env="CLERK_KEY",
            temperature=0.2,
            tools=("send_*", "add"),
            policy=(
                PolicyRule(tool="send_mail", action=PolicyAction.DENY),
                PolicyRule(tool="*", action=PolicyAction.APPROVE, ttl=timedelta(days=7)),
            ),
            limits=AgentLimits(
                max_iterations=3,
                max_output_tokens=0,
                max_attempts=2,
                tool_timeout=timedelta(seconds=1.5),
                parallel_tools=1,
            ),
        ),
        "plain": Agent(name="plain", model="small"),
    }


def test_the_samples_that_come_with_the_service() -> None:
    samples = agents_file.load(agents_file.SAMPLES, default_model="small")
    assert set(samples) == {"assistant", "clerk"}
    assert all(agent.model == "small" and agent.description for agent in samples.values())


ONE = '[[agent]]\nname = "clerk"\n'


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("[[agent", "", "cannot be read as TOML"),
        ("", "", "has no [[agent]]"),
        ("agent = 5", "", "has no [[agent]]"),
        ("agent = [5]", ", agent 1", "must be a table"),
        ("[[agents]]\nname = 'clerk'", "", "no key agents; the keys are agent"),
        ("[[agent]]\nmodel = 'x'", ", agent 1", "name must match"),
        ("[[agent]]\nname = 'The Clerk'", ", agent 1", "name must match"),
        ("[[agent]]\nname = 5", ", agent 1", "name must match"),
        (ONE + ONE, "", "two agents named clerk"),
        (ONE + "modell = 'x'", ", agent 1", "no key modell; the keys are"),
        (ONE + "model = 5", ", agent 1 (clerk)", "model must be a string"),
        (ONE + "instructions = ['x']", ", agent 1 (clerk)", "instructions must be a string"),
        (ONE + "tools = 'add'", ", agent 1 (clerk)", "tools must be a list"),
        (ONE + "tools = [1]", ", agent 1 (clerk)", "tools must be a list"),
        (ONE + "temperature = 'hot'", ", agent 1 (clerk)", "temperature must be a number"),
        (ONE + "temperature = true", ", agent 1 (clerk)", "temperature must be a number"),
        (ONE + "temperature = nan", ", agent 1 (clerk)", "temperature must be a number"),
        (ONE + "limits = 5", ", agent 1 (clerk), limits", "must be a table"),
        (ONE + "[agent.limits]\nspeed = 1", ", agent 1 (clerk), limits", "no key speed"),
        (
            ONE + "[agent.limits]\nmax_iterations = 0",
            ", agent 1 (clerk), limits",
            "max_iterations must be a whole number of at least 1",
        ),
        (ONE + "[agent.limits]\nmax_iterations = true", ", agent 1 (clerk), limits", "max_iterations must be"),
        (
            ONE + "[agent.limits]\nmax_output_tokens = -1",
            ", agent 1 (clerk), limits",
            "max_output_tokens must be a whole number of at least 0",
        ),
        (ONE + "[agent.limits]\ntool_timeout = 5", ", agent 1 (clerk), limits", "tool_timeout must be a duration"),
        (ONE + "[agent.limits]\ntool_timeout = '0s'", ", agent 1 (clerk), limits", "tool_timeout must be a duration"),
        (ONE + "policy = 5", ", agent 1 (clerk)", "policy must be a list"),
        (ONE + "[agent.policy]\ntool = '*'\naction = 'auto'", ", agent 1 (clerk)", "policy must be a list"),
        (ONE + "[[agent.policy]]\ntool = '*'", ", agent 1 (clerk), policy 1", "these actions: auto, notify"),
        (ONE + "[[agent.policy]]\naction = 'auto'", ", agent 1 (clerk), policy 1", "it needs a tool"),
        (ONE + "[[agent.policy]]\ntool = '*'\naction = 'ask'", ", agent 1 (clerk), policy 1", "these actions"),
        (ONE + "[[agent.policy]]\ntool = '*'\naction = 'AUTO'", ", agent 1 (clerk), policy 1", "these actions"),
        (ONE + "[[agent.policy]]\ntool = '*'\nwhen = 'now'", ", agent 1 (clerk), policy 1", "no key when"),
        (
            ONE + "[[agent.policy]]\ntool = '*'\naction = 'approve'\nttl = 'never'",
            ", agent 1 (clerk), policy 1: ttl",
            "must be a duration",
        ),
        (
            ONE + "[[agent.policy]]\ntool = '*'\naction = 'approve'\nttl = '99999999999999999999d'",
            ", agent 1 (clerk), policy 1: ttl",
            "must be a duration",
        ),
    ],
)
def test_a_mistake_is_named_by_file_agent_and_key(file: Path, text: str, where: str, what: str) -> None:
    file.write_text(text)
    with pytest.raises(AgentConfigError) as raised:
        agents_file.load(file, default_model="small")
    assert raised.value.message.startswith(f"{file}{where}")
    assert what in raised.value.message


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(AgentConfigError, match="There is no file"):
        agents_file.load(file, default_model="small")


def test_a_folder_or_a_file_of_bytes_is_refused(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    for path in (file, tmp_path):
        with pytest.raises(AgentConfigError, match="cannot be read"):
            agents_file.load(path, default_model="small")
