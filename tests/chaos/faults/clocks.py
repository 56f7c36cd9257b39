"""Wall clocks that jump."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tests.chaos.clock import CACHED, Clock
from tests.chaos.cluster import Cluster
from tests.chaos.database import Node
from tests.chaos.strikes import Strike

_JUMPS: Final = (-3600.0, -60.0, -10.0, 10.0, 60.0, 3600.0)
_TOLERANCE: Final = 1.5
_NOTICED: Final = 6 * CACHED


async def of_a_server(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Moves a server's clock by ten seconds to an hour, either way: no decision may depend on it."""
    server = await cluster.busiest(rng)
    strike.aim(server.name)
    await _jump(server.clock, server.wall_clock, strike, by=rng.choice(_JUMPS), seconds=rng.uniform(2, 5))


async def of_the_primary(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Moves the primary's clock by a few seconds, either way: leases lapse early or late, and the fences hold."""
    primary, _ = await cluster.database.until_primary()
    strike.aim(primary.name)
    by = rng.choice((-1, 1)) * rng.uniform(3, 8)

    async def read() -> float:
        return await _wall_clock(primary)

    await _jump(primary.clock, read, strike, by=by, seconds=rng.uniform(1, 4))


async def _jump(
    clock: Clock, read: Callable[[], Awaitable[float]], strike: Strike, *, by: float, seconds: float
) -> None:
    clock.set(by)
    try:
        off = await _seen(read, by=by)
        if abs(off - by) < _TOLERANCE:
            strike.confirm(f"the process is {off:+.1f} s off")
        else:
            strike.note(f"asked for {by:+.1f} s, and it is {off:+.1f} s off")
        await asyncio.sleep(seconds)
    finally:
        clock.set(0)
    await asyncio.sleep(CACHED)


async def _seen(read: Callable[[], Awaitable[float]], *, by: float) -> float:
    """Returns how far off the process's clock is, in seconds, once it has changed or time is over."""
    deadline = time.monotonic() + _NOTICED
    while True:
        await asyncio.sleep(CACHED / 4)
        off = await read() - time.time()
        if abs(off - by) < _TOLERANCE or time.monotonic() > deadline:
            return off


async def _wall_clock(node: Node) -> float:
    return float((await node.command("hello"))["localTime"].replace(tzinfo=None).timestamp())
