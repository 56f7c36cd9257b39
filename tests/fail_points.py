"""A fail point of the tests' database: commands of the service fail, wait or lose their answers."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

Client = AsyncMongoClient[dict[str, Any]]


@contextlib.asynccontextmanager
async def fail_point(client: Client, *commands: str, times: int = 0, **how: Any) -> AsyncIterator[int]:
    """Lets the service's next `times` commands of these kinds fail as `how` names it; 0: all, until the block ends.

    Yields how often such a command was met before.
    """
    mode = {"times": times} if times else "alwaysOn"
    data = {"appName": "turnkeeper", "failCommands": commands, **how}
    try:
        set_up = await client.admin.command("configureFailPoint", "failCommand", mode=mode, data=data)
    except OperationFailure as error:
        needed = "start it with --setParameter enableTestCommands=1, or unset MONGODB_URI"
        pytest.skip(f"this database has no fail points ({error.code}): {needed}")
    try:
        yield set_up["count"]
    finally:
        await client.admin.command("configureFailPoint", "failCommand", mode="off")
