"""EndSession at every stage: turns are cancelled, approvals withdrawn, watches ended, and nothing runs any more."""

import asyncio

import grpc
import pytest

from tests import harness
from tests.e2e.support.environment import Environment, check_pairs, until_event
from tests.status_details import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, message_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = "^stall"
text = "Once upon a time there was"
chunk = 5
fail = "stall"
fail_after = 2

[[reply]]
match = "^limited"
fail = "rate_limit"
retry_after = 60

[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [
    { name = "hold_irreversible", arguments = { label = "{label}-1" } },
    { name = "hold_reading", arguments = { label = "{label}-2" } },
    { name = "act", arguments = { label = "{label}-3" } },
]

[[reply]]
match = '^do (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
ENDED = session_pb2.SESSION_STATE_ENDED


async def end(stubs: harness.Stubs, session: str, reason: str = "") -> session_pb2.EndSessionResponse:
    return await stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session, reason=reason))


async def ended_at(env: Environment, message: str, kind: str, *, agent: str) -> tuple[str, list[event_pb2.Event]]:
    """Sends a message, ends the session after an event of this kind, and checks a watcher. Returns id and log."""
    session = await harness.create_test_session(env.stubs, agent=agent)
    watch = env.stubs.sessions.WatchEvents(
        session_pb2.WatchEventsRequest(session_id=session, follow=True, types=["tool_called"])
    )
    turn = await harness.send_message_to_session(env.stubs, session, message, wait=0)
    await until_event(env.stubs, session, kind)
    response = await end(env.stubs, session, "enough")
    assert response.session.state == ENDED
    assert (response.session.active_turn_id, response.session.queued_turns) == ("", 0)
    ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    assert ended.state == chat_pb2.TURN_STATE_CANCELLED
    async with asyncio.timeout(10):
        async for _ in watch:
            pass
    assert await watch.code() == grpc.StatusCode.OK
    events = await harness.all_events(env.stubs, session)
    assert events[-1].session_ended.reason == "enough"
    assert events[-2].turn_cancelled.reason == event_pb2.CANCEL_REASON_SESSION_ENDED
    await check_closed(env, session, response)
    return session, events


async def check_closed(env: Environment, session: str, response: session_pb2.EndSessionResponse) -> None:
    """Asserts that the session takes no message, can be ended again, has paired calls, and that its log is closed."""
    with refused("SESSION_NOT_ACTIVE") as refusal:
        await harness.send_message_to_session(env.stubs, session, "hello?")
    assert refusal.details.status == grpc.StatusCode.FAILED_PRECONDITION
    again = await end(env.stubs, session, "enough, really")
    assert again.sequence == 0
    assert again.session == response.session
    listed = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
    check_pairs([_as_sent(message) for message in listed.messages])
    assert len(await harness.all_events(env.stubs, session)) == response.session.last_sequence


def _as_sent(message: message_pb2.Message) -> dict[str, object]:
    return {
        "role": message_pb2.Role.Name(message.role).removeprefix("ROLE_").lower(),
        "tool_call_id": message.tool_call_id,
        "tool_calls": [{"id": request.tool_call_id} for request in message.tool_requests],
    }


class TestEndSession:
    async def test_before_its_first_message(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        response = await end(env.stubs, session)
        assert harness.kinds(await harness.all_events(env.stubs, session)) == ["session_created", "session_ended"]
        assert response.sequence == 2
        await check_closed(env, session, response)

    async def test_between_turns(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        await harness.send_message_to_session(env.stubs, session, "hello")
        response = await end(env.stubs, session)
        assert "turn_cancelled" not in harness.kinds(await harness.all_events(env.stubs, session))
        await check_closed(env, session, response)

    async def test_in_mid_message(self, env: Environment) -> None:
        await ended_at(env, "stall here", "content_delta", agent="talker")
        await env.model.exchanges.until(lambda exchanges: all(exchange.outcome != "playing" for exchange in exchanges))

    async def test_while_it_backs_off(self, env: Environment) -> None:
        await ended_at(env, "limited here", "attempt_failed", agent="stubborn")

    async def test_while_it_waits_for_an_approval(self, env: Environment) -> None:
        session, events = await ended_at(env, "do unapproved", "approval_requested", agent="asker")
        assert "approval_withdrawn" in harness.kinds(events)
        listed = await env.stubs.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(session_id=session))
        assert [approval.state for approval in listed.approvals] == [approval_pb2.APPROVAL_STATE_WITHDRAWN]
        assert not env.tool_control.effects("unapproved")

    async def test_while_tools_run(self, env: Environment) -> None:
        _, events = await ended_at(env, "hold on", "tool_started", agent="worker")
        for label in ("on-1", "on-2"):
            env.tool_control.release(label)
        returned = [event.tool_returned for event in events if event.HasField("tool_returned")]
        assert [result.outcome for result in returned] == [event_pb2.TOOL_OUTCOME_CANCELLED] * 3
        assert [result.started for result in returned] == [True, True, False]
        assert not env.tool_control.effects("on-3")

    async def test_with_a_queue(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turns = [await harness.send_message_to_session(env.stubs, session, "hold queue", wait=0)]
        for words in ("never one", "never two"):
            queued = await harness.send_message_to_session(
                env.stubs, session, words, wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
            )
            turns.append(queued)
        response = await end(env.stubs, session)
        ended = [await harness.wait_for_turn(env.stubs, session, turn.turn_id) for turn in turns]
        assert {turn.state for turn in ended} == {chat_pb2.TURN_STATE_CANCELLED}
        await check_closed(env, session, response)
        assert not env.model_requests("never")

    async def test_on_another_server_than_the_one_that_runs_its_turn(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        await harness.send_message_to_session(env.stubs, session, "hold far", wait=0)
        await env.tool_control.started("far-1")
        async with env.another() as other:
            response = await end(other, session)
            assert response.session.state == ENDED
        for label in ("far-1", "far-2"):
            env.tool_control.release(label)
        await check_closed(env, session, response)
        assert not env.tool_control.effects("far-3")

    async def test_what_its_turns_used_is_kept(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, "do the sums")
        response = await end(env.stubs, session)
        assert response.session.usage == turn.usage
        assert response.session.usage.model_calls == 1

    async def test_a_retry_of_its_last_turn_is_refused(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, "do retry")
        await end(env.stubs, session)
        request = chat_pb2.RetryTurnRequest(
            session_id=session, turn_id=turn.turn_id, request_id=harness.new_request_id()
        )
        with refused("SESSION_NOT_ACTIVE"):
            await env.stubs.chat.RetryTurn(request)
