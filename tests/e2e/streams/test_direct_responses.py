"""What watchers of a turn get while it runs is written without waking the tasks of their streams."""

import asyncio

import pytest

from tests import harness
from tests.call_counts import counting_calls
from tests.e2e.support.environment import Environment
from tests.e2e.support.stream_reader import Reader, watch
from tests.processes import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

STORY = "Once upon a time there was a server that wrote to all at once."
SCRIPT = f"""
[[reply]]
match = "story"
text = "{STORY}"
chunk = 2
delay = "20ms"
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
    assert counts["StreamCalls._run"] <= WATCHERS, "each is resumed when the client leaves, and at no response"
    for reader in readers:
        assert [text.decode() for text in reader.texts.values()] == [STORY]
        assert reader.events == readers[0].events
