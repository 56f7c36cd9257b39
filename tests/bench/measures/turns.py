"""Measures the CPU of a durable turn and turns a second, beside a bare relay that stores nothing."""

import uuid
from collections.abc import Awaitable, Callable
from functools import partial

from tests.bench.bench import Bench, Measure, Round, answer_to
from tests.bench.figures import Row, row
from tests.bench.floors import writes
from tests.bench.jobs.model import call_model
from tests.bench.parts import Runner

MESSAGE = "at once"

Rounds = dict[str, list[Round]]


async def alone(bench: Bench) -> list[Row]:
    return rows_of(await _turns(bench, 1), at=1)


async def sixteen(bench: Bench) -> list[Row]:
    """Measures beside every floor of a turn."""
    lines = await bench.parts.floor("relay_lines")
    quick = await bench.parts.floor("relay", "aiohttp")
    async with bench.parts.runner("F4") as writer:
        return rows_of(
            await _turns(
                bench,
                16,
                F2L=partial(bench.turns, lines, concurrency=16),
                F2A=partial(bench.turns, quick, concurrency=16),
                F4=partial(_writes, bench, writer, concurrency=16),
                F1=partial(_model, bench, concurrency=16),
            ),
            at=16,
        )


async def sixty_four(bench: Bench) -> list[Row]:
    return rows_of(await _turns(bench, 64), at=64)


async def _turns(bench: Bench, concurrency: int, **more: Callable[[], Awaitable[Round]]) -> Rounds:
    """Runs rounds of the subject, of F2 and of more; each side is warmed up before the first counts."""
    servers = {"subject": await bench.parts.subject(), "F2": await bench.parts.floor("relay")}
    sides = {name: partial(bench.turns, server, concurrency=concurrency) for name, server in servers.items()}
    return await bench.alternate({**sides, **more})


async def _writes(bench: Bench, writer: Runner, *, concurrency: int) -> Round:
    """Runs a round of F4."""
    count, uri = bench.scale.turns, bench.parts.database.uri
    sessions = [uuid.uuid4().hex for _ in range(count)]
    await writer.run(writes.prepare, uri=uri, sessions=sessions)
    async with bench.window(writer) as spent:
        seconds = await writer.run(writes.write_turns, uri=uri, sessions=sessions, concurrency=concurrency)
    return Round.of(spent, count=count, seconds=seconds)


async def _model(bench: Bench, *, concurrency: int) -> Round:
    """Runs a round of F1; the CPU is the model's own."""
    count, url = bench.scale.turns, bench.parts.model_url
    arguments = {
        "url": url,
        "message": MESSAGE,
        "answer": answer_to(MESSAGE),
        "count": count,
        "concurrency": concurrency,
    }
    async with bench.window(bench.parts.model) as spent:
        done = await bench.parts.load.run(call_model, **arguments)
    return Round.of(spent, count=count, seconds=done["seconds"])


def rows_of(results: Rounds, *, at: int) -> list[Row]:
    """Returns the rows of one concurrency."""
    name, where = f"turn.cpu.{at}", f"{at} concurrent"
    subject, relay = results["subject"], [result.server_ms for result in results["F2"]]
    server, database = [result.server_ms for result in subject], [result.database_ms for result in subject]
    both = [one + other for one, other in zip(server, database, strict=True)]
    writes = results.get("F4", [])
    rows = [
        row(name, f"server CPU per durable turn, {where}; floor F2", server, unit="ms", floor=relay),
        row(f"{name}.all", f"server and database CPU, {where}; floor F2", both, unit="ms", floor=relay),
        row(
            f"{name}.database",
            f"database CPU, {where}; floor F4" if writes else f"database CPU, {where}",
            database,
            unit="ms",
            floor=[result.database_ms for result in writes] or None,
        ),
        row(
            f"turns.{at}",
            f"durable turns a second, {where}; floor F2",
            [result.per_second for result in subject],
            unit="/s",
            floor=[result.per_second for result in results["F2"]],
        ),
        row(f"turn.responses.{at}", f"responses a turn, {where}", [result.responses for result in subject], unit=""),
        row(f"F2.cpu.{at}", f"F2, a bare relay: CPU per answer, {where}", relay, unit="ms"),
    ]
    return rows + [
        figure
        for floor in ("F2L", "F2A", "F4", "F1")
        if floor in results
        for figure in _floor(floor, results[floor], at)
    ]


_ABOUT = {
    "F1": "F1, the scripted model called directly: its",
    "F2A": "F2 over `aiohttp`: its",
    "F2L": "F2 with `with_streaming_response` lines: its",
    "F4": "F4, as many raw writes: the writer's",
}


def _floor(name: str, rounds: list[Round], at: int) -> list[Row]:
    """Returns the rows of a floor that is shown for information."""
    about = f"{_ABOUT[name]} CPU per turn, {at} concurrent"
    return [
        row(f"{name}.cpu.{at}", about, [result.server_ms for result in rounds], unit="ms"),
        row(f"{name}.turns.{at}", f"{name}: turns a second", [result.per_second for result in rounds], unit="/s"),
    ]


MEASURES = (
    Measure("turns-1", "CPU and rate of turns, one after the other", alone),
    Measure("turns-16", "CPU and rate of turns, 16 at once", sixteen),
    Measure("turns-64", "CPU and rate of turns, 64 at once", sixty_four),
)
