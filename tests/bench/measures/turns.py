"""What a durable turn costs, beside a bare relay that keeps nothing: CPU and turns a second."""

from collections.abc import Sequence
from functools import partial

from tests.bench.bench import Bench, Measure, Round
from tests.bench.figures import Row, row

MOST = 64


async def alone(bench: Bench) -> list[Row]:
    return await _turns(bench, 1)


async def sixteen(bench: Bench) -> list[Row]:
    return await _turns(bench, 16)


async def sixty_four(bench: Bench) -> list[Row]:
    return await _turns(bench, MOST)


async def _turns(bench: Bench, concurrency: int) -> list[Row]:
    servers = {
        "subject": await bench.parts.subject(),
        "F2": await bench.parts.floor("relay"),
        "F2 lines": await bench.parts.floor("relay_lines"),
    }
    for server in servers.values():
        await bench.turns(server, concurrency=concurrency, count=max(bench.scale.turns // 2, concurrency))
    found = await bench.alternate(
        {name: partial(bench.turns, server, concurrency=concurrency) for name, server in servers.items()}
    )
    return rows_of(found["subject"], found["F2"], found["F2 lines"], concurrency=concurrency)


def rows_of(subject: Sequence[Round], relay: Sequence[Round], lines: Sequence[Round], *, concurrency: int) -> list[Row]:
    """The rows of one concurrency."""
    name, at = f"turn.cpu.{concurrency}", f"at {concurrency} concurrent"
    floor = [each.server_ms for each in relay]
    database = [each.database_ms for each in subject]
    both = [each.server_ms + each.database_ms for each in subject]
    return [
        row(name, f"server CPU per turn, {at} / F2", [each.server_ms for each in subject], unit="ms", floor=floor),
        row(f"{name}.all", f"with the database, {at} / F2", both, unit="ms", floor=floor),
        row(f"{name}.database", f"database CPU per turn, {at}", database, unit="ms"),
        row(f"{name}.F2", f"F2: bare relay, {at}", floor, unit="ms"),
        row(f"{name}.F2L", f"F2 with lines, {at}", [each.server_ms for each in lines], unit="ms"),
        row(
            f"turns.{concurrency}",
            f"turns a second, {at} / F2",
            [each.per_second for each in subject],
            unit="/s",
            floor=[each.per_second for each in relay],
        ),
        row(f"turn.responses.{concurrency}", f"responses a turn, {at}", [each.responses for each in subject], unit=""),
    ]


MEASURES = (
    Measure("turns-1", "turns one after the other", alone),
    Measure("turns-16", "turns, 16 at once", sixteen),
    Measure("turns-64", "turns, 64 at once", sixty_four),
)
