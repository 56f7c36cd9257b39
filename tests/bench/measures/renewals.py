"""Measures what it costs to keep the leases of turns whose models are silent: at the default lease, and at 30 s."""

import asyncio
from functools import partial

from tests.bench.bench import Bench, Measure, Spent
from tests.bench.figures import Row, row
from tests.bench.jobs import idle
from tests.bench.parts import Served
from turnkeeper.settings import Settings, shown

TURNS, QUICK_TURNS = 256, 64
WINDOW, QUICK_WINDOW = 14.0, 4.0
"""Seconds: two leases, of those that are measured."""
ANSWER = 10.0
"""Seconds that a model takes: the cost is given for one turn of this length."""
LONG = "30s"
WITHOUT_LIMIT = ("--first-token", "10m")
"""The models of the measure stay silent for longer than a model may."""


async def renewals(bench: Bench) -> list[Row]:
    """Measures one server after the other, because they share the database's process."""
    lease = shown(Settings().lease)
    short, long = [await _spent(bench, flags) for flags in ((), ("--lease", LONG))]
    turns = QUICK_TURNS if bench.scale.quick else TURNS
    per_turn = partial(_per_turn, turns=turns)
    about = f"CPU of a turn whose model is silent for {ANSWER:g} s, lease {lease}; floor: lease {LONG}"
    return [
        row(
            "renewals.cpu",
            f"server {about}",
            [per_turn(spent.server, spent.seconds) for spent in short],
            unit="ms",
            floor=[per_turn(spent.server, spent.seconds) for spent in long],
        ),
        row(
            "renewals.database",
            f"database {about}",
            [per_turn(spent.database, spent.seconds) for spent in short],
            unit="ms",
            floor=[per_turn(spent.database, spent.seconds) for spent in long],
        ),
    ]


async def _spent(bench: Bench, flags: tuple[str, ...]) -> list[Spent]:
    name = "renewals-long" if flags else "renewals"
    windows: list[Spent] = []
    async with bench.parts.server(name, *flags, *WITHOUT_LIMIT, database=name) as server:
        await _begin(bench, server)
        for number in range(bench.scale.rounds):
            bench.show_progress(f"round {number + 1} of {bench.scale.rounds}: {name}")
            async with bench.window(server) as spent:
                await asyncio.sleep(QUICK_WINDOW if bench.scale.quick else WINDOW)
            windows.append(spent)
    return windows


async def _begin(bench: Bench, server: Served) -> None:
    turns = QUICK_TURNS if bench.scale.quick else TURNS
    await bench.parts.load.run(
        idle.settle_turns,
        address=server.address,
        sessions=[f"renewed-{number}" for number in range(turns)],
        agent="bench",
        message="silent",
        state="RUNNING",
    )


def _per_turn(cpu_seconds: float, seconds: float, *, turns: int) -> float:
    """Returns the milliseconds that one turn costs while its model is silent for ANSWER."""
    return 1000 * cpu_seconds / turns * ANSWER / seconds


MEASURES = (Measure("renewals", "what it costs to keep the leases of turns", renewals),)
