"""Lets the database's commands be slow, fail or lose their answers, by its fail points."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

Client = AsyncMongoClient[dict[str, Any]]
PATIENCE_MS = 15_000


@dataclass(frozen=True, slots=True)
class HeldUp:
    """A command that is held up."""

    client: Client
    count: int

    async def entered(self, times: int = 1) -> None:
        """Waits until the command was met so often."""
        await self.client.admin.command(
            {"waitForFailPoint": "failCommand", "timesEntered": self.count + times, "maxTimeMS": PATIENCE_MS}
        )


@contextlib.asynccontextmanager
async def held_up(mongo_uri: str, command: str, *, by: timedelta) -> AsyncIterator[HeldUp]:
    """Delays the next such command of any server by this time."""
    milliseconds = round(by / timedelta(milliseconds=1))
    how = {"failCommands": [command], "blockConnection": True, "blockTimeMS": milliseconds}
    async with _fail_point(mongo_uri, how, times=1) as held:
        yield held


@contextlib.asynccontextmanager
async def unsure(mongo_uri: str, *, times: int) -> AsyncIterator[None]:
    """Lets so many commits of the servers be done, but answered with an unknown outcome."""
    wrong = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "no word from a majority"}
    how = {"failCommands": ["commitTransaction"], "writeConcernError": wrong}
    async with _fail_point(mongo_uri, how, times=times):
        yield


@contextlib.asynccontextmanager
async def stored_late(mongo_uri: str, collection: str) -> AsyncIterator[HeldUp]:
    """Lets the servers' next update of `database.collection` be done, but answered as if no majority had it in time."""
    wrong = {"code": 50, "codeName": "MaxTimeMSExpired", "errmsg": "no majority in time"}
    how = {"failCommands": ["update"], "namespace": collection, "writeConcernError": wrong}
    async with _fail_point(mongo_uri, how, times=1) as held:
        yield held


@contextlib.asynccontextmanager
async def disconnected(mongo_uri: str, *commands: str) -> AsyncIterator[None]:
    """Cuts the connection of each such command of the servers."""
    async with _fail_point(mongo_uri, {"failCommands": list(commands), "closeConnection": True}, times=0):
        yield


@contextlib.asynccontextmanager
async def refused_command(mongo_uri: str, command: str, *, times: int = 0, **how: Any) -> AsyncIterator[HeldUp]:
    """Lets the servers' change streams fail at this command; for ever unless `times` is given."""
    how = {"failCommands": [command], "appName": "turnkeeper-hints", **how}
    async with _fail_point(mongo_uri, how, times=times) as held:
        yield held


@contextlib.asynccontextmanager
async def not_answered(mongo_uri: str, *commands: str, collection: str = "") -> AsyncIterator[None]:
    """Lets the servers' commands of these kinds run out of time, on `database.collection` or anywhere."""
    where = {"namespace": collection} if collection else {}
    async with _fail_point(mongo_uri, {"failCommands": list(commands), "errorCode": 50, **where}, times=0):
        yield


@contextlib.asynccontextmanager
async def _fail_point(mongo_uri: str, how: dict[str, Any], *, times: int) -> AsyncIterator[HeldUp]:
    data = {"appName": "turnkeeper", **how}
    mode = {"times": times} if times else "alwaysOn"
    async with Client(mongo_uri) as client:
        try:
            set_up = await client.admin.command("configureFailPoint", "failCommand", mode=mode, data=data)
        except OperationFailure as error:
            pytest.skip(f"this database has no fail points: {error.code}")
        try:
            yield HeldUp(client, set_up["count"])
        finally:
            await client.admin.command("configureFailPoint", "failCommand", mode="off")
