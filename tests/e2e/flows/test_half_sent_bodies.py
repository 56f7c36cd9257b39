"""Half-sent bodies from more connections than there are places: others do not wait for them, and memory comes back."""

import asyncio
from typing import Any

import pytest

from tests import harness
from tests.bench.jobs.half_sent import drop_halves, send_halves
from tests.e2e.support.environment import Environment
from tests.e2e.support.server_processes import doomed
from tests.processes import resident, until
from turnkeeper.pb.v1 import session_pb2
from turnkeeper.setting_types import LEAST_MEMORY

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
text = "You said: {user}"
"""
CONNECTIONS, STREAMS = 30, 20
PATIENCE = 2.0
"""Seconds for a read, a hundred times what it takes: the attackers' bodies hold all places for much longer."""
SECONDS = 4.0
GROWTH = 1.3
"""Memory after the attack, beside that before."""


@pytest.mark.timeout(120)
async def test_a_known_connection_waits_for_no_half_sent_body_and_memory_is_back_in_10_seconds(
    env: Environment,
) -> None:
    channels: Any = None
    async with doomed(env, "--memory", str(LEAST_MEMORY)) as server, harness.connect(server.address) as stubs:
        session = await harness.create_test_session(stubs, agent="talker")
        await harness.send_message_to_session(stubs, session, "before")
        before = resident(server.pid)
        words: dict[str, Any] = {
            "connections": CONNECTIONS,
            "streams": STREAMS,
            "most_bytes": 1 << 30,
            "seconds": SECONDS,
            "token": harness.token(),
        }
        attack = asyncio.create_task(send_halves(channels, address=server.address, **words))
        while not attack.done():
            request = session_pb2.GetSessionRequest(session_id=session)
            await stubs.sessions.GetSession(request, timeout=PATIENCE)
            await asyncio.sleep(0.02)  # the pace of the reads
        sent, ended = (await attack)["sent"], attack.result()["ended"]
        assert (sent > 100 << 20, 0 < ended < CONNECTIONS * STREAMS) == (True, True), (sent, ended)
        await drop_halves(channels)
        await until(lambda: resident(server.pid) <= GROWTH * before, timeout=10)
        await harness.send_message_to_session(stubs, session, "after")
