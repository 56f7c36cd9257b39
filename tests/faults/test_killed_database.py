"""The private database is killed under a server."""

import os
import signal
from pathlib import Path

from pymongo import AsyncMongoClient

from tests.processes import alive, until
from turnkeeper.store.embedded import EmbeddedMongo


async def test_what_was_acknowledged_is_there_after_the_kill(tmp_path: Path) -> None:
    killed = EmbeddedMongo(tmp_path)
    async with killed as uri:
        async with AsyncMongoClient[dict[str, object]](uri, w="majority", journal=True) as client:
            await client.test.things.insert_one({"_id": "kept"})
        pid = killed.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not alive(pid))
    async with EmbeddedMongo(tmp_path) as uri, AsyncMongoClient[dict[str, object]](uri) as client:
        assert await client.test.things.find_one() == {"_id": "kept"}
