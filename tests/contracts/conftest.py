"""The implementations that the contract suites run on."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.contracts.databases import database_name, shared_database
from tests.contracts.models import Stage
from tests.contracts.stores import TextCodec
from turnkeeper.store.contract import Store
from turnkeeper.store.mongo.store import MongoStore

__all__ = ["database_name", "new_store", "shared_database", "store"]

NewStore = Callable[..., Awaitable[Store]]


@pytest_asyncio.fixture(params=["mongo"])
async def new_store(request: pytest.FixtureRequest, mongo_uri: str, database_name: str) -> AsyncIterator[NewStore]:
    """Opens a store on this test's own data: each one is another replica."""
    opened: list[MongoStore] = []

    async def new(replica: str = "") -> Store:
        store = MongoStore(mongo_uri, database=database_name, codec=TextCodec(), replica=replica)
        opened.append(store)
        await store.open()
        return store

    yield new
    for store in opened:
        await store.close()


@pytest_asyncio.fixture
async def store(new_store: NewStore) -> Store:
    return await new_store()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage
