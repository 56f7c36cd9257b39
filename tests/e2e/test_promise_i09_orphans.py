"""I9, where it is hardest: a server is killed between the first write of a step and its commit."""

import time
from datetime import timedelta

import pytest

from tests import harness
from tests.e2e.faults import held_up
from tests.e2e.processes_of_ours import LEASE, MARGIN, SWEEP, doomed
from tests.e2e.world import World
from turnkeeper.pb.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

KNOBS = {"lease": timedelta(seconds=LEASE), "sweep": timedelta(seconds=SWEEP)}
SCRIPT = """
[[reply]]
match = "^writes"
first_delay = "1500ms"
text = "Never stored."
times = 1

[[reply]]
match = "^thinks"
first_delay = "60s"
text = "Never said."
times = 1

[[reply]]
text = "Again: {user}"
"""


async def test_i9_a_server_killed_in_the_middle_of_a_write_holds_nobody_up(world: World) -> None:
    """What it wrote stays locked in the database until somebody ends its transaction."""
    turns: dict[str, chat_pb2.Turn] = {}
    async with doomed(world) as server, harness.connect(server.address) as stubs:
        for words in ("thinks", "writes"):
            session = await harness.create_test_session(stubs, agent="talker")
            turns[words] = await harness.send_message_to_session(stubs, session, words, wait=0)
            await world.until_heard(words)
        async with held_up(world.mongo_uri, "insert", by=timedelta(milliseconds=500)) as insert:
            await insert.entered()
            await server.kill()
    killed = time.monotonic()
    for words, turn in turns.items():
        ended = await harness.wait_for_turn(world.stubs, turn.session_id, turn.turn_id, seconds=60)
        took = time.monotonic() - killed
        assert (ended.state, harness.answer_of(ended)) == (chat_pb2.TURN_STATE_COMPLETED, f"Again: {words}")
        assert took < LEASE + SWEEP + MARGIN, f"{words}: ended {took:.1f} s after its server was killed"
