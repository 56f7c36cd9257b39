"""The implementations that the contract suites run on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from random import Random

import pytest
import pytest_asyncio

from tests.contracts.databases import database_name, shared_database
from tests.contracts.implementations import IMPLEMENTATIONS
from tests.contracts.models import Stage
from tests.contracts.stores import TextCodec
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.store.contract import Store
from turnkeeper.store.mongo.store import MongoStore

__all__ = ["database_name", "new_memory_store", "new_mongo_store", "new_store", "shared_database", "store"]

NewStore = Callable[..., Awaitable[Store]]


@pytest.fixture(params=list(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> str:
    """The name of the implementation that a test runs on."""
    name: str = request.param
    return name


@pytest.fixture
def new_store(request: pytest.FixtureRequest, implementation: str) -> NewStore:
    """Opens a store on this test's own data: each one is another replica."""
    new: NewStore = request.getfixturevalue(f"new_{implementation}_store")
    return new


@pytest_asyncio.fixture
async def new_mongo_store(mongo_uri: str, database_name: str) -> AsyncIterator[NewStore]:
    opened: list[MongoStore] = []

    async def new(replica: str = "") -> Store:
        store = MongoStore(mongo_uri, database=database_name, codec=TextCodec(), replica=replica)
        opened.append(store)
        await store.open()
        return store

    yield new
    for store in opened:
        await store.close()


@pytest.fixture
def new_memory_store() -> NewStore:
    """Calls that are made at the same time reach the database in turns."""
    database = MemoryDatabase(now=lambda: datetime.now(UTC))

    async def new(replica: str = "") -> Store:
        return MemoryStore(
            database, codec=TextCodec(), enter=lambda _: asyncio.sleep(0), random=Random(), replica=replica
        )

    return new


@pytest_asyncio.fixture
async def store(new_store: NewStore) -> Store:
    return await new_store()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage
