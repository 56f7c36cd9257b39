"""Every kind of fault by its name."""

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tests.chaos.cluster import Cluster
from tests.chaos.faults import clocks, commands, database, overload, servers, tools, wire
from tests.chaos.plan import Lane
from tests.chaos.strikes import Strike

Doing = Callable[[Cluster, Strike, random.Random], Awaitable[None]]
"""Does it, confirms it, and undoes it; it may raise when it cannot be done just now."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. `clock`: it needs clocks that can be set."""

    lane: Lane
    do: Doing
    clock: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "server-kill": Kind(Lane.SERVERS, servers.kill),
    "server-armed": Kind(Lane.SERVERS, servers.armed),
    "server-drain": Kind(Lane.SERVERS, servers.drain),
    "server-stop-long": Kind(Lane.SERVERS, servers.stop_long),
    "server-stop-short": Kind(Lane.SERVERS, servers.stop_short),
    "server-blocked": Kind(Lane.SERVERS, servers.blocked),
    "server-partition": Kind(Lane.SERVERS, servers.partition),
    "server-silent": Kind(Lane.SERVERS, servers.silent),
    "server-overload": Kind(Lane.SERVERS, overload.flood),
    "server-clock": Kind(Lane.SERVERS, clocks.of_a_server, clock=True),
    "primary-kill": Kind(Lane.DATABASE, database.kill),
    "primary-kill-unreplicated": Kind(Lane.DATABASE, database.kill_unreplicated),
    "primary-step-down": Kind(Lane.DATABASE, database.step_down),
    "primary-freeze": Kind(Lane.DATABASE, database.freeze),
    "primary-isolated": Kind(Lane.DATABASE, database.isolate),
    "no-majority": Kind(Lane.DATABASE, database.no_majority),
    "majority-slow": Kind(Lane.DATABASE, database.slow_majority),
    "commit-late": Kind(Lane.DATABASE, database.late_commits),
    "primary-clock": Kind(Lane.DATABASE, clocks.of_the_primary, clock=True),
    "client-cut": Kind(Lane.WIRE, wire.cut_clients),
    "database-cut": Kind(Lane.WIRE, wire.cut_database),
    "commit-reply-lost": Kind(Lane.WIRE, wire.lose_replies),
    "commit-unsure": Kind(Lane.WIRE, commands.unsure),
    "not-primary": Kind(Lane.WIRE, commands.not_primary),
    "write-conflict": Kind(Lane.WIRE, commands.conflict),
    "command-cut": Kind(Lane.WIRE, commands.cut),
    "stream-kill": Kind(Lane.WIRE, commands.kill_streams),
    "tools-kill": Kind(Lane.TOOLS, tools.kill),
    "tools-freeze": Kind(Lane.TOOLS, tools.freeze),
    "tools-cut": Kind(Lane.TOOLS, tools.cut),
    "tools-stdio-kill": Kind(Lane.TOOLS, tools.kill_at_a_replica),
}


def chosen(*, only: set[str] | None, without: set[str]) -> list[str]:
    """Returns the chosen names; `clock` in `without` is all that need clocks. Raises ValueError for unknown names."""
    unknown = ((only or set()) | without) - KINDS.keys() - {"clock"}
    if unknown:
        raise ValueError(f"no such kind of fault: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    return [
        name
        for name, kind in KINDS.items()
        if (only is None or name in only) and name not in without and not (kind.clock and "clock" in without)
    ]
