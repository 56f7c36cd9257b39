"""Turns of the service beside those of an agent SDK with its SQLite session, behind the same gRPC (F5)."""

import asyncio
from functools import partial

import orjson

from tests.bench.bench import Bench, Measure
from tests.bench.figures import Invalid, Row, row
from tests.bench.parts import Served
from tests.chaos.programs import REPOSITORY
from turnkeeper.rpc.server import OPTIONS

CONCURRENCY = 16
INSTALLED = "build/bench-agents.stamp"
PYTHON = REPOSITORY / "build" / "bench-agents" / "bin" / "python"


async def agents_sdk(bench: Bench) -> list[Row]:
    """Measures both: they keep the conversation on disk, and have a new one for each turn."""
    servers = {"subject": await bench.parts.subject(), "F5": await floor(bench)}
    results = await bench.alternate(
        {name: partial(bench.turns, server, concurrency=CONCURRENCY) for name, server in servers.items()}
    )
    ours, theirs = results["subject"], results["F5"]
    return [
        row(
            "agents.turns",
            f"turns a second, at {CONCURRENCY} concurrent; floor F5",
            [result.per_second for result in ours],
            unit="/s",
            floor=[result.per_second for result in theirs],
        ),
        row(
            "agents.cpu",
            f"server CPU per turn, at {CONCURRENCY} concurrent; floor F5",
            [result.server_ms for result in ours],
            unit="ms",
            floor=[result.server_ms for result in theirs],
        ),
    ]


async def floor(bench: Bench, *, model_url: str = "") -> Served:
    """Starts the SDK's server in an environment of its own, which is installed first if it is missing.

    `model_url`: another model than the scripted one.
    """
    bench.show_progress("the agent SDK's own environment")
    make = await asyncio.create_subprocess_exec("make", "--no-print-directory", "-s", INSTALLED, cwd=REPOSITORY)
    if await make.wait() != 0:
        raise Invalid("the agent SDK (F5) cannot be installed; the reason is above")
    database = bench.parts.folder / "agents.sqlite"
    options = orjson.dumps(OPTIONS).decode()
    return await bench.parts.floor("agents_sdk", database, options, python=str(PYTHON), model_url=model_url)


MEASURES = (Measure("agents-sdk", "turns beside an agent SDK with its SQLite session", agents_sdk),)
