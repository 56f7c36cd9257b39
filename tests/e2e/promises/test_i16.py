"""Promise I16: history can always be sent to a model: whatever ended a turn, every tool call has its one result.

The request to the model with the next message is checked. (Every module's own server checks the pairs of all
that its model ever received; see `conftest.py`.)
"""

import asyncio
from collections.abc import Sequence

import pytest

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment, check_pairs, transcript, until_event
from turnkeeper.pb.v1 import chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^silent'
fail = "slow_first_token"
times = 1

[[reply]]
match = '^stall'
text = "Once upon a time there was"
chunk = 5
fail = "stall"
fail_after = 2
times = 1

[[reply]]
match = '^limited'
fail = "rate_limit"
retry_after = "2.1"
times = 1

[[reply]]
match = '^calls (?P<label>\S+)'
text = "Let me see."
tool_calls = [
    { name = "add", arguments = { a = 1, b = 2 } },
    { name = "hold_irreversible", arguments = { label = "{label}-fire" } },
    { name = "hold_idempotent", arguments = { label = "{label}-put" } },
    { name = "no_such_tool" },
    { name = "add", arguments = "not JSON" },
]

[[reply]]
match = '^ask (?P<label>\S+)'
tool_calls = [
    { name = "act", arguments = { label = "{label}" } },
    { name = "add", arguments = { a = 1, b = 2 } },
    { name = "send_message", arguments = { to = "Ada", text = "no" } },
]

[[reply]]
match = '^same ids'
text = "Twice."
tool_calls = [
    { name = "add", arguments = { a = 1, b = 2 }, id = "call_1" },
    { name = "add", arguments = { a = 3, b = 4 }, id = "call_1" },
]

[[reply]]
match = '^then fail'
tool_calls = [{ name = "add", arguments = { a = 1, b = 2 } }]

[[reply]]
match = '^then fail'
after_tools = 1
fail = "bad_request"

[[reply]]
text = "You said: {user}"
"""
REACHED = {
    "silent at the kill": ("turn_started", "talker"),
    "stall at the kill": ("content_delta", "talker"),
    "limited at the kill": ("attempt_failed", "stubborn"),
    "calls at-the-kill": ("tool_started", "worker"),
    "ask at-the-kill": ("approval_requested", "asker"),
}
"""Messages, and the event after which their server is killed."""


async def sendable(env: Environment, session: str, words: str) -> list[dict[str, object]]:
    """Sends the next message and checks the model's request for it. Returns that request's messages."""
    turn = await harness.send_message_to_session(env.stubs, session, words)
    assert harness.answer_of(turn) == f"You said: {words}"
    (request_messages,) = [messages for messages in env.model_requests(words) if messages[-1]["content"] == words]
    check_pairs(request_messages)
    return request_messages


def results(request_messages: Sequence[dict[str, object]]) -> list[str]:
    return [line.removeprefix("tool: ") for line in transcript(request_messages) if line.startswith("tool: ")]


class TestI16:
    async def test_i16_after_a_kill_at_every_stage_of_a_turn(self, env: Environment) -> None:
        sessions: dict[str, tuple[str, str]] = {}
        async with harness.server_process(
            env.mongo_uri,
            env.database,
            env.model,
            flags=("--agents", str(AGENTS), "--lease", "1s"),
            variables=env.tool_control.variables,
        ) as doomed:
            async with harness.connect(doomed.address) as stubs:
                for message, (kind, agent) in REACHED.items():
                    session = await harness.create_test_session(stubs, agent=agent)
                    turn = await harness.send_message_to_session(stubs, session, message, wait=0)
                    await until_event(stubs, session, kind)
                    sessions[message] = (session, turn.turn_id)
                await env.tool_control.started("at-the-kill-fire")
            await doomed.kill()
        env.tool_control.release("at-the-kill-put")
        for message, (session, turn_id) in sessions.items():
            ended = await harness.wait_for_turn(env.stubs, session, turn_id)
            if message.startswith("ask"):
                assert ended.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
                await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))
            elif message.startswith("calls"):
                assert ended.state == chat_pb2.TURN_STATE_AWAITING_OUTCOME
                await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))
            else:
                assert harness.answer_of(ended) == f"You said: {message}"
            request_messages = await sendable(env, session, f"after {message}")
            assert transcript(request_messages).count(f"user: {message}") == 1

    async def test_i16_after_a_cancellation_while_tools_run(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, "calls cancelled", wait=0)
        await env.tool_control.started("cancelled-fire")
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        request_messages = await sendable(env, session, "after the cancellation")
        assert len(results(request_messages)) == 5
        for label in ("cancelled-fire", "cancelled-put"):
            env.tool_control.release(label)

    async def test_i16_after_a_late_result_of_a_cancelled_call(self, env: Environment) -> None:
        """The tool ends after its turn was cancelled: its result is no second answer."""
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, "calls late", wait=0)
        await env.tool_control.started("late-fire")
        cancel = chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id)
        call = asyncio.ensure_future(env.stubs.chat.CancelTurn(cancel))
        for label in ("late-fire", "late-put"):
            env.tool_control.release(label)
        await call
        assert len(results(await sendable(env, session, "after the late result"))) == 5

    @pytest.mark.parametrize("how", ["reject", "interrupt", "cancel"])
    async def test_i16_after_an_approval_that_was_not_given(self, env: Environment, how: str) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, f"ask {how}")
        words = f"after {how}"
        if how == "reject":
            await harness.decide(env.stubs, await harness.wait_for_approval(env.stubs, session), approve=False)
            await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        if how == "interrupt":
            await harness.send_message_to_session(env.stubs, session, "stop it", if_busy=chat_pb2.IF_BUSY_INTERRUPT)
        if how == "cancel":
            await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        request_messages = await sendable(env, session, words)
        assert len(results(request_messages)) == 3
        assert not env.tool_control.effects(how)

    async def test_i16_after_a_failure_behind_a_tool(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, "then fail", wait=0)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_FAILED
        assert results(await sendable(env, session, "after the failure")) == ["3.0"]

    async def test_i16_calls_that_a_model_gave_one_id_stay_apart(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        for words in ("same ids", "same ids again"):
            turn = await harness.send_message_to_session(env.stubs, session, words)
            assert turn.state == chat_pb2.TURN_STATE_COMPLETED
        request_messages = await sendable(env, session, "after the same ids")
        assert len(results(request_messages)) == 4
        events = await harness.all_events(env.stubs, session)
        ids = [event.tool_called.tool_call_id for event in events if event.HasField("tool_called")]
        assert len(set(ids)) == 4

    async def test_i16_results_name_why_there_is_none(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        await harness.send_message_to_session(env.stubs, session, "calls named", wait=0)
        await env.tool_control.started("named-fire")
        await env.tool_control.started("named-put")
        for label in ("named-fire", "named-put"):
            env.tool_control.release(label)
        await until_event(env.stubs, session, "turn_completed")
        events = await harness.all_events(env.stubs, session)
        outcomes = [event.tool_returned.outcome for event in events if event.HasField("tool_returned")]
        assert sorted(outcomes) == sorted(
            [
                event_pb2.TOOL_OUTCOME_NOT_FOUND,
                event_pb2.TOOL_OUTCOME_INVALID_ARGUMENTS,
                *[event_pb2.TOOL_OUTCOME_OK] * 3,
            ]
        )
