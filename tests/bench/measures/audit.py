"""Measures what the audit trail costs: turns with a decision, beside a server that records and seals nothing."""

from typing import Any

from pymongo import AsyncMongoClient

from tests.bench.bench import Bench, Measure, Round
from tests.bench.figures import Invalid, Row, row
from tests.bench.jobs.decisions import decide_turns
from tests.bench.parts import Served

CALLERS = 64
WITHOUT = "tests.bench.without_audit"


async def audit(bench: Bench) -> list[Row]:
    """Measures 64 callers of one tenant, each turn with one decision."""
    async with (
        bench.parts.server("audit", database="audit") as server,
        bench.parts.server("no-audit", module=WITHOUT, database="no-audit") as bare,
    ):
        results = await bench.alternate({"with": lambda: _round(bench, server), "without": lambda: _round(bench, bare)})
        await _check(bench, server, bare)
    recorded, unrecorded = results["with"], results["without"]
    return [
        row(
            "audit.turns",
            f"turns with a decision a second, {CALLERS} callers of one tenant; floor: without an audit trail",
            [result.per_second for result in recorded],
            unit="/s",
            floor=[result.per_second for result in unrecorded],
        ),
        row(
            "audit.cpu",
            "server CPU of such a turn; floor: without",
            [result.server_ms for result in recorded],
            unit="ms",
            floor=[result.server_ms for result in unrecorded],
        ),
        row(
            "audit.database",
            "database CPU of such a turn; floor: without",
            [result.database_ms for result in recorded],
            unit="ms",
            floor=[result.database_ms for result in unrecorded],
        ),
    ]


async def _round(bench: Bench, server: Served) -> Round:
    count = max(bench.scale.turns, CALLERS)
    async with bench.window(server) as spent:
        done = await bench.parts.load.run(decide_turns, address=server.address, count=count, concurrency=CALLERS)
    return Round.of(spent, count=count, seconds=done["seconds"])


async def _check(bench: Bench, server: Served, bare: Served) -> None:
    """Raises Invalid unless the one server has a record of each decision, and the other one has none."""
    async with AsyncMongoClient[dict[str, Any]](bench.parts.database.uri) as client:
        decided = {"state": "APPROVED"}
        recorded = [
            (
                await client[name].approvals.count_documents(decided),
                await client[name].audit_records.count_documents({"session_id": {"$gt": ""}}),
            )
            for name in (server.database, bare.database)
        ]
    if recorded[0][0] != recorded[0][1] or recorded[1][1]:
        raise Invalid(f"decisions and records: {recorded}")


MEASURES = (Measure("audit", "what the audit trail adds to a turn with a decision", audit),)
