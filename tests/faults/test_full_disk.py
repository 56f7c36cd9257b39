"""The disk of the private database is full, at the start or later."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
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


@pytest.mark.parametrize(
    ("read_only", "reason"),
    [
        (False, "the disk of --data-dir {} is full: free some space, or choose a folder on another disk"),
        (
            True,
            (
                "--data-dir {} cannot be written (Read-only file system): make it writable for this user, "
                "or choose another folder"
            ),
        ),
    ],
    ids=["full", "read-only"],
)
async def test_a_folder_that_cannot_be_written_ends_the_start(
    tmp_path: Path, model: ScriptedModel, read_only: bool, reason: str
) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1, read_only=read_only) as disk:
        if not read_only:
            fill(disk)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "turnkeeper", "serve", "--port", "0", "--embedded", "--data-dir", str(disk)),
            env=harness.environment(model),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(40):
            _, errors = await process.communicate()
    assert process.returncode == 2
    assert errors.decode() == f"turnkeeper serve: {reason.format(disk)}\n"


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
