"""What the database says instead of doing as it is told: its own fail points, on the primary, for servers only."""

import contextlib
import random
from typing import Any, Final

from pymongo.errors import PyMongoError

from tests.chaos.cluster import Cluster
from tests.chaos.database import Node
from tests.chaos.strikes import Strike

PATIENCE: Final = 3.0
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
    """The change streams' cursors are killed: whoever lives by hints must begin anew."""
    primary, _ = await cluster.database.until_primary()
    strike.aim(primary.name)
    killed = 0
    for node in [node for node in cluster.database.nodes if node.answers]:
        with contextlib.suppress(PyMongoError):
            killed += await _kill_streams_of(node)
    if killed:
        strike.confirm(f"{killed} cursors of change streams were killed")


async def _fail(cluster: Cluster, strike: Strike, how: dict[str, Any], *, rng: random.Random) -> None:
    """Some such commands fail; confirmed when the database says that they met the fail point."""
    primary, _ = await cluster.database.until_primary()
    strike.aim(primary.name)
    strike.note(", ".join(how["failCommands"]))
    times = rng.randint(2, 8)
    mode = {"times": times}
    data = {**how, "appName": _APP}
    set_up = await primary.command("configureFailPoint", "failCommand", mode=mode, data=data)
    try:
        with contextlib.suppress(PyMongoError):
            await _entered(primary, set_up["count"] + times)
    finally:
        over = await primary.command("configureFailPoint", "failCommand", mode="off")
    entered = over["count"] - set_up["count"]
    if entered > 0:
        strike.confirm(f"{entered} commands met the fail point")


async def _entered(node: Node, times: int) -> None:
    """Until it was met so often, or for PATIENCE seconds. Raises PyMongoError when it was not."""
    await node.command("waitForFailPoint", "failCommand", timesEntered=times, maxTimeMS=round(PATIENCE * 1000) - 500)


async def _kill_streams_of(node: Node) -> int:
    """How many there were."""
    pipeline = [
        {"$currentOp": {"allUsers": True, "idleCursors": True}},
        {"$match": {"cursor.originatingCommand.pipeline.$changeStream": {"$exists": True}}},
    ]
    found = await node.command("aggregate", 1, pipeline=pipeline, cursor={})
    killed = 0
    for each in found["cursor"]["firstBatch"]:
        database, _, collection = each["ns"].partition(".")
        answer = await node.command("killCursors", collection, cursors=[each["cursor"]["cursorId"]], on=database)
        killed += len(answer["cursorsKilled"])
    return killed
