"""RetryTurn: the session's last turn, in place, after it failed or was cancelled; anything else is refused."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest

from tests import harness
from tests.e2e.support.environment import Environment, transcript, until_event
from tests.status_details import refused
from turnkeeper.domain.turn import Turn
from turnkeeper.pb.v1 import chat_pb2, session_pb2
from turnkeeper.store.mongo.store import MongoStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = "^flaky one"
times = 1
fail = "bad_request"

[[reply]]
match = "^flaky two"
times = 1
fail = "bad_request"

[[reply]]
match = "^broken"
fail = "bad_request"

[[reply]]
match = '^half (?P<label>\w+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = "^half done"
after_tools = 1
times = 1
fail = "bad_request"

[[reply]]
match = "^half counted"
after_tools = 1
times = 1
fail = "bad_request"

[[reply]]
match = "^stall"
times = 1
text = "Once upon a time there was"
chunk = 5
fail = "stall"
fail_after = 2

[[reply]]
match = "^silent"
fail = "slow_first_token"

[[reply]]
text = "You said: {user}"
usage = { input_tokens = 10, output_tokens = 1 }
"""


async def failed(env: Environment, message: str, *, agent: str = "talker") -> tuple[str, chat_pb2.Turn]:
    """Creates a session whose last turn failed."""
    session = await harness.create_test_session(env.stubs, agent=agent)
    turn = await harness.send_message_to_session(env.stubs, session, message, wait=0)
    ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    assert ended.state == chat_pb2.TURN_STATE_FAILED
    return session, ended


class TestRetryTurn:
    async def test_a_failed_turn_goes_on_in_place(self, env: Environment) -> None:
        session, turn = await failed(env, "flaky one")
        response = await harness.retry(env.stubs, session, turn.turn_id)
        assert response.turn.turn_id == turn.turn_id
        assert response.turn.attempt > turn.attempt
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert (ended.state, harness.answer_of(ended)) == (chat_pb2.TURN_STATE_COMPLETED, "You said: flaky one")
        assert not ended.HasField("error")
        kinds = harness.kinds(await harness.all_events(env.stubs, session))
        assert kinds[response.sequence - 1] == "turn_retried"
        assert kinds.count("message_received") == 1, "the user's message is not said twice"
        assert transcript(env.model_requests("flaky one")[-1])[1:] == ["user: flaky one"]

    async def test_it_goes_on_after_the_last_committed_step(self, env: Environment) -> None:
        session, turn = await failed(env, "half done", agent="worker")
        await harness.retry(env.stubs, session, turn.turn_id)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert len(env.tool_control.effects("done")) == 1, "the tool that had run does not run again"
        assert transcript(env.model_requests("half done")[-1]) == ["user: half done", "call: act", "tool: done is done"]

    async def test_it_may_fail_again_and_be_retried_again(self, env: Environment) -> None:
        session, turn = await failed(env, "broken")
        for _ in range(2):
            await harness.retry(env.stubs, session, turn.turn_id)
            ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
            assert ended.state == chat_pb2.TURN_STATE_FAILED
        kinds = harness.kinds(await harness.all_events(env.stubs, session))
        assert kinds.count("turn_failed") == 3

    async def test_a_turn_cancelled_in_mid_message_is_answered_in_full(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "stall once", wait=0)
        await until_event(env.stubs, session, "content_delta")
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        await harness.retry(env.stubs, session, turn.turn_id)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "You said: stall once"

    async def test_a_turn_cancelled_in_the_queue_reaches_the_model_when_it_is_retried(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        first = await harness.send_message_to_session(env.stubs, session, "silent first", wait=0)
        queued = await harness.send_message_to_session(
            env.stubs, session, "out of the queue", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )
        for turn in (queued, first):
            await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        await harness.retry(env.stubs, session, queued.turn_id)
        ended = await harness.wait_for_turn(env.stubs, session, queued.turn_id)
        assert harness.answer_of(ended) == "You said: out of the queue"

    async def test_what_a_retried_turn_used_is_counted_once(self, env: Environment) -> None:
        session, turn = await failed(env, "half counted", agent="worker")
        await harness.retry(env.stubs, session, turn.turn_id)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        response = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        assert response.session.usage == ended.usage
        assert response.session.usage.tool_calls == 1

    async def test_sending_the_message_again_gets_the_retried_turn(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        request_id = harness.new_request_id()
        with refused("AGENT_CONFIG_ERROR") as refusal:
            await harness.send_message_to_session(env.stubs, session, "flaky two", request_id=request_id)
        with refused("AGENT_CONFIG_ERROR"):
            await harness.send_message_to_session(env.stubs, session, "flaky two", request_id=request_id)
        await harness.retry(env.stubs, session, refusal.details.detail.turn_id)
        turn = await harness.send_message_to_session(env.stubs, session, "flaky two", request_id=request_id)
        assert harness.answer_of(turn) == "You said: flaky two"


class TestRefusedRetries:
    async def test_a_turn_that_is_not_the_last(self, env: Environment) -> None:
        session, turn = await failed(env, "broken early")
        await harness.send_message_to_session(env.stubs, session, "something else")
        with refused("TURN_NOT_RETRYABLE") as refusal:
            await harness.retry(env.stubs, session, turn.turn_id)
        assert refusal.details.status == grpc.StatusCode.FAILED_PRECONDITION

    async def test_a_turn_that_ended_well(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "fine")
        with refused("TURN_NOT_RETRYABLE") as refusal:
            await harness.retry(env.stubs, session, turn.turn_id)
        assert refusal.details.metadata["state"] == "COMPLETED"

    async def test_a_turn_that_runs(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "silent still", wait=0)
        with refused("TURN_NOT_RETRYABLE"):
            await harness.retry(env.stubs, session, turn.turn_id)

    async def test_a_failed_turn_behind_which_others_wait(self, env: Environment) -> None:
        session, turn = await failed(env, "broken before")
        await harness.send_message_to_session(env.stubs, session, "silent now", wait=0)
        with refused("TURN_NOT_RETRYABLE"):
            await harness.retry(env.stubs, session, turn.turn_id)

    async def test_a_turn_of_another_session(self, env: Environment) -> None:
        _, turn = await failed(env, "broken there")
        other = await harness.create_test_session(env.stubs, agent="talker")
        with refused("TURN_NOT_FOUND") as refusal:
            await harness.retry(env.stubs, other, turn.turn_id)
        assert refusal.details.status == grpc.StatusCode.NOT_FOUND

    async def test_a_turn_that_was_the_last_when_it_was_looked_up(self, env: Environment) -> None:
        session, turn = await failed(env, "broken once")
        meanwhile: list[Callable[[], Awaitable[object]]] = []

        class Interrupted(MongoStore):
            async def turns(self, *args: Any, **kwargs: Any) -> Sequence[Turn]:
                turns = await super().turns(*args, **kwargs)
                if meanwhile:
                    await meanwhile.pop()()
                return turns

        async with env.another(new_store=Interrupted) as stubs:
            meanwhile.append(lambda: harness.send_message_to_session(env.stubs, session, "in between"))
            with refused("TURN_NOT_RETRYABLE") as refusal:
                await harness.retry(stubs, session, turn.turn_id)
        assert not meanwhile
        assert refusal.details.metadata["state"] == "FAILED"
        assert "turn_retried" not in harness.kinds(await harness.all_events(env.stubs, session))
