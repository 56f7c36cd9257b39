"""Measures the same turns of servers with other settings."""

from contextlib import AsyncExitStack
from functools import partial

from tests.bench.bench import Bench, Measure
from tests.bench.figures import Row, row

CONCURRENCY = 16
MOST = 64


async def telemetry(bench: Bench) -> list[Row]:
    """Measures the cost of telemetry: metrics that are not fetched, and spans and metrics sent to a collector."""
    collector = await bench.parts.floor("collector")
    flags = {
        "none": ("--exporter", "none"),
        "prometheus": ("--exporter", "prometheus", "--prometheus-port", "0"),
        "otlp": ("--exporter", "otlp", "--otlp-endpoint", f"http://{collector.address}"),
    }
    async with AsyncExitStack() as stack:
        servers = {
            name: await stack.enter_async_context(
                bench.parts.server(f"telemetry-{name}", *words, database=f"telemetry-{name}")
            )
            for name, words in flags.items()
        }
        results = await bench.alternate(
            {name: partial(bench.turns, server, concurrency=CONCURRENCY) for name, server in servers.items()}
        )
    costs = {name: [result.server_ms for result in rounds] for name, rounds in results.items()}
    return [
        row(
            f"telemetry.{name}",
            f"server CPU per turn, 16 concurrent, with --exporter {name}; floor: none",
            costs[name],
            unit="ms",
            floor=costs["none"],
        )
        for name in ("prometheus", "otlp")
    ]


async def processes(bench: Bench) -> list[Row]:
    """Measures two processes on one port, beside one, and beside two of F2.

    On two cores they share these with the database, the model and the load generator.
    """
    async with (
        bench.parts.server("one", "--processes", "1", database="processes-1") as one,
        bench.parts.server("two", "--processes", "2", database="processes-2") as two,
        bench.parts.floor_of(2, "relay") as relay,
    ):
        servers = {"one": one, "two": two, "F2": relay}
        results = await bench.alternate(
            {name: partial(bench.turns, server, concurrency=MOST) for name, server in servers.items()}
        )
    ours, floor = results["two"], results["one"]
    return [
        row(
            "processes.turns",
            f"turns a second with --processes 2, {MOST} concurrent; floor: 1",
            [result.per_second for result in ours],
            unit="/s",
            floor=[result.per_second for result in floor],
        ),
        row(
            "processes.cpu",
            f"server CPU per turn with --processes 2, {MOST} concurrent; floor: 1",
            [result.server_ms for result in ours],
            unit="ms",
            floor=[result.server_ms for result in floor],
        ),
        row(
            "processes.F2.turns",
            f"turns a second with --processes 2, {MOST} concurrent; floor: F2 of two processes",
            [result.per_second for result in ours],
            unit="/s",
            floor=[result.per_second for result in results["F2"]],
        ),
        row(
            "processes.F2.cpu",
            f"server CPU per turn with --processes 2, {MOST} concurrent; floor: F2 of two processes",
            [result.server_ms for result in ours],
            unit="ms",
            floor=[result.server_ms for result in results["F2"]],
        ),
    ]


MEASURES = (
    Measure("telemetry", "what telemetry adds to a turn", telemetry),
    Measure("processes", "two processes beside one", processes),
)
