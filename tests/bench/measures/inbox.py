"""Measures the inbox of approvers: from the commit of an approval to its arrival, and the list of what waits."""

import statistics
from datetime import timedelta
from functools import partial
from typing import Any, Final

from pymongo import AsyncMongoClient

from tests.bench.bench import Bench, Measure
from tests.bench.figures import Row, row
from tests.bench.jobs import inbox
from tests.bench.jobs.decisions import AGENT
from tests.bench.parts import Served
from tests.stored_approvals import GROUPS, STORED, store_approvals
from turnkeeper import dev_credentials

CHANGES: Final = 200
APART: Final = 0.05
"""Seconds between two changes."""
SCENES: Final = (("inbox.100", {AGENT: 100}), ("inbox.2000", {AGENT: 20, inbox.OTHER: 1_980}))
"""The watchers of each scene by the agent whose approvals they watch."""
LISTS: Final = 500
FEW_LISTS: Final = 100


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


async def mine(bench: Bench) -> list[Row]:
    """Measures pages of what one person may decide, among STORED approvals."""
    folder = bench.parts.folder / "approver"
    folder.mkdir()
    dev_credentials.write(folder, {"bert": ["approver"]}, hosts=["127.0.0.1"], lifetime=timedelta(days=1))
    principals = folder / "principals.toml"
    principals.write_text(f"{principals.read_text()}groups = {list(GROUPS)}\n")
    issuer = ("--jwt-issuer", dev_credentials.ISSUER, "--jwt-audience", dev_credentials.AUDIENCE)
    flags = ("--identity", "jwt", *issuer, "--jwt-keys", str(folder / "keys.json"), "--principals", str(principals))
    token = (folder / "bert.token").read_text()
    async with bench.parts.server("inbox-mine", *flags, database="inbox-mine") as server:
        async with AsyncMongoClient[dict[str, Any]](bench.parts.database.uri) as client:
            await store_approvals(client, server.database)
        times = (await bench.alternate({"subject": partial(_lists, bench, server, token)}))["subject"]
    about = f"ListApprovals decidable_by=@me, {inbox.PAGE} of {STORED:,} approvals"
    return [
        row("inbox.mine.p50", f"{about}: median", [statistics.median(of_round) for of_round in times], unit="ms"),
        row("inbox.mine.p99", f"{about}: p99", [_p99(of_round) for of_round in times], unit="ms"),
    ]


async def _lists(bench: Bench, server: Served, token: str) -> list[float]:
    count = FEW_LISTS if bench.scale.quick else LISTS
    times: list[float] = await bench.parts.load.run(inbox.list_mine, address=server.address, token=token, count=count)
    return times


MEASURES = (
    Measure("inbox", "approvals to those that watch for them", arrivals),
    Measure("inbox-mine", "the list of what one person may decide", mine),
)
