"""A long log is read once, however many responses its events need."""

from typing import Any

import pytest

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.stream_reader import Reader, watch
from turnkeeper.engine.streaming.batch import BATCH_BYTES, BATCH_EVENTS
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper.store.changeset import StoredEvent
from turnkeeper.store.mongo.store import MongoStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = 17
"""Messages, none of which shares a response with another; with what follows from them two pages of events."""
SCRIPT = """
[[reply]]
text = "Read."
"""


async def test_replay_reads_each_page_once(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    text = "x" * (BATCH_BYTES // 2 + 1)
    turns = [
        await harness.send_message_to_session(env.stubs, session, text, wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
        for _ in range(LARGE)
    ]
    await harness.wait_for_turn(env.stubs, session, turns[-1].turn_id)
    reads: list[int] = []

    class Counted(MongoStore):
        async def events(self, *args: Any, **kwargs: Any) -> list[StoredEvent]:
            reads.append(kwargs["after"])
            return list(await super().events(*args, **kwargs))

    async with env.another(new_store=Counted) as stubs:  # a server that knows nothing of the session but its log
        reader = Reader()
        async for _ in watch(stubs, session, reader, follow=False):
            pass
    assert len(reader.events) > BATCH_EVENTS
    assert reader.responses >= LARGE
    assert reads == [max(0, after - 1) for after in range(0, len(reader.events), BATCH_EVENTS)]
