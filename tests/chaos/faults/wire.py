"""Faults of connections."""

import asyncio
import random

from tests.chaos.cluster import Cluster
from tests.chaos.strikes import Strike

LOST_TIME = 4.0


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
        for _ in range(round(LOST_TIME / 0.1)):
            await asyncio.sleep(0.1)
            if not theft.left:
                break
        if theft.taken:
            strike.confirm(f"{theft.taken} answers to commits were lost after the database had given them")
