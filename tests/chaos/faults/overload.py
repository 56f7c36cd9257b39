"""More work than servers can finish."""

import json
import random
import sys
from typing import Final

from tests.chaos import tenants
from tests.chaos.cluster import Cluster
from tests.chaos.flood import FLOODS
from tests.chaos.programs import Program
from tests.chaos.servers import environment
from tests.chaos.strikes import Strike

RATE: Final = 200.0
"""Messages a second: several times what all servers here finish together."""
SECONDS: Final = 4.0
ENDING: Final = 25.0
"""Seconds after its last message that a flood has for the answers."""


async def flood(cluster: Cluster, strike: Strike, rng: random.Random) -> None:
    """Floods a server, or all of them, while the users go on."""
    servers = [await cluster.busiest(rng)] if rng.random() < 0.5 else cluster.living
    strike.aim(f"callers of {', '.join(server.name for server in servers)}")
    folder, seed = cluster.plan.logs, rng.getrandbits(32)
    command = [sys.executable, "-m", "tests.chaos.flood", "--addresses", ",".join(s.link.address for s in servers)]
    out = folder / FLOODS.replace("*", f"{seed}")
    how = ["--identity", folder / tenants.FOLDER, "--seed", seed, "--rate", RATE, "--seconds", SECONDS, "--out", out]
    program = Program("flood", [*command, *map(str, how)], log=folder / "flood.log", environ=environment())
    program.start()
    try:
        status = await program.ended(seconds=SECONDS + ENDING)
    finally:
        await program.kill_if_running()
    if status != 0:
        raise RuntimeError(f"the flood ended with status {status}: {program.output()[-200:]}")
    counts = json.loads(program.output().splitlines()[-1])
    evidence = f"{counts['refused']} of {counts['sent']} messages were refused, {counts['accepted']} accepted"
    strike.confirm(evidence) if counts["refused"] else strike.note(evidence)
