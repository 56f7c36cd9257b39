"""The private database of `serve --embedded` dies: it is started again on its folder, or the server ends."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.polling import eventually
from tests.faults.embedded import NOT_SERVING, SERVING, embedded, has_health
from tests.processes import alive, replicas
from tests.status_details import refused
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import chat_pb2, session_pb2

SCRIPT = """
[[reply]]
match = "slow"
text = "An answer that outlives its database."
chunk = 1
delay = "60ms"

[[reply]]
text = "You said: {user}"
"""


@pytest_asyncio.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with harness.scripted(SCRIPT) as started:
        yield started


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_killed_database_is_started_again_on_its_folder(
    tmp_path: Path, model: ScriptedModel, processes: str
) -> None:
    async with embedded(tmp_path, model, "--processes", processes) as served:
        stubs, killed = served.stubs, served.mongod
        session = await harness.create_test_session(stubs, agent="talker")
        await harness.send_message_to_session(stubs, session, "hello", wait=10)
        served.held.touch()
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: has_health(served, NOT_SERVING))
        began = time.monotonic()
        with refused("SERVICE_UNAVAILABLE") as refusal:
            await harness.send_message_to_session(stubs, session, "too early")
        assert time.monotonic() - began < 1, "a call is not kept waiting for a database that is known to be gone"
        assert refusal.details.retry_after
        with refused("SERVICE_UNAVAILABLE"):
            await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        served.held.unlink()
        await eventually(lambda: has_health(served, SERVING))
        turn = await harness.send_message_to_session(stubs, session, "hello again", wait=20)
        assert harness.answer_of(turn) == "You said: hello again"
        messages = await stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
        assert len(messages.messages) == 4
        assert served.mongod != killed
        lost, back = re.findall(r"the private database [^\"]*", served.logged())
        assert "was ended by SIGKILL" in lost
        assert "serves again" in back
        assert await served.server.terminate() == 0


async def test_a_turn_outlives_its_database(tmp_path: Path, model: ScriptedModel) -> None:
    async with embedded(tmp_path, model) as served:
        session = await harness.create_test_session(served.stubs, agent="talker")
        turn = await harness.send_message_to_session(served.stubs, session, "slow", wait=0)
        await model.exchanges.until(lambda _: True)
        os.kill(served.mongod, signal.SIGKILL)
        await eventually(lambda: has_health(served, NOT_SERVING))
        await eventually(lambda: has_health(served, SERVING))
        ended = await harness.wait_for_turn(served.stubs, session, turn.turn_id, seconds=30)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert harness.answer_of(ended) == "An answer that outlives its database."


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_the_server_ends_with_a_sentence_if_the_database_cannot_be_started_again(
    tmp_path: Path, model: ScriptedModel, processes: str
) -> None:
    async with embedded(tmp_path, model, "--processes", processes) as served:
        started = replicas(served.server.pid)
        served.broken.touch()
        os.kill(served.mongod, signal.SIGKILL)
        async with asyncio.timeout(30):
            assert await served.server.process.wait() == 1
        *_, last = served.logged().splitlines()
        assert re.match(r"turnkeeper serve: the private database in .* ended 4 times within a minute", last)
        assert "Traceback" not in served.logged()
        assert len(re.findall("It is started again", served.logged())) == 3
        assert not any(map(alive, started))
