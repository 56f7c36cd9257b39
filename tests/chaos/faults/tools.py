"""Faults of tool servers."""

import asyncio
import os
import random
import signal
import time
from typing import Final

from tests.chaos.cluster import Cluster
from tests.chaos.effects import Tail
from tests.chaos.faults.servers import KILLED, stop
from tests.chaos.programs import state
from tests.chaos.services.running import Services
from tests.chaos.strikes import Strike

AWAIT_EFFECT: Final = 4.0
"""Seconds for which a kill waits for a call to take effect."""
LONGEST_FREEZE: Final = 8.0
"""Seconds: twice the time that the catalogue gives their calls."""
END_TIME: Final = 2.0
"""Seconds in which a killed process is seen to have ended."""


async def kill(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Kills a tool server, between an effect and its answer if there is one soon; a new process comes later."""
    services = _services(cluster)
    server, tail = rng.choice(services.servers), Tail(services.folder)
    until = time.monotonic() + AWAIT_EFFECT
    while not tail.takes_effect(server.name) and time.monotonic() < until:  # noqa: ASYNC110 - a file sends no notification
        await asyncio.sleep(0.02)
    strike.aim(server.name)
    status = await server.kill()
    if status == KILLED:
        between = ", between an effect and its answer" if tail.takes_effect(server.name) else ""
        strike.confirm(f"pid {server.program.pid} ended by signal 9{between}")
    await asyncio.sleep(rng.uniform(0.2, 3))
    await server.start()


async def freeze(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Stops a tool server for a time: calls outlast theirs, and what was sent arrives later."""
    server, seconds = rng.choice(_services(cluster).servers), rng.uniform(1, LONGEST_FREEZE)
    await stop(server, strike, seconds=seconds)


async def cut(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Resets every connection to the tool servers, or to one of them."""
    connected = cluster.wire.counts()
    servers = [server.name for server in _services(cluster).servers]
    if rng.random() < 0.5:
        servers = [rng.choice([name for name in servers if connected[name]] or servers)]
    strike.aim(", ".join(servers))
    count = cluster.wire.cut(servers)
    if count:
        strike.confirm(f"{count} connections to tool servers were reset")


async def kill_at_a_replica(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Kills the process of the MCP server over stdio at one replica."""
    replicas = {server.program.pid: server.name for server in cluster.living}
    running = _services(cluster).census.count(at=time.monotonic())
    candidates = [process for process in running if not process.is_guard and process.replica in replicas]
    process = rng.choice(sorted(candidates, key=lambda process: replicas[process.replica]))
    strike.aim(f"the tools of {replicas[process.replica]}")
    os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + END_TIME
    while state(process.pid) not in ("", "Z") and time.monotonic() < until:  # noqa: ASYNC110 - it sends no notification
        await asyncio.sleep(0.01)
    if state(process.pid) in ("", "Z"):
        strike.confirm(f"pid {process.pid} ended by signal 9")


def _services(cluster: Cluster) -> Services:
    """Returns the tool servers. Raises RuntimeError for a cluster without them."""
    if cluster.services is None:
        raise RuntimeError("the cluster has no tool servers")
    return cluster.services
