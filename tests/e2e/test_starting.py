"""What a server does before it serves."""

from datetime import timedelta

import pytest

from tests import harness
from tests.e2e.world import AGENTS, World
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper.rpc.server import PortTaken
from turnkeeper.settings import SettingError

pytestmark = pytest.mark.asyncio(loop_scope="module")

KNOBS = {"concurrency": 1}
SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\w+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""


async def test_a_second_server_on_the_port_fails_and_takes_no_turn_first(world: World) -> None:
    """The first server has no room, so that a turn waits for anybody who comes."""
    busy = await harness.create_test_session(world.stubs, agent="worker")
    waiting = await harness.create_test_session(world.stubs, agent="worker")
    running = await harness.send_message_to_session(world.stubs, busy, "hold starting", wait=0)
    await world.workshop.started("starting")
    turn = await harness.send_message_to_session(world.stubs, waiting, "hello", wait=0)
    port = int(world.address.rpartition(":")[2])
    for _ in range(3):
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port} cannot be listened on"):
            async with harness.serving(
                world.mongo_uri,
                world.database,
                world.model,
                agents=AGENTS,
                port=port,
                poll=timedelta(milliseconds=1),
            ):
                pass
    still = await harness.wait_for_turn(world.stubs, waiting, turn.turn_id, seconds=0)
    assert still.state == chat_pb2.TURN_STATE_PENDING
    world.workshop.release("starting")
    for each in (running, turn):
        ended = await harness.wait_for_turn(world.stubs, each.session_id, each.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED


async def test_an_address_that_everybody_can_reach_is_refused(world: World) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        with pytest.raises(SettingError, match="only loopback is served"):
            async with harness.serving(world.mongo_uri, world.database, world.model, host=host):
                pass
