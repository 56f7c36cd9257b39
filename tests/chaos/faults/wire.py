"""Faults of connections."""

import asyncio
import random
import time

from tests.chaos.cluster import Cluster
from tests.chaos.strikes import Strike

LOST_TIME = 4.0
"""Seconds in which answers are lost, at most, once one was."""
LATEST = 20.0
"""Seconds until the first answer is lost, at most: without a primary there is none, and a slow majority delays it."""


async def cut_clients(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Resets every connection of the clients to a server, or to all of them."""
    connected = cluster.wire.counts()
    servers = [server for server in cluster.servers if connected[server.name]] or cluster.servers
    if rng.random() < 0.5:
        servers = [rng.choice(servers)]
    strike.aim(", ".join(server.name for server in servers))
    cut = cluster.wire.cut([server.name for server in servers])
    if cut:
        strike.confirm(f"{cut} connections of clients were reset")


async def cut_database(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Resets every connection to the database, of a server or of all of them."""
    servers = cluster.servers if rng.random() < 0.5 else [rng.choice(cluster.servers)]
    strike.aim(", ".join(server.name for server in servers))
    cut = cluster.wire.cut(cluster.database.links, [server.name for server in servers])
    if cut:
        strike.confirm(f"{cut} connections to the database were reset")


async def lose_replies(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Loses the answers to the next commits, with their connections; the commits are done."""
    servers = [server.name for server in cluster.servers]
    strike.aim("servers")
    with cluster.wire.theft(cluster.database.links, servers, b"commitTransaction", times=rng.randint(2, 6)) as theft:
        began = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            waited = time.monotonic() - began
            if (theft.taken and (waited > LOST_TIME or not theft.left)) or waited > LATEST:
                break
        if theft.taken:
            strike.confirm(f"{theft.taken} answers to commits were lost after the database had given them")
