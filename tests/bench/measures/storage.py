"""Counts what a turn costs the database: commands, transactions, documents, bytes. No time is measured."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pymongo import AsyncMongoClient

from tests.bench.bench import SETTLING, Bench, Measure
from tests.bench.figures import Row, row
from tests.bench.jobs import live, turns
from tests.bench.pacing import Pace
from tests.bench.parts import Served

COMMANDS: Final = ("aggregate", "commitTransaction", "delete", "find", "findAndModify", "insert", "update")
"""What the service sends for its work; `getMore` of the change stream is counted by itself."""
TOGETHER: Final = 64
CHUNKS: Final = (64, 256)
TURNS: Final = 200

Database = AsyncMongoClient[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Counted:
    """What a database has counted: commands by name, documents, bytes of each collection and the oplog."""

    commands: Mapping[str, int]
    documents: int
    data: Mapping[str, int]
    stored: int
    indexes: int
    oplog: int

    def per_turn(self, before: "Counted", count: int) -> dict[str, float]:
        """Returns what was added since then for each of `count` turns; bytes in KiB."""
        sent = {name: self.commands[name] - before.commands[name] for name in self.commands}
        kib = 1024 * count
        return {
            "commands": sum(sent[name] for name in COMMANDS) / count,
            "transactions": sent["commitTransaction"] / count,
            "news": sent["getMore"] / count,
            "documents": (self.documents - before.documents) / count,
            "data": (sum(self.data.values()) - sum(before.data.values())) / kib,
            "stored": (self.stored - before.stored) / kib,
            "indexes": (self.indexes - before.indexes) / kib,
            "oplog": (self.oplog - before.oplog) / kib,
        }


ABOUT: Final = {
    "commands": ("commands of a turn", ""),
    "transactions": ("transactions of a turn", ""),
    "news": ("reads of the change stream for a turn", ""),
    "documents": ("documents that a turn adds", ""),
    "data": ("bytes of a turn's documents, uncompressed", "KiB"),
    "stored": ("bytes of a turn's documents in files, compressed", "KiB"),
    "indexes": ("bytes of a turn in indexes", "KiB"),
    "oplog": ("bytes of a turn in the oplog, uncompressed", "KiB"),
}


async def storage(bench: Bench) -> list[Row]:
    """Counts turns that create their session, and turns in sessions that exist: one at a time, and 64 at once."""
    model = await bench.parts.pacing_model()
    rows = list[Row]()
    count = TOGETHER if bench.scale.quick else TURNS
    for creates in (True, False):
        for together, chunks in ((1, CHUNKS[0]), *((TOGETHER, chunks) for chunks in CHUNKS)):
            name = f"storage.{'new' if creates else 'old'}.{together}.{chunks}"
            bench.show_progress(name)
            pace = Pace(chunks, apart_ms=20 if together > 1 else 0, first_ms=50 if together > 1 else 5)
            database = f"storage-{uuid.uuid4().hex[:8]}"
            async with bench.parts.server(database, database=database, OPENAI_BASE_URL=model.address) as server:
                costs = await _count(bench, server, pace, count=count, together=together, creates=creates)
            rows += rows_of(name, costs, alone=together == 1)
    return rows


def rows_of(name: str, costs: Mapping[str, float], *, alone: bool) -> list[Row]:
    """Returns the rows of one side. One turn at a time shows what it sends by itself; its bytes are those of many."""
    shown = [key for key in ABOUT if not alone or key in ("commands", "transactions", "news", "documents")]
    return [row(f"{name}.{key}", ABOUT[key][0], [costs[key]], unit=ABOUT[key][1]) for key in shown]


async def _count(
    bench: Bench, server: Served, pace: Pace, *, count: int, together: int, creates: bool
) -> dict[str, float]:
    load = bench.parts.load
    await _turns(bench, server, pace=Pace(8, apart_ms=0, first_ms=5), sessions=_names(8), together=8, creates=True)
    names = _names(count)
    if not creates:
        names = await load.run(turns.create_sessions, address=server.address, count=count)
    async with Database(bench.parts.database.uri) as client:
        before = await _counted(client, server.database)
        await _turns(bench, server, pace=pace, sessions=names, together=together, creates=creates)
        return (await _counted(client, server.database)).per_turn(before, count)


async def _turns(
    bench: Bench, server: Served, *, pace: Pace, sessions: Sequence[str], together: int, creates: bool
) -> None:
    arguments = {"sessions": list(sessions), "pace": pace.words, "concurrency": together, "creates": creates}
    await bench.parts.load.run(live.stream_live, address=server.address, **arguments)


def _names(count: int) -> list[str]:
    return [f"storage-{uuid.uuid4().hex}" for _ in range(count)]


async def _counted(client: Database, name: str) -> Counted:
    """Reads the database's counters once what came behind the last answer is done, and its files are written."""
    await asyncio.sleep(SETTLING)
    await client.admin.command("fsync")
    sent = (await client.admin.command("serverStatus"))["metrics"]["commands"]
    database = client[name]
    sizes = {
        collection: await database.command("collStats", collection)
        for collection in await database.list_collection_names()
    }
    oplog = await client.local.command("collStats", "oplog.rs")
    return Counted(
        commands={command: int(sent[command]["total"]) for command in (*COMMANDS, "getMore")},
        documents=sum(size["count"] for size in sizes.values()),
        data={collection: size["size"] for collection, size in sizes.items()},
        stored=sum(size["storageSize"] for size in sizes.values()),
        indexes=sum(size["totalIndexSize"] for size in sizes.values()),
        oplog=oplog["size"],
    )


MEASURES = (Measure("storage", "documents, bytes and commands of a turn", storage),)
