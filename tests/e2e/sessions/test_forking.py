"""Forks: what the model gets of the source's conversation, what can be retried, and that a repeat creates no other."""

import asyncio

import pytest
from grpc import aio

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS, Environment, check_pairs, transcript, until_event
from tests.harness import Stubs
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

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
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""


async def fork(
    stubs: Stubs, session: str, *, request_id: str = "", **fields: int | str
) -> session_pb2.ForkSessionResponse:
    return await stubs.sessions.ForkSession(
        session_pb2.ForkSessionRequest(
            session_id=session,
            request_id=request_id or harness.new_request_id(),
            **fields,  # type: ignore[arg-type]
        )
    )


async def heard_with(env: Environment, session: str, words: str) -> list[str]:
    """Sends the next message. Returns the model's request for it, without the instructions."""
    await harness.send_message_to_session(env.stubs, session, words)
    (request_messages,) = [messages for messages in env.model_requests(words) if messages[-1]["content"] == words]
    check_pairs(request_messages)
    return [line for line in transcript(request_messages) if not line.startswith("system:")]


async def retry(stubs: Stubs, session: str, turn_id: str) -> chat_pb2.Turn:
    await harness.retry(stubs, session, turn_id)
    return await harness.wait_for_turn(stubs, session, turn_id)


async def sessions_of(stubs: Stubs, title: str) -> list[str]:
    ids: list[str] = []
    request = session_pb2.ListSessionsRequest(page_size=100)
    while True:
        page = await stubs.sessions.ListSessions(request)
        ids.extend(session.session_id for session in page.sessions if session.title == title)
        if not page.next_page_token:
            return ids
        request.page_token = page.next_page_token


class TestForking:
    async def test_the_fork_has_the_conversation_and_both_go_their_ways(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="talker")
        for words in ("one", "two"):
            await harness.send_message_to_session(env.stubs, source, words)
        before = await harness.all_events(env.stubs, source)
        place = next(event.sequence for event in before if event.HasField("turn_completed"))
        response = await fork(env.stubs, source, sequence=place)
        new = response.session.session_id
        assert response.session.state == session_pb2.SESSION_STATE_ACTIVE
        assert (response.session.agent, response.session.title, response.sequence) == ("talker", "one", 1)
        events = await harness.all_events(env.stubs, new)
        assert harness.kinds(events) == [
            *("session_created", "session_forked", "session_activated"),
            *("message_received", "turn_started", "message_completed", "turn_completed"),
        ]
        forked = events[1].session_forked
        assert (forked.source_session_id, forked.source_sequence, forked.copied_through) == (source, place, 7)
        assert all(event.session_id == new for event in events)
        words = f"three {new}"
        assert await heard_with(env, new, words) == ["user: one", "assistant: You said: one", f"user: {words}"]
        assert await harness.all_events(env.stubs, source) == before, "the source is only read"

    async def test_i16_every_place_of_a_rich_log_can_be_forked_and_gone_on_from(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="asker")
        await harness.send_message_to_session(env.stubs, source, "plain")
        turn = await harness.send_message_to_session(env.stubs, source, f"both {source}")
        await harness.send_message_to_session(env.stubs, source, "queued", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
        await harness.decide(env.stubs, await harness.wait_for_approval(env.stubs, source))
        await harness.wait_for_turn(env.stubs, source, turn.turn_id)
        await until_event(env.stubs, source, "turn_completed", turn_id=turn.turn_id)
        events = await harness.all_events(env.stubs, source)
        of_turn = [event.sequence for event in events if event.turn_id == turn.turn_id]
        for place in range(1, events[-1].sequence + 1):
            new = (await fork(env.stubs, source, sequence=place)).session.session_id
            words = f"from {place} of {new}"
            assert (await heard_with(env, new, words))[-1] == f"user: {words}"
            if of_turn[0] <= place < of_turn[-1]:
                again = (await fork(env.stubs, source, sequence=place)).session.session_id
                turns = await env.stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=again))
                assert turns.turns[0].state == chat_pb2.TURN_STATE_CANCELLED
                await retry(env.stubs, again, turns.turns[0].turn_id)
        assert len(env.tool_control.effects(source)) == 1, "nothing runs because of a fork"

    async def test_a_turn_in_the_middle_is_cancelled_there_and_goes_on_by_retry(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, source, f"hold {source}", wait=0)
        await env.tool_control.started(source)
        response = await fork(env.stubs, source)
        new = response.session.session_id
        events = await harness.all_events(env.stubs, new)
        closed, ended = events[-2], events[-1]
        assert closed.tool_returned.outcome == event_pb2.TOOL_OUTCOME_UNKNOWN
        assert closed.tool_returned.started
        assert ended.turn_cancelled.reason == event_pb2.CANCEL_REASON_FORKED
        env.tool_control.release(source)
        again = await retry(env.stubs, new, turn.turn_id)
        assert again.state == chat_pb2.TURN_STATE_COMPLETED
        (forked,) = [
            messages
            for messages in env.model_requests(f"hold {source}")
            if "may have run" in "".join(transcript(messages))
        ]
        assert transcript(forked)[-2] == "call: hold_irreversible"
        assert transcript(forked)[-1].startswith("tool: "), (
            "the fork's model is given the unknown outcome as the last message"
        )
        done = await harness.wait_for_turn(env.stubs, source, turn.turn_id)
        assert done.state == chat_pb2.TURN_STATE_COMPLETED
        assert len(env.tool_control.effects(source)) == 1

    async def test_a_restored_session_is_forked_as_it_stands(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, source, f"both {source}")
        await harness.send_message_to_session(env.stubs, source, "gone")
        events = await harness.all_events(env.stubs, source)
        inside = next(event.sequence for event in events if event.HasField("tool_called"))
        await env.stubs.sessions.RestoreCheckpoint(
            session_pb2.RestoreCheckpointRequest(session_id=source, sequence=inside)
        )
        await retry(env.stubs, source, turn.turn_id)
        new = (await fork(env.stubs, source)).session.session_id
        request_messages = await heard_with(env, new, f"after {new}")
        assert "user: gone" not in request_messages
        assert request_messages[-2] == "assistant: Both are done."

    async def test_an_ended_session_goes_on_in_a_fork(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="talker")
        await harness.send_message_to_session(env.stubs, source, "one")
        await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=source))
        new = (await fork(env.stubs, source)).session.session_id
        assert (await heard_with(env, new, f"two {new}"))[:2] == ["user: one", "assistant: You said: one"]


class TestMadeOnce:
    async def test_i8_the_same_request_at_once_on_two_replicas_makes_one(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="talker")
        title = f"once {source}"
        await harness.send_message_to_session(env.stubs, source, title)
        async with env.another() as other:
            responses = await asyncio.gather(
                *(fork(stubs, source, request_id="same") for stubs in (env.stubs, other) * 3)
            )
        assert len({response.session.session_id for response in responses}) == 1
        assert len(await sessions_of(env.stubs, title)) == 2
        with refused("REQUEST_ID_REUSED"):
            await fork(env.stubs, source, request_id="same", sequence=1)
        with refused("REQUEST_ID_REUSED"):
            await fork(env.stubs, source, request_id="same", new_session_id=f"{source}-other")

    async def test_an_id_of_ones_own_is_refused_when_something_else_has_it(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="talker")
        mine = f"{source}-mine"
        assert (await fork(env.stubs, source, request_id="a", new_session_id=mine)).session.session_id == mine
        assert (await fork(env.stubs, source, request_id="a", new_session_id=mine)).session.session_id == mine
        for taken in (mine, source):
            with refused("SESSION_ALREADY_EXISTS"):
                await fork(env.stubs, source, request_id=f"b {taken}", new_session_id=taken)

    async def test_the_id_of_a_deleted_session_is_not_free(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="talker")
        mine = (await fork(env.stubs, source, request_id="mine")).session.session_id
        await env.stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=mine))
        for fields in ({"request_id": "mine"}, {"request_id": "another", "new_session_id": mine}):
            with refused("SESSION_ALREADY_EXISTS") as refusal:
                await fork(env.stubs, source, **fields)
            assert "UndeleteSession" in refusal.details.message

    async def test_places_and_sessions_that_are_none(self, env: Environment) -> None:
        source = await harness.create_test_session(env.stubs, agent="talker")
        for sequence in (0, 2):
            with refused("INVALID_REQUEST"):
                await fork(env.stubs, source, sequence=sequence)
        with refused("CHECKPOINT_NOT_FOUND"):
            await fork(env.stubs, source, checkpoint_id="tool_call-1")
        with refused("SESSION_NOT_FOUND"):
            await fork(env.stubs, "there-is-none")

    async def test_killed_before_it_is_whole_nothing_is_seen_and_the_repeat_completes_it(
        self, env: Environment
    ) -> None:
        source = await harness.create_test_session(env.stubs, agent="talker")
        await harness.send_message_to_session(env.stubs, source, "one")
        mine = f"{source}-killed"
        async with harness.server_process(
            env.mongo_uri,
            env.database,
            env.model,
            flags=("--agents", str(AGENTS)),
            variables={**env.tool_control.variables, "TURNKEEPER_TEST_FAULTS": "fork.before_commit=kill"},
        ) as doomed:
            async with harness.connect(doomed.address) as stubs:
                with pytest.raises(aio.AioRpcError):
                    await fork(stubs, source, request_id="killed", new_session_id=mine)
            await doomed.process.wait()
        with refused("SESSION_NOT_FOUND"):
            await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=mine))
        with refused("SESSION_NOT_FOUND"):
            await harness.all_events(env.stubs, mine)
        with refused("SESSION_ALREADY_EXISTS"):
            await harness.create_test_session(env.stubs, agent="talker", session_id=mine)
        await check(env.mongo_uri, env.database)
        await harness.send_message_to_session(env.stubs, source, "two")
        response = await fork(env.stubs, source, request_id="killed", new_session_id=mine)
        assert response.session.session_id == mine
        assert (await heard_with(env, mine, f"three {mine}"))[:-1] == ["user: one", "assistant: You said: one"]
