"""How streams live and end: silence, age, a server that goes, a reader that does not read."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc import aio

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from tests.e2e.support.stream_reader import Reader, stream, watch
from tests.processes import until
from tests.status_details import details_of, refused
from turnkeeper.pb.v1 import session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

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

    async def test_a_turn_that_says_nothing_yet_is_silence(self, env: Environment) -> None:
        async with env.another(heartbeat=timedelta(milliseconds=100)) as stubs:
            session, reader = await harness.create_test_session(stubs, agent="talker"), Reader(whole=False)
            async for _ in stream(stubs, session, "slow start", reader):
                pass
            assert reader.heartbeats >= 3

    async def test_events_that_a_watch_leaves_out_are_silence_to_it(self, env: Environment) -> None:
        """The answer's pieces come faster than heartbeats are due, and none of them is for this watch."""
        async with env.another(heartbeat=timedelta(milliseconds=100)) as stubs:
            session = await harness.create_test_session(stubs, agent="talker")
            readers = [Reader(whole=False), Reader(whole=False)]
            asked: list[dict[str, Any]] = [{"previews": False}, {"previews": False, "live_only": True}]

            async def follow(number: int) -> None:
                async for _ in watch(stubs, session, readers[number], types=["turn_failed"], **asked[number]):
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
    async def test_a_reader_that_stops_reading_is_told_so_and_can_go_on(
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
            stubs = harness.Stubs(channel)
            call = stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
            with refused("SLOW_CONSUMER") as refusal:
                async for response in call:
                    reader.take(response)
                    if reader.responses == 1:
                        await asyncio.sleep(STANDSTILL)
            assert refusal.details.status is grpc.StatusCode.ABORTED
            assert reader.through < 26
            async for _ in watch(stubs, session, reader, follow=False):
                pass
        assert reader.events == await harness.all_events(env.stubs, session)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def _until_told(call: Callable[[], AsyncIterator[Reader]], reader: Reader) -> int:
    """Read to the turn's end over every rotation; how many there were."""
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
            rotations += 1
