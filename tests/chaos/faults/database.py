"""Faults of the replica set."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import pymongo
from bson import Timestamp
from pymongo.errors import AutoReconnect, PyMongoError

from tests.chaos.cluster import Cluster
from tests.chaos.database import Node, ReplicaSet
from tests.chaos.strikes import Strike

_KILLED: Final = -int(signal.SIGKILL)
_NOTABLE_WAIT: Final = 1.0
"""Seconds; usually a write waits some milliseconds."""
_BETWEEN_PROBES: Final = 0.3
LATEST: Final = 8.0
"""Seconds for one write of ours, at most."""
SLOW_FOR: Final = 30.0
"""Seconds of a slow majority, at most."""
_LANDED_WITHIN: Final = 3.0
"""Seconds in which commits land once a majority can have them."""
_PAUSES: Final = 4
"""Pauses, at most, until one of them meets a message that is being stored."""
_LANDED: Final = "after its caller got UNAVAILABLE: "


async def kill(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Kills the primary with SIGKILL; it comes back later."""
    primary, term = await cluster.database.until_primary()
    strike.aim(primary.name)
    await _kill(cluster.database, primary, strike, term=term)
    await asyncio.sleep(rng.uniform(0, 2))
    await _back(cluster.database, primary)


async def kill_unreplicated(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Kills the primary while no member replicates it: its last writes are lost."""
    database = cluster.database
    primary, term = await database.until_primary()
    others = await database.secondaries()
    strike.aim(primary.name)
    async with replication_paused(others):
        await asyncio.sleep(rng.uniform(0.5, 1.2))
        strike.note(f"{await _ahead(primary, others)} s of its log were on no other member")
        await primary.kill()
    await _kill(database, primary, strike, term=term)
    await asyncio.sleep(rng.uniform(0, 1))
    await _back(database, primary)


async def step_down(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Makes the primary step down."""
    primary, term = await cluster.database.until_primary()
    strike.aim(primary.name)
    with contextlib.suppress(AutoReconnect):
        await primary.command("replSetStepDown", 8, secondaryCatchUpPeriodSecs=2, force=True)
    await _new_term(cluster.database, strike, term=term)
    await cluster.database.until_whole()


async def freeze(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Stops the primary with SIGSTOP: connections stay open without an answer; later it goes on as a secondary."""
    primary, term = await cluster.database.until_primary()
    strike.aim(primary.name)
    primary.freeze()
    try:
        await asyncio.sleep(0.1)
        stopped = primary.program.stopped
        node = await cluster.database.until_primary(above=term, seconds=20)
        if stopped:
            strike.confirm(f"pid {primary.program.pid} was in state T; {node[0].name} is primary, term {node[1]}")
        await asyncio.sleep(rng.uniform(0.5, 3))
    finally:
        primary.thaw()
    await cluster.database.until_whole()


async def isolate(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Isolates the primary from the others but not from the servers: its writes will be rolled back."""
    database = cluster.database
    primary, term = await database.until_primary()
    others = [node.name for node in database.nodes if node is not primary]
    strike.aim(primary.name)
    both = contextlib.ExitStack()
    with both:
        ours = both.enter_context(cluster.wire.hole([primary.name], others))
        theirs = both.enter_context(cluster.wire.hole(others, [primary.name]))
        node, newer = await database.until_primary(above=term, seconds=20)
        caught = ours.caught + theirs.caught
        if caught:
            strike.confirm(f"{caught} connections between members fell silent; {node.name} is primary, term {newer}")
        await asyncio.sleep(rng.uniform(0.5, 2))
    await database.until_whole()


async def no_majority(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Stops two of three members: the primary must step down, and nothing can be written."""
    database = cluster.database
    primary, _ = await database.until_primary()
    others = [node for node in database.nodes if node is not primary]
    strike.aim("mongo: " + ", ".join(node.name for node in others))
    for node in others:
        node.freeze()
    try:
        await asyncio.sleep(0.1)
        stopped = all(node.program.stopped for node in others)
        async with asyncio.timeout(15):
            while await database.primary() is not None:  # noqa: ASYNC110 - a database sends no notification
                await asyncio.sleep(0.1)
        if stopped:
            strike.confirm(f"{len(others)} members were in state T, and {primary.name} was primary no more")
        await asyncio.sleep(rng.uniform(0.5, 3))
    finally:
        for node in others:
            node.thaw()
    await database.until_whole()


async def slow_majority(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Lets a majority have each write 2 s late: nothing is lost, and everything takes longer.

    It lasts until a write of ours was notably late and servers' writes waited beside it, for SLOW_FOR seconds at most.
    """
    async with cluster.database.slow_majority(seconds=2) as primary:
        strike.aim(primary.name)
        least = time.monotonic() + rng.uniform(6, 10)
        ours: list[float] = []
        waited, others, late = await _waits(primary), [0, 0], 0
        while (now := time.monotonic()) < least or (not late and now < strike.began_mono + SLOW_FOR):
            ours.append(await _until_majority(primary))
            others = [after - before for after, before in zip(await _waits(primary), waited, strict=True)]
            late = sum(seconds > _NOTABLE_WAIT for seconds in ours) if others[0] > len(ours) else 0
            await asyncio.sleep(_BETWEEN_PROBES)
    evidence = f"{late} of our {len(ours)} writes were up to {max(ours):.1f} s late for a majority; "
    evidence += f"all {others[0]} that waited did so for {others[1] / 1000:.0f} s altogether"
    if late:
        strike.confirm(evidence)
    else:
        strike.note(evidence)
    await cluster.database.until_whole()


async def late_commits(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Lets commits wait for a majority beyond their callers' time; then they land."""
    primary, _ = await cluster.database.until_primary()
    others = await cluster.database.secondaries()
    strike.aim(primary.name)
    for _ in range(_PAUSES):
        before = _landed_by_program(cluster)
        async with replication_paused(others):
            await asyncio.sleep(rng.uniform(6, 7))
        landed, until = 0, time.monotonic() + _LANDED_WITHIN
        while not landed and time.monotonic() < until:
            await asyncio.sleep(0.2)
            landed = sum(count - before.get(pid, 0) for pid, count in _landed_by_program(cluster).items())
        if landed:
            strike.confirm(f"{landed} turns were stored after their callers got UNAVAILABLE")
            break
        strike.note("no turn was stored after its caller got UNAVAILABLE")
    await cluster.database.until_whole()


async def _until_majority(primary: Node) -> float:
    """Writes once. Returns the seconds until a majority had it, LATEST at most."""
    began = time.monotonic()
    update = {"q": {"_id": "late"}, "u": {"$inc": {"writes": 1}}, "upsert": True}
    concern = {"w": "majority", "wtimeout": round(LATEST * 1000)}
    with contextlib.suppress(PyMongoError), pymongo.timeout(LATEST + 1):
        await primary.command("update", "late", updates=[update], writeConcern=concern, on="chaos_probe")
    return time.monotonic() - began


async def _waits(primary: Node) -> tuple[int, int]:
    """Returns how many writes have waited for other members, and for how many milliseconds altogether."""
    waits = (await primary.command("serverStatus"))["metrics"]["getLastError"]["wtime"]
    return waits["num"], waits["totalMillis"]


def _landed_by_program(cluster: Cluster) -> dict[int, int]:
    """Returns how many turns each server process has stored late, by its log."""
    return {server.program.pid: server.program.output().count(_LANDED) for server in cluster.servers}


async def _kill(database: ReplicaSet, primary: Node, strike: Strike, *, term: int) -> None:
    """Kills the node if it still runs; confirmed once there is another primary."""
    status = await primary.kill() if primary.program.running else primary.program.status
    node, newer = await database.until_primary(above=term, seconds=30)
    if status == _KILLED:
        strike.confirm(f"pid {primary.program.pid} ended by signal 9; {node.name} is primary, term {newer}")


async def _back(database: ReplicaSet, node: Node) -> None:
    await node.start()
    await database.until_whole()


async def _new_term(database: ReplicaSet, strike: Strike, *, term: int) -> None:
    node, newer = await database.until_primary(above=term, seconds=20)
    strike.confirm(f"{node.name} is primary, term {newer} after {term}")


@contextlib.asynccontextmanager
async def replication_paused(nodes: Sequence[Node]) -> AsyncIterator[None]:
    try:
        for node in nodes:
            await node.command("configureFailPoint", "stopReplProducer", mode="alwaysOn")
        yield
    finally:
        for node in nodes:
            with contextlib.suppress(PyMongoError):
                await node.command("configureFailPoint", "stopReplProducer", mode="off")


async def _ahead(primary: Node, others: Sequence[Node]) -> int:
    """Seconds of log that only the primary has."""
    stamps = [await _applied(node) for node in (primary, *others)]
    return int(stamps[0].time - max(stamp.time for stamp in stamps[1:]))


async def _applied(node: Node) -> Timestamp:
    status: dict[str, Any] = await node.command("replSetGetStatus")
    timestamp: Timestamp = status["optimes"]["appliedOpTime"]["ts"]
    return timestamp
