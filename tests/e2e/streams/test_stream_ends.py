"""How streams last and end: silence, age, a draining server, a reader that does not read."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from tests.e2e.support.faults import not_answered
from tests.e2e.support.stream_reader import Reader, stream, watch
from tests.processes import until
from tests.status_details import Refusal, details_of, refused
from turnkeeper.domain.session import SessionKey
from turnkeeper.pb.v1 import chat_pb2, error_pb2, session_pb2
from turnkeeper.pb.v1.error_pb2 import RetryAdvice
from turnkeeper.rpc import cursor

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESUME_STREAM = error_pb2.RETRY_ADVICE_RESUME_STREAM
NEVER = error_pb2.RETRY_ADVICE_NEVER
CHANGE_REQUEST = error_pb2.RETRY_ADVICE_CHANGE_REQUEST
RETRY_TURN = error_pb2.RETRY_ADVICE_RETRY_TURN
STORY = "Once upon a time there was a server that went away."
LARGE = 120_000
STANDSTILL = 2.5
"""Seconds that the slow reader reads nothing: more than it may, and more than its end is held for it."""
SMALL_WINDOWS = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024)]
"""So that a reader which stops is felt after a few hundred kilobytes; by default several megabytes fit in between."""
SCRIPT = f"""
[[reply]]
match = "story"
text = "{STORY}"
chunk = 2
delay = "40ms"

[[reply]]
match = "slow start"
first_delay = "700ms"
text = "Here I am."

[[reply]]
match = "unlucky"
fail = "server_error"

[[reply]]
match = "large"
text = "{"x" * LARGE}"
chunk = {LARGE}
"""


class TestHeartbeats:
    async def test_silence_is_broken_by_a_checkpoint(self, env: Environment) -> None:
        async with env.another(heartbeat=timedelta(milliseconds=100)) as stubs:
            session, reader = await harness.create_test_session(stubs, agent="talker"), Reader()
            async for _ in watch(stubs, session, reader):
                if reader.heartbeats == 3:
                    break
            assert (reader.through, reader.kinds) == (1, ["session_created"])
            again = Reader(through=1, cursor=reader.cursor)
            async for _ in watch(stubs, session, again):
                if again.heartbeats:
                    break
            assert not again.events

    async def test_a_turn_without_text_yet_sends_nothing(self, env: Environment) -> None:
        async with env.another(heartbeat=timedelta(milliseconds=100)) as stubs:
            session, reader = await harness.create_test_session(stubs, agent="talker"), Reader(whole=False)
            async for _ in stream(stubs, session, "slow start", reader):
                pass
            assert reader.heartbeats >= 3

    async def test_events_that_a_watch_leaves_out_are_silence_to_it(self, env: Environment) -> None:
        """The answer's deltas come faster than keep-alives are due, and none of them is for this watch."""
        async with env.another(heartbeat=timedelta(milliseconds=100)) as stubs:
            session = await harness.create_test_session(stubs, agent="talker")
            readers = [Reader(whole=False), Reader(whole=False)]
            options: list[dict[str, Any]] = [{"previews": False}, {"previews": False, "live_only": True}]

            async def follow(number: int) -> None:
                async for _ in watch(stubs, session, readers[number], types=["turn_failed"], **options[number]):
                    pass

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(follow(number)) for number in range(2)]
                await until(lambda: all(reader.caught_up for reader in readers))
                await harness.send_message_to_session(stubs, session, "a story")
                for task in tasks:
                    task.cancel()
            for reader in readers:
                assert reader.heartbeats >= 3
                assert reader.through >= 4, "heartbeats move the place on"


class TestRotation:
    async def test_a_stream_ends_at_its_age_with_a_cursor_and_goes_on_exactly_there(self, env: Environment) -> None:
        async with env.another(rotation=timedelta(milliseconds=250)) as stubs:
            session, request_id = await harness.create_test_session(stubs, agent="talker"), harness.new_request_id()
            caller, watcher = Reader(whole=False), Reader()
            rotations = await asyncio.gather(
                _until_told(lambda: stream(stubs, session, "a story", caller, request_id=request_id), caller),
                _until_told(lambda: watch(stubs, session, watcher), watcher),
            )
            assert min(rotations) >= 2
            for reader in (caller, watcher):
                assert [text.decode() for text in reader.texts.values()] == [STORY]
                assert reader.kinds[-1] == "turn_completed"


class TestDraining:
    async def test_streams_end_with_a_cursor_that_another_server_takes(self, env: Environment) -> None:
        async with contextlib.AsyncExitStack() as going:
            running = await going.enter_async_context(
                harness.serving(
                    env.mongo_uri,
                    env.database,
                    env.model,
                    agents=AGENTS,
                    drain_grace=timedelta(milliseconds=300),
                    lease=timedelta(seconds=30),
                )
            )
            async with harness.connect(running.address) as stubs:
                session, request_id = await harness.create_test_session(stubs, agent="talker"), harness.new_request_id()
                caller, watcher = Reader(whole=False), Reader()

                async def cut(call: AsyncIterator[Reader], reader: Reader) -> None:
                    with refused("SERVER_DRAINING") as refusal:
                        async for _ in call:
                            pass
                    assert refusal.details.status is grpc.StatusCode.UNAVAILABLE
                    assert advice_of(refusal) == (RESUME_STREAM, None)
                    reader.cursor = refusal.details.detail.cursor

                async with asyncio.TaskGroup() as group:
                    call = stream(stubs, session, "a story", caller, request_id=request_id)
                    group.create_task(cut(call, caller))
                    group.create_task(cut(watch(stubs, session, watcher), watcher))
                    await until(lambda: len(caller.deltas) > 3 and len(watcher.deltas) > 3)
                    await going.aclose()
        async with asyncio.timeout(10):
            async for _ in stream(env.stubs, session, "a story", caller, request_id=request_id):
                pass
            async for _ in watch(env.stubs, session, watcher):
                if "turn_completed" in watcher.kinds:
                    break
        for reader in (caller, watcher):
            assert reader.kinds[-3:] == ["attempt_superseded", "message_completed", "turn_completed"]
            assert list(reader.texts.values())[-1].decode() == STORY


class TestSlowConsumer:
    async def test_a_reader_that_stops_reading_gets_slow_consumer_and_can_go_on(
        self, env: Environment, caplog: pytest.LogCaptureFixture
    ) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        for _ in range(6):
            await harness.send_message_to_session(env.stubs, session, "a large one")
        reader = Reader()
        async with (
            harness.serving(
                env.mongo_uri, env.database, env.model, agents=AGENTS, write_time=timedelta(milliseconds=200)
            ) as running,
            aio.insecure_channel(running.address, options=SMALL_WINDOWS) as channel,
        ):
            stubs = harness.stubs_on(channel, running.address)
            call = stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
            with refused("SLOW_CONSUMER") as refusal:
                async for response in call:
                    reader.take(response)
                    if reader.responses == 1:
                        await asyncio.sleep(STANDSTILL)
            assert refusal.details.status is grpc.StatusCode.ABORTED
            assert advice_of(refusal) == (RESUME_STREAM, timedelta(seconds=1))
            assert 0 < place_of(refusal, session) == reader.through < 26, "the response that was late came, too"
            assert refusal.details.detail.cursor == reader.cursor
            again = Reader(through=place_of(refusal, session), cursor=refusal.details.detail.cursor)
            async for _ in watch(stubs, session, again, follow=False):
                pass
            async for _ in watch(stubs, session, reader, follow=False):
                pass
        assert again.events == reader.events[-len(again.events) :], "what it had not read is not lost"
        assert reader.events == await harness.all_events(env.stubs, session)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


class TestUnavailable:
    """The database does not answer: on a stream RESUME_STREAM with the cursor, on a unary call SAME_CALL."""

    async def test_the_error_of_a_begun_stream_has_the_cursor_to_go_on_from(self, env: Environment) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader()
        async with env.another() as other:

            async def follow() -> Refusal:
                with refused("SERVICE_UNAVAILABLE") as refusal:
                    async for _ in watch(other, session, reader):
                        pass
                return refusal

            following = asyncio.create_task(follow())
            await until(lambda: reader.caught_up == 1)
            async with not_answered(env.mongo_uri, "find", collection=f"{env.database}.events"):
                await _rename(env.stubs, session)
                refusal = await following
            assert refusal.details.status is grpc.StatusCode.UNAVAILABLE
            assert advice_of(refusal) == (RESUME_STREAM, timedelta(seconds=1))
            assert refusal.details.detail.cursor == reader.cursor
            async for _ in watch(other, session, reader, follow=False):
                pass
        assert reader.kinds == ["session_created", "session_updated"]

    async def test_a_stream_that_gave_nothing_yet_goes_on_where_it_was_to_begin(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        async with env.another() as other:
            async with not_answered(env.mongo_uri, "find", collection=f"{env.database}.events"):
                with refused("SERVICE_UNAVAILABLE") as refusal:
                    async for _ in watch(other, session, Reader()):
                        pass
            reader = Reader(cursor=refusal.details.detail.cursor)
            assert reader.cursor
            async for _ in watch(other, session, reader, follow=False):
                pass
        assert reader.kinds == ["session_created"]

    async def test_what_was_read_but_not_sent_is_before_the_place(self, env: Environment) -> None:
        """The whole turn is in one response, and the turn's state cannot be read."""
        session, request_id = await harness.create_test_session(env.stubs, agent="talker"), harness.new_request_id()
        async for _ in stream(env.stubs, session, "a story", Reader(whole=False), request_id=request_id):
            pass
        reader = Reader(whole=False)
        async with env.another() as other:
            async with not_answered(env.mongo_uri, "find", collection=f"{env.database}.turns"):
                with refused("SERVICE_UNAVAILABLE") as refusal:
                    async for _ in stream(other, session, "a story", reader, request_id=request_id):
                        pass
            assert reader.responses == 0
            reader.cursor = refusal.details.detail.cursor
            assert place_of(refusal, session) == 1, "before the message"
            async for _ in stream(other, session, "a story", reader, request_id=request_id):
                pass
        assert (reader.kinds[0], reader.kinds[-1]) == ("message_received", "turn_completed")

    async def test_a_message_that_may_not_have_been_accepted_is_repeated_as_it_was(self, env: Environment) -> None:
        session, request_id = await harness.create_test_session(env.stubs, agent="talker"), harness.new_request_id()
        reader = Reader(whole=False)
        async with env.another() as other:
            async with not_answered(env.mongo_uri, "find", "aggregate"):
                with refused("SERVICE_UNAVAILABLE") as refusal:
                    async for _ in stream(other, session, "a story", reader, request_id=request_id):
                        pass
                with refused("SERVICE_UNAVAILABLE") as unary:
                    await other.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
            assert (advice_of(refusal), refusal.details.detail.cursor) == ((RESUME_STREAM, timedelta(seconds=1)), "")
            assert advice_of(unary) == (error_pb2.RETRY_ADVICE_SAME_CALL, None)
            for _ in range(2):
                async for _ in stream(other, session, "a story", reader, request_id=request_id):
                    pass
        assert reader.kinds[-1] == "turn_completed"
        turns = await env.stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))
        assert len(turns.turns) == 1

    async def test_a_stream_that_was_to_go_on_at_a_cursor_keeps_it(self, env: Environment) -> None:
        session, request_id = await harness.create_test_session(env.stubs, agent="talker"), harness.new_request_id()
        caller, watcher = Reader(whole=False), Reader()
        async with env.another() as other:
            async for _ in stream(other, session, "a story", caller, request_id=request_id):
                if len(caller.deltas) == 3:
                    break
            async for _ in watch(other, session, watcher):
                if watcher.deltas:
                    break
            async with env.another() as cold, not_answered(env.mongo_uri, "find", "aggregate"):
                for call, reader in (
                    (stream(cold, session, "a story", caller, request_id=request_id), caller),
                    (watch(cold, session, watcher), watcher),
                ):
                    with refused("SERVICE_UNAVAILABLE") as refusal:
                        async for _ in call:
                            pass
                    assert refusal.details.detail.cursor == reader.cursor
                    assert advice_of(refusal) == (RESUME_STREAM, timedelta(seconds=1))


class TestFinalEnds:
    async def test_a_final_error_has_no_cursor(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="hasty")
        wrong: list[tuple[str, RetryAdvice.ValueType, AsyncIterator[Reader]]] = [
            ("SESSION_NOT_FOUND", NEVER, watch(env.stubs, "unknown", Reader())),
            ("SESSION_NOT_FOUND", NEVER, stream(env.stubs, "unknown", "a story", Reader())),
            ("TURN_NOT_FOUND", NEVER, watch(env.stubs, session, Reader(), turn_id="none")),
            ("INVALID_REQUEST", CHANGE_REQUEST, watch(env.stubs, session, Reader(), after="not a cursor")),
            ("INVALID_REQUEST", CHANGE_REQUEST, watch(env.stubs, session, Reader(), after_sequence=99)),
            ("INVALID_REQUEST", CHANGE_REQUEST, stream(env.stubs, session, "", Reader())),
            ("LLM_API_ERROR", RETRY_TURN, stream(env.stubs, session, "unlucky", Reader(whole=False))),
        ]
        for reason, advice, call in wrong:
            with refused(reason) as refusal:
                async for _ in call:
                    pass
            assert (advice_of(refusal), refusal.details.detail.cursor) == ((advice, None), "")

    async def test_a_watch_of_a_session_that_is_deleted_has_no_place_to_go_on(self, env: Environment) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader()
        with refused("SESSION_NOT_FOUND") as refusal:
            async for _ in watch(env.stubs, session, reader):
                if reader.caught_up and reader.responses == 1:
                    await env.stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session))
        assert reader.kinds == ["session_created", "session_updated"]
        assert (advice_of(refusal), refusal.details.detail.cursor) == ((NEVER, None), "")

    async def test_a_message_to_a_busy_session_is_the_callers_to_decide(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        await harness.send_message_to_session(env.stubs, session, "slow start", wait=0)
        with refused("TURN_IN_PROGRESS") as refusal:
            async for _ in stream(env.stubs, session, "a story", Reader()):
                pass
        assert advice_of(refusal) == (error_pb2.RETRY_ADVICE_SAME_CALL, None)


def advice_of(refusal: Refusal) -> tuple[RetryAdvice.ValueType, timedelta | None]:
    """Returns the advice and its wait, on which both details must agree."""
    details = refusal.details
    wait = details.detail.retry_after.ToTimedelta() if details.detail.HasField("retry_after") else None
    assert wait == details.retry_after
    return details.detail.retry, wait


def place_of(refusal: Refusal, session: str) -> int:
    """Returns the number of the last event before the error's cursor."""
    return cursor.decode(refusal.details.detail.cursor, key=SessionKey("default", session)).sequence


async def _rename(stubs: harness.Stubs, session: str) -> None:
    request = session_pb2.UpdateSessionRequest(update_mask=FieldMask(paths=["title"]))
    request.session.session_id, request.session.title = session, "Another name"
    await stubs.sessions.UpdateSession(request)


async def _until_told(call: Callable[[], AsyncIterator[Reader]], reader: Reader) -> int:
    """Reads to the turn's end over every rotation. Returns their number."""
    rotations = 0
    while True:
        try:
            async for _ in call():
                if "turn_completed" in reader.kinds:
                    return rotations
        except aio.AioRpcError as error:
            details = details_of(error)
            assert (details.reason, details.status) == ("STREAM_ROTATED", grpc.StatusCode.ABORTED)
            assert details.detail.cursor == details.metadata["cursor"] == reader.cursor
            assert (details.detail.retry, details.retry_after) == (RESUME_STREAM, None)
            rotations += 1
