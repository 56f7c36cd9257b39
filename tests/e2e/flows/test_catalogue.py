"""What the catalogue states about a tool holds: tries, result size, users, class."""

import json
from pathlib import Path

import pytest

from tests import harness
from tests.e2e.support.environment import Environment
from turnkeeper.pb.v1 import chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"catalogue": Path(__file__).parents[1] / "support" / "catalogue.toml"}
SCRIPT = r"""
[[reply]]
match = '^stumble (?P<label>\S+) (?P<times>\d) (?P<how>.+)'
tool_calls = [{ name = "stumble", arguments = '{"label": "{label}", "times": {times}, "how": "{how}"}' }]

[[reply]]
match = '^pour (?P<size>\d+)'
tool_calls = [{ name = "pour", arguments = '{"what": "text", "size": {size}}' }]

[[reply]]
match = '^add'
tool_calls = [{ name = "add", arguments = { a = 1, b = 2 } }]

[[reply]]
match = '^act'
tool_calls = [{ name = "act", arguments = { label = "never" } }]

[[reply]]
text = "Told: {tool_result}"
"""
OK, FAILED, NOT_FOUND, TIMED_OUT = (
    event_pb2.TOOL_OUTCOME_OK,
    event_pb2.TOOL_OUTCOME_FAILED,
    event_pb2.TOOL_OUTCOME_NOT_FOUND,
    event_pb2.TOOL_OUTCOME_TIMED_OUT,
)


async def run(env: Environment, text: str, *, agent: str = "worker") -> list[event_pb2.Event]:
    """Sends a message, and returns the session's events once its turn has completed."""
    session = await harness.create_test_session(env.stubs, agent=agent)
    turn = await harness.send_message_to_session(env.stubs, session, text)
    ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    assert ended.state == chat_pb2.TURN_STATE_COMPLETED
    return await harness.all_events(env.stubs, session)


def outcome_of(events: list[event_pb2.Event]) -> int:
    (returned,) = (event.tool_returned for event in events if event.HasField("tool_returned"))
    return returned.outcome


@pytest.mark.parametrize(
    ("label", "times", "how", "starts", "outcome"),
    [
        ("trips", 2, "raises", 3, OK),
        ("hangs", 1, "hangs", 2, OK),
        ("falls", 9, "raises", 3, FAILED),
        ("hangs-on", 9, "hangs", 3, TIMED_OUT),
        ("answers", 1, "says so", 1, FAILED),
    ],
)
async def test_each_start_of_a_call_is_in_the_log(
    env: Environment, label: str, times: int, how: str, starts: int, outcome: int
) -> None:
    events = await run(env, f"stumble {label} {times} {how}")
    started = [event for event in events if event.HasField("tool_started")]
    assert len({event.tool_started.key for event in started}) == 1
    attempts = [event.attempt for event in started]
    assert attempts == sorted(set(attempts)), "each start has a higher attempt"
    effects = env.tool_control.effects(label)
    assert (len(started), len(effects), outcome_of(events)) == (starts, starts, outcome)
    assert {effect.key for effect in effects} == {started[0].tool_started.key}


async def test_a_result_over_the_tools_own_cap_fails(env: Environment) -> None:
    assert outcome_of(await run(env, "pour 1022")) == OK
    events = await run(env, "pour 1023")
    assert outcome_of(events) == FAILED
    assert "more than 1024 bytes" in str(events)


async def test_only_its_users_have_a_tool(env: Environment) -> None:
    assert outcome_of(await run(env, "add for the worker", agent="worker")) == NOT_FOUND
    assert outcome_of(await run(env, "add for the asker", agent="asker")) == OK
    bodies = [json.loads(exchange.body) for exchange in env.model.exchanges.all()]
    for words, has_it in (("add for the worker", False), ("add for the asker", True)):
        (first, *_) = (body for body in bodies if words in str(body["messages"]))
        names = {tool["function"]["name"] for tool in first["tools"]}
        assert ("add" in names) is has_it
        assert "act" not in names, "the catalogue forbids it"


async def test_a_forbidden_tool_never_runs(env: Environment) -> None:
    assert outcome_of(await run(env, "act")) == NOT_FOUND
    assert not env.tool_control.effects("never")
