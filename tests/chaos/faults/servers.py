"""Faults of one server."""

import asyncio
import contextlib
import random
import signal
from typing import Final

from tests.chaos.cluster import Cluster
from tests.chaos.servers import Server
from tests.chaos.services.running import ToolServer
from tests.chaos.strikes import Strike
from turnkeeper import faults

ARMED_TIME: Final = 6.0
"""Seconds that an armed server has to come by the place where it dies."""
ARMED_PLACES: Final = 3
"""Places at which it is armed, one after the other, until it has died at one."""
KILLED: Final = -int(signal.SIGKILL)


async def kill(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Kills the server with most turns; a new process takes its name later."""
    server = await cluster.busiest(rng)
    strike.aim(server.name)
    status = await server.kill()
    if status == KILLED:
        strike.confirm(f"pid {server.program.pid} ended by signal 9")
    await asyncio.sleep(rng.uniform(0.2, 3))
    await server.start()


async def armed(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Lets the server with most turns kill itself at a named fault point; at another one if it did not come by."""
    for place in rng.sample(sorted(faults.NAMES), ARMED_PLACES):
        server = await cluster.busiest(rng)
        name = f"{place}=kill@{rng.randint(1, 3)}"
        strike.aim(server.name)
        strike.note(name)
        if await server.arm(name) and await server.ended(seconds=ARMED_TIME) == KILLED:
            strike.confirm(f"pid {server.program.pid} killed itself there")
        if server.program.running:
            await server.kill()
        await server.start()
        if strike.confirmed:
            break


async def drain(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Drains a server with SIGTERM, as at a deploy, and starts the next process."""
    server = await cluster.busiest(rng)
    strike.aim(server.name)
    status = await server.drain()
    if status == 0:
        strike.confirm(f"pid {server.program.pid} drained and ended with status 0")
    strike.note(f"status {status}")
    await server.start()


async def stop_long(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Stops the server with most turns for two leases: others take over, and it comes back without its leases.

    Not for less: while the database is away, too, its leases lapse later.
    """
    await stop(await cluster.busiest(rng), strike, seconds=2 * cluster.plan.lease)


async def stop_short(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Pauses a server shortly, as a busy machine would."""
    await stop(await cluster.busiest(rng), strike, seconds=rng.uniform(0.3, 1.5))


async def blocked(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Blocks a server's event loop for a while, as a computing tool would; its threads go on."""
    server = await cluster.busiest(rng)
    strike.aim(server.name)
    seconds = rng.uniform(1, 1.5 * cluster.plan.lease)
    if await server.block(seconds):
        strike.confirm(f"its main thread was in our sleep of {seconds:.1f} s")
    await asyncio.sleep(seconds)


async def partition(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Cuts a server off from the database for more than a lease; its clients still reach it."""
    server = await cluster.busiest(rng)
    strike.aim(server.name)
    with cluster.wire.hole(cluster.database.links, [server.name], reset_after=rng.random() < 0.5) as hole:
        await asyncio.sleep(rng.uniform(1, 2) * cluster.plan.lease)
        if hole.caught:
            strike.confirm(f"{hole.caught} of its connections to the database fell silent")


async def silent(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Cuts a server off from its clients, with the connections open."""
    server = rng.choice(cluster.living)
    strike.aim(server.name)
    with cluster.wire.hole([server.name], reset_after=rng.random() < 0.5) as hole:
        await asyncio.sleep(rng.uniform(2, 5))
        if hole.caught:
            strike.confirm(f"{hole.caught} connections of clients fell silent")


async def stop(server: Server | ToolServer, strike: Strike, *, seconds: float) -> None:
    """Stops a process for so many seconds: what is sent to it meanwhile arrives later."""
    strike.aim(server.name)
    server.freeze()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while not server.program.stopped:  # noqa: ASYNC110 - a process sends no notification
                    await asyncio.sleep(0.01)
        if server.program.stopped:
            strike.confirm(f"pid {server.program.pid} was in state T, for {seconds:.1f} s")
        await asyncio.sleep(seconds)
    finally:
        server.thaw()
