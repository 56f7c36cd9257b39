"""A message's answer while it is written, as callers and watchers receive it."""

import asyncio
from typing import Any

import pytest
from grpc import aio

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.stream_reader import Reader, stream, watch
from tests.harness import Stubs
from tests.processes import until
from tests.status_details import details_of, refused
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

STORY = "Ein Fräulein stand am Meere — и пел 海の歌, 🙂 twice: 🙂."
SCRIPT = """
[[reply]]
match = "slow start"
first_delay = "400ms"
text = "Here I am."

[[reply]]
match = "story"
text = "Ein Fräulein stand am Meere — и пел 海の歌, 🙂 twice: 🙂."
chunk = 1
delay = "10ms"

[[reply]]
match = "act"
text = "I will."
tool_calls = [{ name = "act", arguments = { label = "streamed" } }]

[[reply]]
match = "quota"
fail = "quota"

[[reply]]
text = "You said: {user}"
"""


class TestStreaming:
    async def test_the_deltas_are_contiguous_and_make_the_message(self, env: Environment) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader(whole=False)
        async for _ in stream(env.stubs, session, "a story", reader):
            pass
        assert reader.turn is not None
        assert harness.answer_of(reader.turn) == STORY
        assert _said(reader) == STORY
        assert len(reader.deltas) > 10, "it was streamed, not sent in one piece"
        assert reader.kinds == ["message_received", "turn_started", "message_completed", "turn_completed"]
        assert reader.caught_up == 1

    async def test_it_can_be_watched_before_its_first_token(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, session, "slow start", wait=0)
        of_turn, whole = Reader(whole=False), Reader()
        async with asyncio.TaskGroup() as readers:
            readers.create_task(_to_the_end(env.stubs, session, of_turn, turn_id=turn.turn_id))
            readers.create_task(_to_the_end(env.stubs, session, whole))
        for reader in (of_turn, whole):
            assert _said(reader) == "Here I am."

    async def test_the_same_request_attaches_again_and_never_sends_twice(self, env: Environment) -> None:
        stubs, request_id = env.stubs, harness.new_request_id()
        session = await harness.create_test_session(stubs, agent="talker")
        cut, whole = Reader(whole=False), Reader(whole=False)
        async for _ in stream(stubs, session, "a story", cut, request_id=request_id):
            if len(cut.deltas) >= 3:
                break
        for reader in (whole, cut):
            async for _ in stream(stubs, session, "a story", reader, request_id=request_id):
                pass
            assert reader.sequences == [2, 4, 5, 6], "from the turn's first event to its last; 3 is the session's"
            assert _said(reader) == STORY
        listed = await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))
        assert len(listed.turns) == 1

    async def test_the_same_request_id_with_other_words_is_refused(self, env: Environment) -> None:
        session, request_id = await harness.create_test_session(env.stubs, agent="talker"), harness.new_request_id()
        await harness.send_message_to_session(env.stubs, session, "one", request_id=request_id)
        with refused("REQUEST_ID_REUSED"):
            async for _ in stream(env.stubs, session, "two", Reader(), request_id=request_id):
                pass

    async def test_a_message_that_was_sent_can_be_streamed_afterwards(self, env: Environment) -> None:
        session, request_id = await harness.create_test_session(env.stubs, agent="talker"), harness.new_request_id()
        turn = await harness.send_message_to_session(env.stubs, session, "one", request_id=request_id)
        reader = Reader(whole=False)
        async for _ in stream(env.stubs, session, "one", reader, request_id=request_id):
            pass
        assert reader.turn == turn
        assert _said(reader) == "You said: one"

    async def test_it_ends_ok_when_the_turn_waits_and_the_same_call_goes_on(self, env: Environment) -> None:
        session, request_id = await harness.create_test_session(env.stubs, agent="asker"), harness.new_request_id()
        reader = Reader(whole=False)
        async for _ in stream(env.stubs, session, "act", reader, request_id=request_id):
            pass
        assert reader.turn is not None
        assert reader.turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        assert reader.kinds[-1] == "approval_requested"
        await harness.decide(
            env.stubs, await harness.wait_for_approval(env.stubs, session), approve=False, reason="Not today."
        )
        async for _ in stream(env.stubs, session, "act", reader, request_id=request_id):
            pass
        assert reader.turn.state == chat_pb2.TURN_STATE_COMPLETED
        assert reader.kinds[-2:] == ["message_completed", "turn_completed"]

    async def test_a_failed_turn_ends_it_with_the_turns_error_after_all_its_events(self, env: Environment) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader(whole=False)
        with refused("LLM_RATE_LIMIT"):
            async for _ in stream(env.stubs, session, "over quota", reader):
                pass
        assert reader.kinds[-2:] == ["attempt_failed", "turn_failed"]
        assert reader.turn is not None
        assert reader.turn.state == chat_pb2.TURN_STATE_FAILED

    async def test_without_previews_only_durable_events_come(self, env: Environment) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader(whole=False)
        async for _ in stream(env.stubs, session, "a story", reader, previews=False):
            pass
        assert not reader.deltas
        assert reader.kinds[-1] == "turn_completed"

    async def test_sixty_subscribers_see_the_same_in_the_same_order(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        readers = [Reader() for _ in range(60)]
        async with asyncio.TaskGroup() as group:
            for reader in readers:
                group.create_task(_to_the_end(env.stubs, session, reader))
            turn = await harness.send_message_to_session(env.stubs, session, "a story")
            assert harness.answer_of(turn) == STORY
        stored = await harness.all_events(env.stubs, session)
        for reader in readers:
            assert reader.events == stored
            assert _said(reader) == STORY

    async def test_a_session_that_ends_ends_its_watches_with_ok(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        options: dict[str, dict[str, Any]] = {
            "all": {},
            "another kind": {"types": ["turn_started"]},
            "a kind": {"types": ["turn_failed"]},
        }
        readers = {name: Reader(whole=name == "all") for name in options}

        async def follow(name: str) -> None:
            async for _ in watch(env.stubs, session, readers[name], **options[name]):
                pass

        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for name in readers:
                group.create_task(follow(name))
            await until(lambda: all(reader.caught_up for reader in readers.values()))
            await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
        assert readers["all"].kinds == ["session_created", "session_ended"]
        assert [reader.through for reader in readers.values()] == [2, 2, 2]
        late = Reader()
        async for _ in watch(env.stubs, session, late):
            pass
        assert late.events == readers["all"].events, "who comes later gets the same, and OK"


def _said(reader: Reader) -> str:
    """Returns the text of the only message's deltas."""
    (message,) = reader.completed()
    return reader.text(message.message_completed.message_id)


async def _to_the_end(stubs: Stubs, session: str, reader: Reader, **fields: Any) -> None:
    """Watches until the turn has ended. A replica that is busy refuses watches first: it is called again."""
    while "turn_completed" not in reader.kinds:
        try:
            async for _ in watch(stubs, session, reader, **fields):
                if "turn_completed" in reader.kinds:
                    return
        except aio.AioRpcError as error:
            details = details_of(error)
            assert details.reason == "OVERLOADED"
            assert details.retry_after is not None
            await asyncio.sleep(details.retry_after.total_seconds())
