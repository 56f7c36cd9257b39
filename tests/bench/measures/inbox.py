"""Measures the inbox of approvers: from the commit of an approval to its arrival at those that watch."""

import statistics
from functools import partial
from typing import Final

from tests.bench.bench import Bench, Measure
from tests.bench.figures import Row, row
from tests.bench.jobs import inbox
from tests.bench.jobs.decisions import AGENT
from tests.bench.parts import Served

CHANGES: Final = 200
APART: Final = 0.05
"""Seconds between two changes."""
SCENES: Final = (("inbox.100", {AGENT: 100}), ("inbox.2000", {AGENT: 20, inbox.OTHER: 1_980}))
"""The watchers of each scene by the agent whose approvals they watch."""


async def arrivals(bench: Bench) -> list[Row]:
    """Measures 100 watchers that match, and 2,000 of which 20 match."""
    rows = list[Row]()
    for name, agents in SCENES:
        database = f"inbox-{sum(agents.values())}"
        async with bench.parts.server(database, database=database) as server:
            await bench.parts.load.run(inbox.wait_once, address=server.address)
            await bench.parts.load.run(inbox.open_inboxes, address=server.address, agents=agents)
            sides = {"subject": partial(_round, bench, server)}
            delays = (await bench.alternate(sides))["subject"]
            await bench.parts.load.run(inbox.end_inboxes)
        watchers = f"{sum(agents.values()):,} watchers of which {agents[AGENT]} match"
        about = f"from an approval's commit to its arrival, {watchers}"
        rows.append(
            row(f"{name}.p50", f"{about}: median", [statistics.median(of_round) for of_round in delays], unit="ms")
        )
        rows.append(row(f"{name}.p99", f"{about}: p99", [_p99(of_round) for of_round in delays], unit="ms"))
    return rows


async def _round(bench: Bench, server: Served) -> list[float]:
    count = CHANGES // 4 if bench.scale.quick else CHANGES
    where = {"uri": bench.parts.database.uri, "database": server.database}
    done = await bench.parts.load.run(inbox.change, **where, count=count, apart=APART)
    delays: list[float] = done["delays"]
    return delays


def _p99(delays: list[float]) -> float:
    return statistics.quantiles(delays, n=100)[98]


MEASURES = (Measure("inbox", "approvals to those that watch for them", arrivals),)
