"""Lets the database's commands be slow, fail or lose their answers, by its fail points."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tests.fail_points import Client, fail_point
from turnkeeper.engine.replica.sweeper import SWEEPS_A_RESCUE

PATIENCE_MS = 15_000
FINDS = SWEEPS_A_RESCUE + 2
"""Reads of heads in a round of sweeps: leases that lapsed in each; queues and turns that nothing wakes in one."""


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
    async with _fail_point(mongo_uri, command, times=1, blockConnection=True, blockTimeMS=milliseconds) as held:
        yield held


@contextlib.asynccontextmanager
async def unsure(mongo_uri: str, *, times: int) -> AsyncIterator[None]:
    """Lets so many commits of the servers be done, but answered with an unknown outcome."""
    wrong = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "no word from a majority"}
    async with _fail_point(mongo_uri, "commitTransaction", times=times, writeConcernError=wrong):
        yield


@contextlib.asynccontextmanager
async def stored_late(mongo_uri: str, collection: str) -> AsyncIterator[HeldUp]:
    """Lets the servers' next update of `database.collection` be done, but answered as if no majority had it in time."""
    wrong = {"code": 50, "codeName": "MaxTimeMSExpired", "errmsg": "no majority in time"}
    async with _fail_point(mongo_uri, "update", times=1, namespace=collection, writeConcernError=wrong) as held:
        yield held


@contextlib.asynccontextmanager
async def disconnected(mongo_uri: str, *commands: str) -> AsyncIterator[None]:
    """Cuts the connection of each such command of the servers."""
    async with _fail_point(mongo_uri, *commands, times=0, closeConnection=True):
        yield


@contextlib.asynccontextmanager
async def refused_command(mongo_uri: str, command: str, *, times: int = 0, **how: Any) -> AsyncIterator[HeldUp]:
    """Lets the servers' change streams fail at this command; for ever unless `times` is given."""
    async with _fail_point(mongo_uri, command, times=times, appName="turnkeeper-hints", **how) as held:
        yield held


@contextlib.asynccontextmanager
async def not_answered(mongo_uri: str, *commands: str, collection: str = "") -> AsyncIterator[None]:
    """Lets the servers' commands of these kinds run out of time, on `database.collection` or anywhere."""
    where = {"namespace": collection} if collection else {}
    async with _fail_point(mongo_uri, *commands, times=0, errorCode=50, **where):
        yield


async def swept(mongo_uri: str, database: str) -> None:
    """Waits until the servers have looked for turns to claim, and then for all that a sweep may requeue."""
    for command, count in {"aggregate": 2, "find": FINDS + 1}.items():
        where = {"namespace": f"{database}.heads", "blockConnection": True, "blockTimeMS": 1}
        async with _fail_point(mongo_uri, command, times=0, **where) as looking:
            await looking.entered(count)


@contextlib.asynccontextmanager
async def _fail_point(mongo_uri: str, *commands: str, times: int, **how: Any) -> AsyncIterator[HeldUp]:
    async with Client(mongo_uri) as client, fail_point(client, *commands, times=times, **how) as count:
        yield HeldUp(client, count)
