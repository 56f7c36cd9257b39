"""The disk of the private database is full, at the start or later."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests import harness
from tests.e2e.support.polling import eventually
from tests.faults.disks import fill, small_disk
from tests.faults.embedded import NOT_SERVING, SERVING, embedded, has_health
from turnkeeper.model.scripted import ScriptedModel

SCRIPT = """
[[reply]]
text = "You said: {user}"
"""


@pytest_asyncio.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with harness.scripted(SCRIPT) as started:
        yield started


async def test_a_database_that_a_full_disk_ended_serves_again_once_there_is_room(
    tmp_path: Path, model: ScriptedModel
) -> None:
    with small_disk(tmp_path / "disk", mebibytes=64) as disk:
        async with embedded(tmp_path, model, folder=disk / "data") as served:
            session = await harness.create_test_session(served.stubs, agent="talker")
            await harness.send_message_to_session(served.stubs, session, "hello", wait=10)
            served.held.touch()
            filling = fill(disk)
            await eventually(lambda: has_health(served, NOT_SERVING), seconds=30)
            filling.unlink()
            served.held.unlink()
            await eventually(lambda: has_health(served, SERVING), seconds=30)
            turn = await harness.send_message_to_session(served.stubs, session, "hello again", wait=20)
            assert harness.answer_of(turn) == "You said: hello again"
            assert re.search(r"the private database in \S+ ended: the disk of --data-dir \S+ is full", served.logged())


async def test_the_server_ends_if_the_disk_stays_full(tmp_path: Path, model: ScriptedModel) -> None:
    with small_disk(tmp_path / "disk", mebibytes=64) as disk:
        async with embedded(tmp_path, model, folder=disk / "data") as served:
            fill(disk)
            async with asyncio.timeout(50):
                assert await served.server.process.wait() == 1
            *_, last = served.logged().splitlines()
            assert re.match(
                r"turnkeeper serve: the private database in .*: the disk of --data-dir .* is full: free", last
            )
            assert "Traceback" not in served.logged()
