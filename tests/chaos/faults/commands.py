"""Commands of servers that the database refuses or delays, by its own fail points on the primary."""

import asyncio
import contextlib
import random
from typing import Any, Final

from pymongo.errors import PyMongoError

from tests.chaos.cluster import Cluster
from tests.chaos.database import Node
from tests.chaos.strikes import Strike

PATIENCE: Final = 3.0
TRIES: Final = 5
"""Of a fault that took no effect, for instance because there was no primary to have one on."""
_APP: Final = "turnkeeper"
_NOT_PRIMARY: Final = 10_107
_WRITE_CONFLICT: Final = 112
_WRITES: Final = ("insert", "update", "findAndModify")


async def unsure(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Commits are done, and answered as if that were not sure."""
    wrong = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "no word from a majority"}
    await _fail(cluster, strike, {"failCommands": ["commitTransaction"], "writeConcernError": wrong}, rng=rng)


async def not_primary(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Commands are refused as if the primary had left office."""
    command = rng.choice([*_WRITES, "find", "aggregate", "commitTransaction"])
    await _fail(cluster, strike, {"failCommands": [command], "errorCode": _NOT_PRIMARY}, rng=rng)


async def conflict(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Writes lose against others that do not exist."""
    labels = ["TransientTransactionError"]
    how = {"failCommands": ["update", "insert"], "errorCode": _WRITE_CONFLICT, "errorLabels": labels}
    await _fail(cluster, strike, how, rng=rng)


async def cut(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Connections break before a command is done."""
    command = rng.choice([*_WRITES, "find", "aggregate", "commitTransaction"])
    await _fail(cluster, strike, {"failCommands": [command], "closeConnection": True}, rng=rng)


async def kill_streams(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Kills the cursors of the change streams: every change listener must open a new one."""
    for _ in range(TRIES):
        primary, _ = await cluster.database.until_primary()
        strike.aim(primary.name)
        killed = 0
        for node in [node for node in cluster.database.nodes if node.answers]:
            with contextlib.suppress(PyMongoError):
                killed += await _kill_streams_of(node)
        if killed:
            strike.confirm(f"{killed} cursors of change streams were killed")
            break
        await asyncio.sleep(1)


async def _fail(cluster: Cluster, strike: Strike, how: dict[str, Any], *, rng: random.Random) -> None:
    """Lets some such commands fail; confirmed when the database has counted the fail point.

    A primary that gets no such command in PATIENCE seconds may be one no more: tried again, TRIES times at most.
    """
    strike.note(", ".join(how["failCommands"]))
    times = rng.randint(2, 8)
    for _ in range(TRIES):
        primary, _ = await cluster.database.until_primary()
        strike.aim(primary.name)
        try:
            entered = await _failed(primary, how, times=times)
        except PyMongoError:  # another lane has just broken this node
            await asyncio.sleep(1)
            continue
        if entered:
            strike.confirm(f"{entered} commands met the fail point")
            break


async def _failed(primary: Node, how: dict[str, Any], *, times: int) -> int:
    """Lets `times` such commands fail. Returns how many did, within PATIENCE seconds."""
    mode = {"times": times}
    data = {**how, "appName": _APP}
    set_up = await primary.command("configureFailPoint", "failCommand", mode=mode, data=data)
    try:
        with contextlib.suppress(PyMongoError):
            await _entered(primary, set_up["count"] + times)
    finally:
        over = await primary.command("configureFailPoint", "failCommand", mode="off")
    return int(over["count"] - set_up["count"])


async def _entered(node: Node, times: int) -> None:
    """Waits until the fail point was met so often, for PATIENCE seconds at most. Raises PyMongoError if it was not."""
    await node.command("waitForFailPoint", "failCommand", timesEntered=times, maxTimeMS=round(PATIENCE * 1000) - 500)


async def _kill_streams_of(node: Node) -> int:
    """Kills the node's cursors of change streams. Returns their number."""
    pipeline = [
        {"$currentOp": {"allUsers": True, "idleCursors": True}},
        {"$match": {"cursor.originatingCommand.pipeline.$changeStream": {"$exists": True}}},
    ]
    reply = await node.command("aggregate", 1, pipeline=pipeline, cursor={})
    killed = 0
    for cursor in reply["cursor"]["firstBatch"]:
        database, _, collection = cursor["ns"].partition(".")
        answer = await node.command("killCursors", collection, cursors=[cursor["cursor"]["cursorId"]], on=database)
        killed += len(answer["cursorsKilled"])
    return killed
