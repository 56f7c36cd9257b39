"""Measures memory: of an idle stream (beside F6), of a resting session, of a waiting turn."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from tests.bench.bench import Bench, Measure, Measured
from tests.bench.figures import Invalid, Row, row
from tests.bench.jobs import idle as jobs
from tests.bench.jobs import turns
from tests.bench.parts import Served

BASELINE, COUNT = 500, 2000
"""The number of streams that are opened before memory is measured, and that of those measured."""
QUICK = 200, 300
RESTING = 1500, 2000
"""The same of sessions. A replica caches the last 1,024 busy ones, so that their memory does not count."""
MOST_LOOKS = 40
"""How often memory is read, at most, until it stays the same."""
INTERVAL = 0.25


async def streams(bench: Bench) -> list[Row]:
    """Measures the growth of the server's memory with the number of its streams."""
    floor = await _streams(bench, await bench.parts.floor("idle"), shared=True)
    sizes = {}
    for name, shared in (("own", False),) if bench.scale.quick else (("own", False), ("shared", True)):
        async with bench.parts.server(f"idle-{name}", database=f"idle-{name}") as server:
            sizes[name] = await _streams(bench, server, shared=shared)
    above = row("idle.stream.above", "each idle stream, its own session, above F6", [sizes["own"] - floor], unit="KiB")
    about = {
        "own": "each idle stream, its own session; floor F6",
        "shared": "each idle stream, many on one session; floor F6",
    }
    rows = [row(f"idle.stream.{name}", about[name], [kib], unit="KiB", floor=floor) for name, kib in sizes.items()]
    return [above, *rows]


async def sessions(bench: Bench) -> list[Row]:
    """Measures the growth of the server's memory with the number of unwatched sessions.

    Left out in a quick run: a few hundred sessions do not show it.
    """
    if bench.scale.quick:
        return []
    sizes = {}
    for name, message, state in (("session", "at once", "COMPLETED"), ("waiting", "tell", "AWAITING_APPROVAL")):
        async with bench.parts.server(f"rest-{name}", database=f"rest-{name}") as server:
            sizes[name] = await growth(bench, server, partial(_settle, bench, server, message, state), counts=RESTING)
    return [
        row("idle.session", "each session after its turn", [sizes["session"]], unit="KiB"),
        row("idle.waiting", "each turn that awaits an approval", [sizes["waiting"]], unit="KiB"),
    ]


async def _settle(bench: Bench, server: Served, message: str, state: str, start: int, count: int) -> None:
    await bench.parts.load.run(
        jobs.settle_turns,
        address=server.address,
        sessions=[f"rest-{number}" for number in range(start, start + count)],
        agent="asker",
        message=message,
        state=state,
    )


async def _streams(bench: Bench, server: Served, *, shared: bool) -> float:
    baseline, count = counts = QUICK if bench.scale.quick else (BASELINE, COUNT)
    session_ids = ["idle"]
    if server.database:
        number = 1 if shared else baseline + count
        session_ids = await bench.parts.load.run(turns.create_sessions, address=server.address, count=number)
    async with bench.parts.runner(f"idlers-{server.program.name}") as idlers:

        async def more(start: int, count: int) -> None:
            names = [session_ids[number % len(session_ids)] for number in range(start, start + count)]
            await idlers.run(jobs.open_streams, address=server.address, sessions=names)

        grown = await growth(bench, server, more, counts=counts)
        if broken := await idlers.run(jobs.broken_streams):
            raise Invalid(f"{broken} idle streams ended")
    return grown


async def growth(
    bench: Bench, server: Measured, more: Callable[[int, int], Awaitable[None]], *, counts: tuple[int, int]
) -> float:
    """Returns the KiB of resident memory for each item that `more(start, count)` adds after the baseline."""
    baseline, count = counts
    bench.show_progress(f"{baseline}, then {count} more")
    await more(0, baseline)
    before = await _settled(server)
    await more(baseline, count)
    return (await _settled(server) - before) / count


async def _settled(server: Measured) -> int:
    """Returns the resident KiB once they stay the same, or after the last look."""
    last, same = 0, 0
    for _ in range(MOST_LOOKS):
        now = sum(resident(pid) for pid in server.pids)
        last, same = now, same + 1 if now == last else 0
        if same == 4:
            break
        await asyncio.sleep(INTERVAL)
    return last


def resident(pid: int) -> int:
    """Returns the KiB of resident memory of the process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise LookupError(pid)


MEASURES = (
    Measure("idle-streams", "memory of streams on which nothing happens", streams),
    Measure("idle-sessions", "memory of sessions that rest and of turns that wait", sessions),
)
