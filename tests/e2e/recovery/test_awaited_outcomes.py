"""The new owner of a turn awaits the result of a call that must not run twice, before it asks a person.

The first owner's process is stopped with SIGSTOP for longer than its lease while the tool runs; another server takes
over. Its process goes on in time, too late, or never.
"""

import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import Environment, until_event
from tests.e2e.support.lost_servers import question, returned
from tests.e2e.support.server_processes import doomed as doomed_server
from tests.e2e.support.server_processes import freeze, thaw
from turnkeeper.pb.v1 import chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 4.0
"""Seconds of the server that takes over."""
SETTINGS = {"lease": timedelta(seconds=1.5), "outcome_patience": timedelta(seconds=PATIENCE)}
SCRIPT = r"""
[[reply]]
match = '^fire (?P<label>\S+)'
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
match = '^both (?P<label>\S+)'
after_tools = 0
tool_calls = [
    { name = "hold_irreversible", arguments = { label = "{label}" } },
    { name = "hold_idempotent", arguments = { label = "{label}-again" } },
]

[[reply]]
text = "Told: {tool_result}"
"""
SUPERSEDED = "attempt_superseded"


@pytest_asyncio.fixture(loop_scope="module")
async def owner(env: Environment) -> AsyncIterator[harness.ServerProcess]:
    async with doomed_server(env) as server:
        yield server


async def frozen_while_running(
    env: Environment, owner: harness.ServerProcess, words: str, *labels: str
) -> chat_pb2.Turn:
    """Stops a turn's owner while its tools run. Returns the turn as soon as another server has taken it over."""
    async with harness.connect(owner.address) as stubs:
        session = await harness.create_test_session(stubs, agent="worker")
        turn = await harness.send_message_to_session(stubs, session, words, wait=0)
        for label in labels:
            effects = await env.tool_control.started(label)
            assert [effect.pid for effect in effects] == [owner.pid]
        freeze(owner)
    await until_event(env.stubs, session, SUPERSEDED)
    return turn


async def kinds(env: Environment, turn: chat_pb2.Turn) -> list[str]:
    return harness.kinds(await harness.all_events(env.stubs, turn.session_id))


async def test_i5_the_result_of_an_owner_that_goes_on_in_time_answers_and_no_person_is_asked(
    env: Environment, owner: harness.ServerProcess
) -> None:
    turn = await frozen_while_running(env, owner, "fire late", "late")
    thaw(owner)
    env.tool_control.release("late")
    ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
    assert harness.answer_of(ended) == "Told: late is done"
    assert "approval_requested" not in await kinds(env, turn)
    (result,) = await returned(env, turn)
    assert (result.outcome, result.started) == (event_pb2.TOOL_OUTCOME_OK, True)
    assert len(env.tool_control.effects("late")) == 1
    await check(env.mongo_uri, env.database)


async def test_i5_an_owner_that_never_goes_on_leads_to_one_question(
    env: Environment, owner: harness.ServerProcess
) -> None:
    turn = await frozen_while_running(env, owner, "fire never", "never")
    began = time.monotonic()
    await question(env, turn)
    assert time.monotonic() - began > PATIENCE - 1
    thaw(owner)
    assert (await kinds(env, turn)).count("approval_requested") == 1
    assert len(env.tool_control.effects("never")) == 1


async def test_i5_what_may_start_again_does_so_at_once(env: Environment, owner: harness.ServerProcess) -> None:
    turn = await frozen_while_running(env, owner, "both mixed", "mixed", "mixed-again")
    first, second = await env.tool_control.started("mixed-again", times=2)
    assert first.key == second.key
    env.tool_control.release("mixed-again")
    await until_event(env.stubs, turn.session_id, "tool_returned")
    thaw(owner)
    env.tool_control.release("mixed")
    ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
    assert ended.state == chat_pb2.TURN_STATE_COMPLETED
    assert sorted(result.tool for result in await returned(env, turn)) == ["hold_idempotent", "hold_irreversible"]
    assert len(env.tool_control.effects("mixed")) == 1


async def test_i12_a_turn_that_awaits_an_outcome_is_cancelled_at_once(
    env: Environment, owner: harness.ServerProcess
) -> None:
    turn = await frozen_while_running(env, owner, "fire cancelled", "cancelled")
    cancel = chat_pb2.CancelTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
    await env.stubs.chat.CancelTurn(cancel)
    began = time.monotonic()
    ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
    assert ended.state == chat_pb2.TURN_STATE_CANCELLED
    assert time.monotonic() - began < PATIENCE / 2
    thaw(owner)
    (result,) = await returned(env, turn)
    assert result.started
    assert result.outcome in (event_pb2.TOOL_OUTCOME_CANCELLED, event_pb2.TOOL_OUTCOME_UNKNOWN)
