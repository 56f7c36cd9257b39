"""A session restored to an earlier event: what the model gets from then on, and what may be retried."""

import pytest

from tests import harness
from tests.e2e.support.environment import Environment, check_pairs, transcript
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

TAKEN_BACK = "The session was taken back to before this call's result was known; the call may have run."
SCRIPT = r"""
[[reply]]
match = '^both (?P<label>\S+)'
text = "Let me see."
tool_calls = [{ name = "act", arguments = { label = "{label}" } }, { name = "add", arguments = { a = 1, b = 2 } }]

[[reply]]
match = '^both '
after_tools = 2
text = "Both are done."

[[reply]]
match = '^ask (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""


async def restore(env: Environment, session: str, **at: int | str) -> session_pb2.RestoreCheckpointResponse:
    return await env.stubs.sessions.RestoreCheckpoint(
        session_pb2.RestoreCheckpointRequest(session_id=session, **at)  # type: ignore[arg-type]
    )


async def number_of(env: Environment, session: str, kind: str, *, nth: int = 0) -> int:
    events = await harness.all_events(env.stubs, session)
    return [event.sequence for event in events if event.WhichOneof("payload") == kind][nth]


async def heard_with(env: Environment, session: str, words: str) -> list[str]:
    """Sends the next message. Returns the model's request for it, without the instructions."""
    await harness.send_message_to_session(env.stubs, session, words)
    (request_messages,) = [messages for messages in env.model_requests(words) if messages[-1]["content"] == words]
    check_pairs(request_messages)
    return [line for line in transcript(request_messages) if not line.startswith("system:")]


async def messages(env: Environment, session: str) -> list[str]:
    page = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
    return ["".join(part.text for part in message.content) for message in page.messages]


async def retry(env: Environment, session: str, turn_id: str) -> chat_pb2.Turn:
    await harness.retry(env.stubs, session, turn_id)
    return await harness.wait_for_turn(env.stubs, session, turn_id)


class TestRestoring:
    async def test_the_model_gets_the_messages_up_to_the_fork_and_later_ones(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        for words in ("one", "two", "three"):
            await harness.send_message_to_session(env.stubs, session, words)
        place = await number_of(env, session, "turn_completed")
        before = await harness.all_events(env.stubs, session)
        done = await restore(env, session, sequence=place)
        assert done.sequence == before[-1].sequence + 1
        assert done.session.last_sequence == done.sequence
        after = await harness.all_events(env.stubs, session)
        assert after[:-1] == before, "nothing is erased"
        assert after[-1].session_restored.to_sequence == place
        assert await messages(env, session) == ["one", "You said: one"]
        words = f"four {session}"
        assert await heard_with(env, session, words) == ["user: one", "assistant: You said: one", f"user: {words}"]
        assert await messages(env, session) == ["one", "You said: one", words, f"You said: {words}"]

    async def test_a_turn_that_had_completed_goes_on_after_its_last_whole_step(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, f"both {session}")
        assert turn.state == chat_pb2.TURN_STATE_COMPLETED
        later = await harness.send_message_to_session(env.stubs, session, "later")
        await restore(env, session, sequence=await number_of(env, session, "tool_returned", nth=1))
        with refused("TURN_NOT_RETRYABLE"):
            await retry(env, session, later.turn_id)
        again = await retry(env, session, turn.turn_id)
        assert harness.answer_of(again) == "Both are done."
        requests = env.model_requests(f"both {session}")
        assert requests[-1] == requests[1], "the request is that of then"
        assert len(env.tool_control.effects(session)) == 1, "no tool is started again"
        with refused("TURN_NOT_RETRYABLE"):
            await retry(env, session, turn.turn_id)

    async def test_inside_a_round_of_tools_the_open_calls_are_closed(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, f"both {session}")
        checkpoint = f"tool_call-{await number_of(env, session, 'tool_called', nth=1)}"
        await restore(env, session, checkpoint_id=checkpoint)
        assert (await messages(env, session))[1:] == ["Let me see.", TAKEN_BACK, TAKEN_BACK]
        again = await retry(env, session, turn.turn_id)
        assert harness.answer_of(again) == "Both are done."
        assert transcript(env.model_requests(f"both {session}")[-1])[-2:] == [f"tool: {TAKEN_BACK}"] * 2
        assert len(env.tool_control.effects(session)) == 1

    async def test_a_message_ends_what_could_be_retried(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "one")
        await restore(env, session, sequence=await number_of(env, session, "turn_started"))
        await harness.send_message_to_session(env.stubs, session, "two")
        with refused("TURN_NOT_RETRYABLE"):
            await retry(env, session, turn.turn_id)

    async def test_the_same_place_twice_in_a_row_is_one_restoration(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "one")
        place = await number_of(env, session, "turn_started")
        first, second = [await restore(env, session, sequence=place) for _ in range(2)]
        named = await restore(env, session, checkpoint_id=f"execution_start-{place}")
        assert first == second == named
        await retry(env, session, turn.turn_id)
        assert (await restore(env, session, sequence=place)).sequence > first.sequence

    async def test_i8_a_repeat_with_its_id_never_restores_again(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        await harness.send_message_to_session(env.stubs, session, "one")
        place = await number_of(env, session, "turn_completed")
        request_id = harness.new_request_id()
        first = await restore(env, session, sequence=place, request_id=request_id)
        await harness.send_message_to_session(env.stubs, session, "two")
        assert (await restore(env, session, sequence=place, request_id=request_id)).sequence == first.sequence
        assert await messages(env, session) == ["one", "You said: one", "two", "You said: two"]
        with refused("REQUEST_ID_REUSED"):
            await restore(env, session, sequence=place - 1, request_id=request_id)

    async def test_i16_every_place_of_a_rich_log_can_be_gone_on_from(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        await harness.send_message_to_session(env.stubs, session, "plain")
        turn = await harness.send_message_to_session(env.stubs, session, f"both {session}")
        await harness.decide(env.stubs, await harness.wait_for_approval(env.stubs, session))
        await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        last = (await harness.all_events(env.stubs, session))[-1].sequence
        for place in range(1, last + 1):
            await restore(env, session, sequence=place)
            words = f"from {place} of {session}"
            assert (await heard_with(env, session, words))[-1] == f"user: {words}"
        assert len(env.tool_control.effects(session)) == 1

    async def test_every_place_inside_a_turn_can_be_retried(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, f"both {session}")
        first, last = [await number_of(env, session, kind) for kind in ("message_received", "turn_completed")]
        for place in range(1, last + 1):
            await restore(env, session, sequence=place)
            if first <= place < last:
                again = await retry(env, session, turn.turn_id)
                assert again.state == chat_pb2.TURN_STATE_COMPLETED
            else:
                with refused("TURN_NOT_RETRYABLE"):
                    await retry(env, session, turn.turn_id)

    async def test_not_while_a_turn_waits_and_not_after_the_end(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, f"ask {session}")
        with refused("TURN_IN_PROGRESS") as refusal:
            await restore(env, session, sequence=1)
        assert refusal.details.metadata["turn_id"] == turn.turn_id
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        await restore(env, session, sequence=1)
        assert await messages(env, session) == []
        await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
        with refused("SESSION_NOT_ACTIVE"):
            await restore(env, session, sequence=2)

    async def test_a_place_that_is_none_is_refused(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        await harness.send_message_to_session(env.stubs, session, "one")
        last = (await harness.all_events(env.stubs, session))[-1].sequence
        for sequence in (0, -1, last + 1):
            with refused("INVALID_REQUEST") as refusal:
                await restore(env, session, sequence=sequence)
            assert refusal.details.fields == ("sequence",)
        with refused("INVALID_REQUEST"):
            await restore(env, session)
        for name in (f"tool_call-{last}", f"execution_complete-{last + 1}", "execution_start-1", "nonsense"):
            with refused("CHECKPOINT_NOT_FOUND"):
                await restore(env, session, checkpoint_id=name)
        with refused("SESSION_NOT_FOUND"):
            await restore(env, "there-is-none", sequence=1)
        events = await harness.all_events(env.stubs, session)
        assert not any(event.HasField("session_restored") for event in events)
