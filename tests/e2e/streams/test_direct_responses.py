"""What watchers of a turn get while it runs is written without waking the tasks of their streams."""

import asyncio
from datetime import timedelta

import pytest
from grpc import aio

from tests import harness
from tests.call_counts import counting_calls
from tests.e2e.streams.test_stream_ends import SMALL_WINDOWS, place_of
from tests.e2e.support.environment import AGENTS, Environment
from tests.e2e.support.stream_reader import Reader, watch
from tests.processes import until
from tests.status_details import refused
from turnkeeper.pb.v1 import session_pb2
from turnkeeper.rpc.stream_calls import StreamCalls

pytestmark = pytest.mark.asyncio(loop_scope="module")

STORY = "Once upon a time there was a server that wrote to all at once."
SCRIPT = f"""
[[reply]]
match = "story"
text = "{STORY}"
chunk = 2
delay = "20ms"

[[reply]]
match = "large"
text = "{"x" * 40_000}"
chunk = 40_000
first_delay = "300ms"
"""
WATCHERS = 5


async def test_the_tasks_of_watchers_sleep_while_a_turn_is_watched(env: Environment) -> None:
    session, readers = await harness.create_test_session(env.stubs, agent="talker"), [Reader() for _ in range(WATCHERS)]

    async def follow(reader: Reader) -> None:
        async for _ in watch(env.stubs, session, reader):
            if "turn_completed" in reader.kinds:
                return

    async with asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(follow(reader))
        await until(lambda: all(reader.caught_up for reader in readers))
        before = sum(reader.responses for reader in readers)
        with counting_calls() as counts:
            await harness.send_message_to_session(env.stubs, session, "a story")
            await until(lambda: all("turn_completed" in reader.kinds for reader in readers))
    responses = sum(reader.responses for reader in readers) - before
    assert responses >= 5 * WATCHERS
    assert counts["CallStream.write"] >= responses
    task = StreamCalls._run.__qualname__  # noqa: SLF001 - of a function that is gone, the count would be 0
    assert counts[task] <= WATCHERS, "each is resumed when the client leaves, and at no response"
    for reader in readers:
        assert [text.decode() for text in reader.texts.values()] == [STORY]
        assert reader.events == readers[0].events


async def test_a_reader_that_takes_no_live_response_gets_slow_consumer_and_can_go_on(env: Environment) -> None:
    """What was begun directly comes before the status, so that nothing is lost and nothing comes twice."""
    session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader()
    write_time = timedelta(milliseconds=200)
    async with (
        asyncio.timeout(60),
        harness.serving(env.mongo_uri, env.database, env.model, agents=AGENTS, write_time=write_time) as running,
        aio.insecure_channel(running.address, options=SMALL_WINDOWS) as slow,
        aio.insecure_channel(running.address) as quick,
    ):
        sending, reading = harness.stubs_on(quick, running.address), harness.stubs_on(slow, running.address)
        call = reading.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
        with counting_calls() as counts, refused("SLOW_CONSUMER") as refusal:
            async for response in call:
                reader.take(response)
                while reader.caught_up and not counts["StreamCalls._count_slow"]:
                    await harness.send_message_to_session(sending, session, "a large one")
        assert counts["CallStream.expire"] == 1
        assert refusal.details.detail.cursor == reader.cursor
        assert place_of(refusal, session) == reader.through
        async for _ in watch(sending, session, reader, follow=False):
            pass
        assert reader.events == await harness.all_events(sending, session)
