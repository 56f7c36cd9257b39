"""The start of a server, before it serves."""

import pytest

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from turnkeeper.settings import PortTaken, SettingError

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """
[[reply]]
text = "You said: {user}"
"""


async def test_a_second_server_on_the_port_fails_and_the_first_serves_on(env: Environment) -> None:
    """By default gRPC shares a port between servers, and each gets some of the calls."""
    port = int(env.address.rpartition(":")[2])
    with pytest.raises(PortTaken, match=f"127.0.0.1:{port} cannot be listened on"):
        async with harness.serving(env.mongo_uri, env.database, env.model, agents=AGENTS, port=port):
            pass
    session = await harness.create_test_session(env.stubs, agent="talker")
    turn = await harness.send_message_to_session(env.stubs, session, "hello")
    assert harness.answer_of(turn) == "You said: hello"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
async def test_an_address_that_others_can_reach_is_refused(env: Environment, host: str) -> None:
    with pytest.raises(SettingError, match="only loopback is served"):
        async with harness.serving(env.mongo_uri, env.database, env.model, host=host):
            pass
