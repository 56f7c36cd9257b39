"""A server whose event loop is blocked keeps its turns for a while, and loses them when it is blocked for too long."""

from datetime import timedelta

import pytest

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.server_processes import LEASE, SWEEP, doomed
from turnkeeper.pb.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

BRIEFLY = 3.0
LONG = 7.0
"""Seconds: several leases, and within and beyond the patience that the servers are given."""
SETTINGS = {"lease": timedelta(seconds=LEASE), "sweep": timedelta(seconds=SWEEP)}
SCRIPT = f"""
[[reply]]
match = "^brief"
tool_calls = [{{ name = "block", arguments = {{ label = "brief", seconds = {BRIEFLY} }} }}]

[[reply]]
match = "^long"
tool_calls = [{{ name = "block", arguments = {{ label = "long", seconds = {LONG} }} }}]

[[reply]]
after_tools = 1
text = "Told: {{tool_result}}"
"""


async def test_a_loop_that_is_blocked_for_some_leases_keeps_its_turn(env: Environment) -> None:
    async with doomed(env, "--loop-patience", "30s") as server, harness.connect(server.address) as stubs:
        turn = await _ended(env, stubs, "brief")
    (effect,) = env.tool_control.effects("brief")
    assert effect.pid == server.pid
    assert harness.answer_of(turn) == "Told: brief is done"
    assert "attempt_superseded" not in harness.kinds(await harness.all_events(env.stubs, turn.session_id))


async def test_a_loop_that_is_blocked_for_too_long_loses_its_turn_and_stores_nothing_more(env: Environment) -> None:
    async with doomed(env, "--loop-patience", "1s") as server, harness.connect(server.address) as stubs:
        turn = await _ended(env, stubs, "long")
        events = await harness.all_events(env.stubs, turn.session_id)
        first, second = env.tool_control.effects("long")
        assert (first.pid == server.pid, second.pid == server.pid) == (True, False)
        assert harness.kinds(events).count("attempt_superseded") == 1
        assert harness.kinds(events).count("tool_returned") == 1
        stored = await harness.all_events(stubs, turn.session_id)  # answered once it is not blocked any more
        assert stored == events == await harness.all_events(env.stubs, turn.session_id)
        again = await harness.create_test_session(stubs, agent="worker")
        await harness.send_message_to_session(stubs, again, "brief", wait=20)
        assert await harness.all_events(env.stubs, turn.session_id) == events


async def _ended(env: Environment, stubs: harness.Stubs, words: str) -> chat_pb2.Turn:
    """Sends a message to the server that will be blocked. Returns its turn as the other server ends it."""
    session = await harness.create_test_session(stubs, agent="worker")
    turn = await harness.send_message_to_session(stubs, session, words, wait=0)
    ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id, seconds=30)
    assert ended.state == chat_pb2.TURN_STATE_COMPLETED
    return ended
