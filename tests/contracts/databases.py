"""One database for many tests, emptied after each: making and dropping one takes longer than most tests."""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database


@pytest.fixture(scope="session")
def shared_database(mongo_uri: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        name = f"turnkeeper_test_{secrets.token_hex(6)}"
        yield client[name]
        client.drop_database(name)


@pytest.fixture
def database_name(shared_database: Database[dict[str, Any]]) -> Iterator[str]:
    """The name of a database without documents; its collections and indexes may be there."""
    yield shared_database.name
    for collection in shared_database.list_collection_names():
        shared_database[collection].delete_many({})
