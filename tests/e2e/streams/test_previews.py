"""Deltas: the exact text, once, over any number of connections, and never of an attempt that does not count."""

import asyncio
import copy
from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.faults import unsure
from tests.e2e.support.stream_reader import Reader, stream, watch
from tests.harness import Stubs
from tests.processes import until
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2
from turnkeeper.rpc import cursor

pytestmark = pytest.mark.asyncio(loop_scope="module")

STORY = "Я 海🙂é: ß"
LARGE = 40_000
SCRIPT = f"""
[[reply]]
match = "story"
text = "{STORY}"
chunk = 1
delay = "25ms"

[[reply]]
match = "stalls"
text = "{STORY}"
chunk = 3
fail = "stall"
fail_after = {-(-len(STORY) // 3)}

[[reply]]
match = "breaks"
text = "This will not"
chunk = 4
delay = "20ms"
fail = "cut"
fail_after = 3
times = 1

[[reply]]
match = "breaks"
text = "This will."
chunk = 2
delay = "20ms"

[[reply]]
match = "falters"
text = "This will not"
chunk = 4
delay = "20ms"
fail = "cut"
fail_after = 3
times = 1

[[reply]]
match = "falters"
text = "This does."
chunk = 2
delay = "20ms"

[[reply]]
match = "large"
text = "{"海" * LARGE}"
chunk = 1000
"""


class TestPreviews:
    async def test_every_cursor_inside_a_message_goes_on_with_the_next_byte(self, env: Environment) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader(whole=False)
        resumed: list[Reader] = []
        async with asyncio.TaskGroup() as group:
            async for _ in stream(env.stubs, session, "a story", reader, delta_interval=Duration()):
                resumed.append(copy.deepcopy(reader))
                group.create_task(_to_the_end(env.stubs, session, resumed[-1]))
        assert len(resumed) > len(STORY), "a cursor after each character"
        for one_reader in (reader, *resumed):
            assert _said(one_reader) == one_reader.screen() == STORY
            assert one_reader.restarts == 0
            assert one_reader.kinds == reader.kinds

    async def test_a_cursor_is_good_after_the_message_was_completed_and_on_another_server(
        self, env: Environment
    ) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader(whole=False)
        async for _ in stream(env.stubs, session, "a story", reader):
            if len(reader.deltas) == 3:
                break
        turn_id = reader.events[0].turn_id
        await harness.wait_for_turn(env.stubs, session, turn_id)
        async with env.another() as other:
            for stubs in (env.stubs, other):
                late = copy.deepcopy(reader)
                await _to_the_end(stubs, session, late)
                assert len(late.deltas) == 4, "what was missing comes in one piece"
                assert _said(late) == STORY

    async def test_a_late_reader_gets_the_text_so_far_at_once(self, env: Environment) -> None:
        session, turn_id = await _stalled(env)
        for start in ({"live_only": True}, {"after_sequence": 4}, {"after_sequence": 0}, {"after_sequence": 2}):
            reader = Reader(through=4 if "live_only" in start else start["after_sequence"])
            async with asyncio.timeout(5):
                async for _ in watch(env.stubs, session, reader, **start):
                    if reader.deltas:
                        break
            assert "".join(delta.content_delta.text for delta in reader.deltas) == STORY
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))

    async def test_a_cursor_at_any_byte_goes_on_at_a_character(self, env: Environment) -> None:
        session, turn_id = await _stalled(env)
        message_id = (await harness.all_events(env.stubs, session))[3].turn_started.message_id

        async def check() -> None:
            for offset in range(len(STORY.encode())):
                place = StreamPosition(sequence=4, message_id=message_id, attempt=1, offset=offset, live=True)
                after = cursor.encode(place, key=SessionKey("default", session))
                delta = await _first_delta(env.stubs, session, after)
                assert STORY.encode()[: delta.offset].decode() + delta.text == STORY
                assert offset - 3 <= delta.offset <= offset

        await check()
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))
        await check()

    async def test_a_broken_attempt_is_announced_and_its_text_is_never_continued(self, env: Environment) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="stubborn"), Reader(whole=False)
        before: list[Reader] = []
        async for _ in stream(env.stubs, session, "breaks", reader):
            if not before and len(reader.deltas) >= 2:
                before.append(copy.deepcopy(reader))
        first, second = reader.texts.values()
        assert (first.decode()[:8], second.decode()) == ("This wil", "This will.")
        assert reader.kinds[2:] == ["attempt_failed", "message_completed", "turn_completed"]
        attempts = [delta.content_delta.attempt for delta in reader.deltas]
        assert sorted(set(attempts)) == [1, 2]
        assert [delta.content_delta.restarts for delta in reader.deltas].index(True) == attempts.index(2)
        assert (reader.restarts, reader.screen()) == (1, "This will.")
        async with env.another() as other:
            for stubs in (env.stubs, other):
                late = copy.deepcopy(before[0])
                await _to_the_end(stubs, session, late)
                assert late.kinds == reader.kinds
                assert list(late.texts.values())[1].decode() == "This will."
                assert (late.restarts, late.screen()) == (1, "This will.")

    async def test_a_watch_of_few_events_has_the_exact_text_by_restarts_alone(self, env: Environment) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="stubborn"), Reader(whole=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(_to_the_end(env.stubs, session, reader, types=("turn_completed",)))
            await until(lambda: reader.caught_up == 1)
            await harness.send_message_to_session(env.stubs, session, "falters", wait=30)
        assert reader.kinds == ["turn_completed"]
        assert (reader.restarts, reader.screen()) == (1, "This does.")

    async def test_the_text_goes_on_when_a_queued_turn_is_cancelled_beside_it(self, env: Environment) -> None:
        session, _ = await _stalled(env)
        reader = Reader()
        async for _ in watch(env.stubs, session, reader):
            if sum(map(len, reader.texts.values())) == len(STORY.encode()):
                break
        queued = await harness.send_message_to_session(
            env.stubs, session, "story", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=queued.turn_id))
        for stubs in (env.stubs, env.stubs):  # the second time from the cursor that the first one gave
            async for _ in watch(stubs, session, reader):
                if "turn_cancelled" in reader.kinds and reader.caught_up:
                    break
        assert _text(reader) == STORY
        await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
        await _to_the_sessions_end(env.stubs, session, reader)

    async def test_a_complete_message_is_not_repeated_while_its_owner_waits_for_the_commit(
        self, env: Environment
    ) -> None:
        """The answer is in the log, and watchers read it there, before the owner's commit is confirmed to it."""
        async with env.another(poll=timedelta(milliseconds=5)) as stubs, asyncio.TaskGroup() as group:
            session, readers = await harness.create_test_session(stubs, agent="talker"), [Reader() for _ in range(4)]
            for reader in readers:
                group.create_task(_to_the_sessions_end(stubs, session, reader))
            turn = await harness.send_message_to_session(stubs, session, "a story", wait=0)
            await until(lambda: all(reader.deltas for reader in readers))
            async with unsure(env.mongo_uri, times=10):
                await until(lambda: all("turn_completed" in reader.kinds for reader in readers))
                await harness.wait_for_turn(stubs, session, turn.turn_id)
            await stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
        assert [_said(reader) for reader in readers] == [STORY] * 4

    async def test_a_reader_of_the_end_on_another_replica_gets_no_text_again_from_the_owner(
        self, env: Environment
    ) -> None:
        async with env.another(poll=timedelta(milliseconds=5)) as owner:
            session, reader = await harness.create_test_session(owner, agent="talker"), Reader()
            turn = await harness.send_message_to_session(owner, session, "a story", wait=0)
            async for _ in watch(owner, session, reader):
                if reader.deltas:
                    break
            async with unsure(env.mongo_uri, times=10):
                async for _ in watch(env.stubs, session, reader):
                    if "turn_completed" in reader.kinds:
                        break
                given = len(reader.deltas)
                async for _ in watch(owner, session, reader):  # the strict reader fails on a delta of what is whole
                    if reader.caught_up:
                        break
                await harness.wait_for_turn(owner, session, turn.turn_id)
            assert len(reader.deltas) == given
        assert _said(reader) == STORY

    async def test_the_text_is_whole_also_where_its_message_is_filtered_out(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        async with env.another() as other, asyncio.TaskGroup() as group:
            readers = [Reader(whole=False), Reader(whole=False)]
            for stubs, reader in zip((env.stubs, other), readers, strict=True):
                group.create_task(_to_the_end(stubs, session, reader, types=("turn_completed",)))
            await harness.send_message_to_session(env.stubs, session, "a story")
        for reader in readers:
            assert reader.kinds == ["turn_completed"]
            assert [text.decode() for text in reader.texts.values()] == [STORY]

    async def test_a_large_text_comes_in_many_responses_here_and_on_another_server(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        async with env.another() as other, asyncio.TaskGroup() as group:
            readers = [Reader(), Reader()]
            for stubs, reader in zip((env.stubs, other), readers, strict=True):
                group.create_task(_to_the_end(stubs, session, reader))
            await harness.send_message_to_session(env.stubs, session, "a large one")
        late = Reader(whole=False)
        place = StreamPosition(sequence=4, live=True)
        late.through, late.cursor = 4, cursor.encode(place, key=SessionKey("default", session))
        await _to_the_end(env.stubs, session, late)
        for reader in (*readers, late):
            assert _said(reader) == "海" * LARGE


async def _stalled(env: Environment) -> tuple[str, str]:
    """Starts a turn whose model has sent all its text and does not end. Returns session and turn."""
    session = await harness.create_test_session(env.stubs, agent="talker")
    turn = await harness.send_message_to_session(env.stubs, session, "stalls", wait=0)
    reader = Reader()
    async for _ in watch(env.stubs, session, reader):
        if sum(map(len, reader.texts.values())) == len(STORY.encode()):
            break
    return session, turn.turn_id


async def _first_delta(stubs: Stubs, session: str, after: str) -> event_pb2.ContentDelta:
    call = stubs.sessions.WatchEvents(
        session_pb2.WatchEventsRequest(session_id=session, follow=True, previews=True, after=after)
    )
    async for response in call:
        for event in response.events:
            call.cancel()
            return event.content_delta
    raise AssertionError("the stream ended without a delta")


def _text(reader: Reader) -> str:
    (message_id,) = reader.texts
    return reader.text(message_id)


def _said(reader: Reader) -> str:
    (message,) = reader.completed()
    return reader.text(message.message_completed.message_id)


async def _to_the_sessions_end(stubs: Stubs, session: str, reader: Reader) -> None:
    async for _ in watch(stubs, session, reader):
        pass


async def _to_the_end(stubs: Stubs, session: str, reader: Reader, *, types: tuple[str, ...] = ()) -> None:
    if "turn_completed" in reader.kinds:
        return
    turn_id = reader.events[0].turn_id if reader.events and not reader.whole else ""
    async for _ in watch(stubs, session, reader, types=types, turn_id=turn_id):
        if "turn_completed" in reader.kinds:
            return
