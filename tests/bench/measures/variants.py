"""The same turns from servers that are started with other settings."""

from contextlib import AsyncExitStack
from functools import partial

from tests.bench.bench import Bench, Measure
from tests.bench.figures import Row, row

CONCURRENCY = 16


async def telemetry(bench: Bench) -> list[Row]:
    """What it costs to tell: metrics that nobody fetches at the time, and spans and metrics sent to a collector."""
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
        for server in servers.values():
            await bench.turns(server, concurrency=CONCURRENCY, count=bench.scale.turns // 2)
        found = await bench.alternate(
            {name: partial(bench.turns, server, concurrency=CONCURRENCY) for name, server in servers.items()}
        )
    costs = {name: [each.server_ms for each in rounds] for name, rounds in found.items()}
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


MEASURES = (Measure("telemetry", "what telemetry adds to a turn", telemetry),)
