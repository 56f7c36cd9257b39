"""Failures of a model: what the caller gets of them, and how the turn recovers by itself."""

from datetime import timedelta
from itertools import pairwise

import grpc
import pytest
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import Environment, transcript, until_event
from tests.status_details import refused
from turnkeeper.model.delivery import VENDOR_TEXT
from turnkeeper.model.script import ScriptedFailure
from turnkeeper.pb.v1 import chat_pb2, error_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {
    "first_token": timedelta(seconds=1),
    "between_tokens": timedelta(seconds=1),
    "answer_time": timedelta(seconds=2),
}
FAILS = "\n".join(
    f'[[reply]]\nmatch = "^fail {fail}$"\ntext = "Never heard."\nfail = "{fail}"\n' for fail in ScriptedFailure
)
SCRIPT = f"""
{FAILS}

[[reply]]
match = "^filtered"
text = "I should not"
finish_reason = "content_filter"

[[reply]]
match = "^endless$"
text = "This answer comes too slowly to end in time."
chunk = 1
delay = "100ms"

[[reply]]
match = "^cut off"
tool_calls = [{{ name = "act", arguments = {{ label = "cut" }} }}]
finish_reason = "length"

[[reply]]
match = "^wait seven"
fail = "rate_limit"
retry_after = 7

[[reply]]
match = "^wait an hour"
fail = "rate_limit"
retry_after = 3600

[[reply]]
match = "^later one"
fail = "rate_limit"
retry_after = "2.3"
times = 1

[[reply]]
match = "^later two"
fail = "rate_limit"
retry_after = "2.3"
times = 1

[[reply]]
match = "^twice"
fail = "server_error"
times = 2

[[reply]]
match = "^broken off"
text = "This sentence will not"
chunk = 5
fail = "cut"
fail_after = 3
times = 1

[[reply]]
match = "^nudged"
fail = "server_error"
times = 1

[[reply]]
match = "^endless tools"
after_tools = 0
tool_calls = [{{ name = "add", arguments = {{ a = 1, b = 1 }} }}]

[[reply]]
text = "You said: {{user}}"
"""
EXPECTED = {
    ScriptedFailure.RATE_LIMIT: ("LLM_RATE_LIMIT", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ScriptedFailure.QUOTA: ("LLM_RATE_LIMIT", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ScriptedFailure.SERVER_ERROR: ("LLM_API_ERROR", grpc.StatusCode.ABORTED),
    ScriptedFailure.BAD_REQUEST: ("AGENT_CONFIG_ERROR", grpc.StatusCode.FAILED_PRECONDITION),
    ScriptedFailure.CONTEXT_LENGTH: ("LLM_TOKEN_LIMIT", grpc.StatusCode.INVALID_ARGUMENT),
    ScriptedFailure.CONTENT_FILTER: ("LLM_CONTENT_FILTER", grpc.StatusCode.INVALID_ARGUMENT),
    ScriptedFailure.UNAUTHORIZED: ("AGENT_CONFIG_ERROR", grpc.StatusCode.FAILED_PRECONDITION),
    ScriptedFailure.NOT_FOUND: ("AGENT_CONFIG_ERROR", grpc.StatusCode.FAILED_PRECONDITION),
    ScriptedFailure.REFUSE: ("LLM_API_ERROR", grpc.StatusCode.ABORTED),
    ScriptedFailure.EMPTY: ("LLM_API_ERROR", grpc.StatusCode.ABORTED),
    ScriptedFailure.SLOW_FIRST_TOKEN: ("LLM_TIMEOUT", grpc.StatusCode.ABORTED),
    ScriptedFailure.STALL: ("LLM_TIMEOUT", grpc.StatusCode.ABORTED),
    ScriptedFailure.COMMENTS: ("LLM_TIMEOUT", grpc.StatusCode.ABORTED),
    ScriptedFailure.CUT: ("LLM_API_ERROR", grpc.StatusCode.ABORTED),
    ScriptedFailure.BAD_JSON: ("LLM_API_ERROR", grpc.StatusCode.ABORTED),
    ScriptedFailure.ERROR_EVENT: ("LLM_API_ERROR", grpc.StatusCode.ABORTED),
    ScriptedFailure.NO_DONE: ("LLM_API_ERROR", grpc.StatusCode.ABORTED),
    ScriptedFailure.NO_FINISH: ("LLM_API_ERROR", grpc.StatusCode.ABORTED),
}
RETRYING, EXHAUSTED = event_pb2.ATTEMPT_OUTCOME_RETRYING, event_pb2.ATTEMPT_OUTCOME_EXHAUSTED


async def failures(env: Environment, session: str) -> list[event_pb2.Event]:
    """Returns the session's failed attempts."""
    return [event for event in await harness.all_events(env.stubs, session) if event.HasField("attempt_failed")]


class TestModelFailures:
    @pytest.mark.parametrize("fail", list(ScriptedFailure))
    async def test_each_failure_has_its_code_everywhere(self, env: Environment, fail: ScriptedFailure) -> None:
        reason, status = EXPECTED[fail]
        session = await harness.create_test_session(env.stubs, agent="hasty")
        with refused(reason) as refusal:
            await harness.send_message_to_session(env.stubs, session, f"fail {fail}")
        details = refusal.details
        assert details.status == status
        assert details.detail.session_id == session
        assert VENDOR_TEXT not in details.message + str(details.detail)
        turn = await harness.wait_for_turn(env.stubs, session, details.detail.turn_id)
        assert turn.state == chat_pb2.TURN_STATE_FAILED
        assert (turn.error.code, turn.error.message) == (details.detail.code, details.message)
        events = await harness.all_events(env.stubs, session)
        assert harness.kinds(events)[4:] == ["attempt_failed", "turn_failed"]
        attempt, failed = events[-2].attempt_failed, events[-1].turn_failed
        assert attempt.outcome == EXHAUSTED
        assert attempt.error.code == failed.error.code == details.detail.code
        assert VENDOR_TEXT not in str(events)
        after = await harness.send_message_to_session(env.stubs, session, "still there?")
        assert harness.answer_of(after) == "You said: still there?"
        assert "Never heard." not in str(transcript(env.model_requests("still there?")[-1]))

    @pytest.mark.parametrize(
        ("message", "reason"),
        [("filtered", "LLM_CONTENT_FILTER"), ("endless", "LLM_TIMEOUT"), ("cut off", "LLM_TOKEN_LIMIT")],
    )
    async def test_answers_that_end_badly(self, env: Environment, message: str, reason: str) -> None:
        session = await harness.create_test_session(env.stubs, agent="hasty")
        with refused(reason):
            await harness.send_message_to_session(env.stubs, session, message)

    async def test_a_stream_ends_with_the_turns_error_after_the_turn(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="hasty")
        stream = env.stubs.chat.StreamMessage(
            chat_pb2.StreamMessageRequest(
                session_id=session,
                request_id=harness.new_request_id(),
                content=harness.text_parts("fail context_length"),
            )
        )
        last = chat_pb2.StreamMessageResponse()
        with refused("LLM_TOKEN_LIMIT"):
            async for response in stream:
                last = response
        assert last.turn.state == chat_pb2.TURN_STATE_FAILED
        assert harness.kinds(list(last.events))[-1] == "turn_failed"

    async def test_the_providers_wish_to_wait_reaches_the_caller(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="hasty")
        with refused("LLM_RATE_LIMIT") as refusal:
            await harness.send_message_to_session(env.stubs, session, "wait seven")
        assert refusal.details.retry_after == timedelta(seconds=7)
        assert refusal.details.detail.retry_after.ToTimedelta() == timedelta(seconds=7)
        assert refusal.details.detail.retry == error_pb2.RETRY_ADVICE_RETRY_TURN


class TestErrorRecovery:
    async def test_a_failed_call_is_tried_again_and_the_log_has_the_failure(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="stubborn")
        turn = await harness.send_message_to_session(env.stubs, session, "twice unlucky")
        assert harness.answer_of(turn) == "You said: twice unlucky"
        failed = await failures(env, session)
        assert [event.attempt_failed.outcome for event in failed] == [RETRYING, RETRYING]
        assert all(event.attempt_failed.HasField("retry_delay") for event in failed)
        assert [event.attempt for event in failed] == [1, 2]
        assert turn.attempt == 3
        for before, after in pairwise(failed):
            waited = after.create_time.ToDatetime() - before.create_time.ToDatetime()
            assert waited >= before.attempt_failed.retry_delay.ToTimedelta() - timedelta(milliseconds=2)

    async def test_when_no_tries_are_left_it_has_failed(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="stubborn")
        with refused("LLM_API_ERROR"):
            await harness.send_message_to_session(env.stubs, session, "fail server_error")
        outcomes = [event.attempt_failed.outcome for event in await failures(env, session)]
        assert outcomes == [RETRYING, RETRYING, EXHAUSTED]
        assert len(env.model_requests("fail server_error")) >= 3

    @pytest.mark.parametrize(
        "fail",
        [
            ScriptedFailure.QUOTA,
            ScriptedFailure.BAD_REQUEST,
            ScriptedFailure.CONTEXT_LENGTH,
            ScriptedFailure.CONTENT_FILTER,
        ],
    )
    async def test_what_no_try_would_help_is_not_tried_again(self, env: Environment, fail: ScriptedFailure) -> None:
        session = await harness.create_test_session(env.stubs, agent="stubborn")
        with refused(EXPECTED[fail][0]):
            await harness.send_message_to_session(env.stubs, session, f"fail {fail}")
        assert [event.attempt_failed.outcome for event in await failures(env, session)] == [EXHAUSTED]

    async def test_text_of_a_failed_try_is_no_history_and_the_answer_is_whole(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="stubborn")
        turn = await harness.send_message_to_session(env.stubs, session, "broken off")
        assert harness.answer_of(turn) == "You said: broken off"
        assert [transcript(messages) for messages in env.model_requests("broken off")] == [["user: broken off"]] * 2

    async def test_a_long_wait_lets_go_of_the_lease_and_goes_on_by_itself(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="stubborn")
        turn = await harness.send_message_to_session(env.stubs, session, "later one", wait=0)
        failed = await until_event(env.stubs, session, "attempt_failed")
        assert failed.attempt_failed.retry_delay.ToTimedelta() == timedelta(seconds=2.3)
        response = await env.stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=session, turn_id=turn.turn_id))
        assert response.turn.state == chat_pb2.TURN_STATE_BACKING_OFF
        async with AsyncMongoClient[dict[str, object]](env.mongo_uri) as client:
            head = await client[env.database]["heads"].find_one({"tenant": harness.TENANT, "session_id": session})
        assert head is not None
        assert (head["owner"], head["lease_until"]) == ("", None)
        assert head["wake_at"] is not None
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "You said: later one"
        assert ended.attempt > failed.attempt

    async def test_after_a_long_wait_another_server_may_go_on(self, env: Environment) -> None:
        async with env.another() as other:
            session = await harness.create_test_session(other, agent="stubborn")
            turn = await harness.send_message_to_session(other, session, "later two", wait=0)
            await until_event(other, session, "attempt_failed")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "You said: later two"

    async def test_a_wish_to_wait_too_long_ends_the_turn(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="stubborn")
        with refused("LLM_RATE_LIMIT") as refusal:
            await harness.send_message_to_session(env.stubs, session, "wait an hour")
        assert refusal.details.retry_after == timedelta(hours=1)
        assert [event.attempt_failed.outcome for event in await failures(env, session)] == [EXHAUSTED]

    async def test_other_messages_do_not_shorten_the_wait(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="stubborn")
        turn = await harness.send_message_to_session(env.stubs, session, "nudged", wait=0)
        failed = await until_event(env.stubs, session, "attempt_failed")
        last = await harness.send_message_to_session(
            env.stubs, session, "and another", if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )
        assert last.state == chat_pb2.TURN_STATE_COMPLETED
        events = await harness.all_events(env.stubs, session)
        answered = next(event for event in events if event.HasField("message_completed"))
        assert answered.turn_id == turn.turn_id
        waited = answered.create_time.ToDatetime() - failed.create_time.ToDatetime()
        assert waited >= failed.attempt_failed.retry_delay.ToTimedelta() - timedelta(milliseconds=2)

    async def test_the_limit_of_model_calls_ends_the_turn_and_not_the_session(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        with refused("BUDGET_EXCEEDED") as refusal:
            await harness.send_message_to_session(
                env.stubs, session, "endless tools", limits=chat_pb2.TurnLimits(max_iterations=1)
            )
        assert refusal.details.status == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal.details.metadata["limit"] == "max_iterations"
        assert "google.rpc.QuotaFailure" in refusal.details.types
        after = await harness.send_message_to_session(env.stubs, session, "and now?")
        assert after.state == chat_pb2.TURN_STATE_COMPLETED

    async def test_a_limit_above_the_agents_does_not_count(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(
            env.stubs, session, "plain", limits=chat_pb2.TurnLimits(max_iterations=10**6)
        )
        assert turn.state == chat_pb2.TURN_STATE_COMPLETED

    async def test_a_failed_turns_usage_counts(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        with refused("BUDGET_EXCEEDED"):
            await harness.send_message_to_session(
                env.stubs, session, "endless tools", limits=chat_pb2.TurnLimits(max_iterations=1)
            )
        response = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        assert (response.session.usage.model_calls, response.session.usage.tool_calls) == (1, 1)
