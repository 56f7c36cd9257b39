"""The private database: a real mongod, started, stopped, moved and orphaned."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from pymongo import AsyncMongoClient

from tests.processes import alive, until
from turnkeeper.store.embedded import EmbeddedDatabaseError, EmbeddedMongo

# A process that starts a database, prints its pid, and never stops it.
PARENT = """
import asyncio, pathlib, sys
from turnkeeper.store.embedded import EmbeddedMongo

async def main():
    mongo = EmbeddedMongo(pathlib.Path(sys.argv[1]))
    await mongo.start()
    print(mongo.pid, mongo.uri, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_it_is_primary_and_takes_transactions(tmp_path: Path) -> None:
    async with EmbeddedMongo(tmp_path) as uri, AsyncMongoClient[dict[str, object]](uri) as client:
        assert (await client.admin.command("hello"))["isWritablePrimary"]
        async with client.start_session() as session, await session.start_transaction():
            await client.test.a.insert_one({"_id": 1}, session=session)
            await client.test.b.insert_one({"_id": 1}, session=session)
        assert await client.test.a.count_documents({}) == 1
        assert await client.test.b.count_documents({}) == 1


async def test_data_is_kept_between_runs_on_another_port(tmp_path: Path) -> None:
    async with EmbeddedMongo(tmp_path) as first, AsyncMongoClient[dict[str, object]](first) as client:
        await client.test.things.insert_one({"_id": "kept"})
    async with EmbeddedMongo(tmp_path) as second, AsyncMongoClient[dict[str, object]](second) as client:
        assert second != first
        assert await client.test.things.find_one() == {"_id": "kept"}
        await client.test.things.insert_one({"_id": "written by the second"})


async def test_a_second_server_on_one_folder_names_the_folder_and_its_holder(tmp_path: Path) -> None:
    holder = EmbeddedMongo(tmp_path)
    async with holder:
        with pytest.raises(EmbeddedDatabaseError, match=f"{tmp_path} is in use .*pid {holder.pid}"):
            await EmbeddedMongo(tmp_path).start()
        assert alive(holder.pid)


async def test_a_process_that_the_system_does_not_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be short, above all after the system ended the database for want of memory."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(EmbeddedDatabaseError, match=r"mongod cannot be started .*: No such file or directory"):
        await EmbeddedMongo(tmp_path).start()


async def test_a_log_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "mongod.log").mkdir()
    with pytest.raises(EmbeddedDatabaseError, match=r"mongod.log: Is a directory"):
        await EmbeddedMongo(tmp_path).start()


async def test_stop_leaves_no_process(tmp_path: Path) -> None:
    mongo = EmbeddedMongo(tmp_path)
    await mongo.start()
    pid = mongo.pid
    assert alive(pid)
    await mongo.stop()
    assert not alive(pid)
    await mongo.stop()


async def test_a_hurried_stop_does_not_wait_and_loses_nothing(tmp_path: Path) -> None:
    mongo = EmbeddedMongo(tmp_path, hurried=lambda: True)
    async with mongo as uri, AsyncMongoClient[dict[str, object]](uri) as client:
        await client.test.things.insert_one({"_id": "acknowledged"})
        pid = mongo.pid or 0
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(5):
            await mongo.stop()
        assert not alive(pid)
    async with EmbeddedMongo(tmp_path) as uri, AsyncMongoClient[dict[str, object]](uri) as client:
        assert await client.test.things.find_one() == {"_id": "acknowledged"}


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    mongo = EmbeddedMongo(tmp_path)
    starting = asyncio.ensure_future(mongo.start())
    await until(lambda: mongo.pid is not None)
    pid = mongo.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not alive(pid)


async def test_a_killed_parent_leaves_no_server_and_the_folder_to_the_next(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(tmp_path)), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid, uri = (await parent.stdout.readline()).decode().split()
    async with AsyncMongoClient[dict[str, object]](uri) as client:
        await client.test.things.insert_one({"_id": "kept"})
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    async with EmbeddedMongo(tmp_path) as after, AsyncMongoClient[dict[str, object]](after) as client:
        assert not alive(int(pid))
        assert await client.test.things.find_one() == {"_id": "kept"}


async def test_a_server_that_cannot_start_shows_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "mongod"
    broken.write_text("#!/bin/sh\necho 'error while loading shared libraries: libcurl.so.4'\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(EmbeddedDatabaseError, match=r"status 127[\s\S]*libcurl\.so\.4[\s\S]*apt-get install"):
        await EmbeddedMongo(tmp_path / "folder").start()
