"""Waits for the seal of what a server has put on record."""

from typing import Any

from pymongo import AsyncMongoClient

from tests.processes import until_call


async def sealed(mongo_uri: str, database: str) -> None:
    """Returns once the agents that a server has loaded are under a seal: it writes none until the next decision."""
    async with AsyncMongoClient[dict[str, Any]](mongo_uri) as client:
        records = client[database]["audit_records"]

        async def are_sealed() -> bool:
            return await records.find_one({}) is not None and await records.find_one({"seal": 0}) is None

        await until_call(are_sealed)
