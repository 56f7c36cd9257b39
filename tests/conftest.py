"""Fixtures of every test."""

import gc
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests.guarded_database import ADMIN, LEAST_RIGHTS, guarded_database
from turnkeeper.serve import YOUNG_OBJECTS
from turnkeeper.store.embedded import EmbeddedMongo
from turnkeeper.tools.samples import OUTBOX

MEMORY: Final = Path("/dev/shm")
LEAST_MEMORY: Final = 2 * 1024**3
"""Bytes that the folder in memory has free at least: a database of all tests takes some 400 MB."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Excludes what is collected from the search for cycles, and searches as seldom as a server does.

    All of it stays to the end: searching it again and again took half of the time of the collection.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS, 20, 20)
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def outbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sends the sample tool's messages to a temporary file, unless a test sets another."""
    file = tmp_path_factory.mktemp("outbox") / "outbox.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(OUTBOX, str(file))
        yield file


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mongo_uri() -> AsyncIterator[str]:
    """Yields the URI of a real replica set for the whole run: MONGODB_URI's, or a private one with fail points.

    With LEAST_RIGHTS the database asks for a password; servers get a user with the shipped role, tests may do all.
    """
    if uri := os.environ.get("MONGODB_URI"):
        yield uri
        return
    with tempfile.TemporaryDirectory(prefix="turnkeeper-tests-", dir=_memory()) as folder:
        if os.environ.get(LEAST_RIGHTS):
            async with guarded_database(Path(folder), "--setParameter", "enableTestCommands=1") as guarded:
                yield guarded.uri(ADMIN)
            return
        async with EmbeddedMongo(Path(folder), test_commands=True) as uri:
            yield uri


def _memory() -> str | None:
    """Returns a folder in memory with room for the shared database; None if there is none.

    There its commits wait for no disk, and a new database costs half. Tests of a lost database have one on disk.
    """
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= LEAST_MEMORY:
        return str(MEMORY)
    return None


@pytest_asyncio.fixture
async def database_name(mongo_uri: str) -> AsyncIterator[str]:
    """Yields a name that no other test has; the database is dropped afterwards."""
    name = f"turnkeeper_test_{secrets.token_hex(6)}"
    yield name
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        await client.drop_database(name)
