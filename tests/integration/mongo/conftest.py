"""Fixtures: a store on MongoDB whose commands are recorded, and fail points of the database."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient, monitoring
from pymongo.database import Database

from tests.contracts.databases import database_name, shared_database
from tests.contracts.stores import TextCodec
from tests.fail_points import Client, fail_point
from tests.integration.mongo.commands import Recorder
from turnkeeper.store.mongo.store import MongoStore

__all__ = ["Client", "client", "database_name", "failing", "new_store", "recorder", "shared_database", "store"]

FailPoint = Callable[..., AbstractAsyncContextManager[None]]
NewStore = Callable[..., Awaitable[MongoStore]]


@pytest_asyncio.fixture
async def client(mongo_uri: str) -> AsyncIterator[Client]:
    """Yields a client of the test's own."""
    async with AsyncMongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        yield client


@pytest.fixture(scope="session")
def recorder(shared_database: Database[dict[str, Any]]) -> Recorder:
    """Registers a recorder: the driver takes listeners for all clients that are created later, and for good."""
    recorder = Recorder(shared_database.name)
    monitoring.register(recorder)
    return recorder


@pytest_asyncio.fixture
async def new_store(mongo_uri: str, database_name: str, recorder: Recorder) -> AsyncIterator[NewStore]:
    opened: list[MongoStore] = []

    async def new(kind: type[MongoStore] = MongoStore, **settings: Any) -> MongoStore:
        store = kind(mongo_uri, database=database_name, codec=TextCodec(), **settings)
        opened.append(store)
        await store.open()
        return store

    yield new
    for store in opened:
        await store.close()


@pytest_asyncio.fixture
async def store(new_store: NewStore) -> MongoStore:
    return await new_store()


@pytest.fixture
def failing(client: Client) -> FailPoint:
    """`async with failing(["insert"], times=2, errorCode=…)`: the store's commands fail so; other clients' do not."""

    @asynccontextmanager
    async def failing(commands: list[str], *, times: int = 0, **how: Any) -> AsyncIterator[None]:
        async with fail_point(client, *commands, times=times, **how):
            yield

    return failing
