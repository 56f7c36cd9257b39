"""Measures memory, and what others feel, while some want too much: half-sent bodies, and crowds on one session."""

import asyncio
from typing import Any, Final

from tests.bench import cores
from tests.bench.bench import Bench, Measure
from tests.bench.figures import Row, row
from tests.bench.jobs import crowd, half_sent, turns
from tests.bench.jobs.offered import OK, PATIENCE
from tests.bench.measures.ground import Ground, Observed, ground
from tests.chaos.figures import quantile
from tests.processes import resident
from turnkeeper.sizes import Size

CONNECTIONS: Final = 50
STREAMS: Final = 100
"""Bodies that are half sent on each connection."""
MOST_BYTES: Final = 4 << 30
"""What the attackers send at most, so that the machine survives a server without a bound."""
ATTACK: Final = 15.0
"""Seconds of the attack."""
AFTER: Final = 10.0
"""Seconds after its end by which memory should be as before."""
BUDGET: Final = Size(512 << 20)
"""The `--memory` of the server that is attacked by half-sent bodies."""
WATCHERS: Final = 5000
CALLERS: Final = 200
CALLING: Final = 15.0


async def memory_attack(bench: Bench) -> list[Row]:
    """Runs the three attacks, each on a server of its own."""
    async with ground(bench, "attack") as load:
        return [*await _bodies(load), *await _watchers(load), *await _once(load), *await _callers(load)]


async def _bodies(load: Ground) -> list[Row]:
    seconds = ATTACK / 3 if load.bench.scale.quick else ATTACK
    async with load.driver("attacker") as attacker, load.server("--memory", str(BUDGET)) as server:
        pids = server.pids

        async def attack() -> tuple[Any, float]:
            words = {"connections": CONNECTIONS, "streams": STREAMS, "most_bytes": MOST_BYTES, "seconds": seconds}
            done = await attacker.run(half_sent.send_halves, address=server.address, **words)
            await attacker.run(half_sent.drop_halves)
            await asyncio.sleep(AFTER)
            return done, sum(map(resident, pids)) / 2**20

        observed = await load.observe(server, attack(), seconds=seconds)
    done, after = observed.result
    name = "attack.bodies"
    before, peak = observed.samples[0].memory, max(sample.memory for sample in observed.samples)
    about = f"{done['opened']} bodies half sent on {CONNECTIONS} connections"
    return [
        row(f"{name}.sent", f"{about}: what was sent of them", [done["sent"] / 2**20], unit="MiB"),
        row(f"{name}.ended", "those that the server has ended", [done["ended"]], unit=""),
        row(f"{name}.peak", "the most memory that the server held; floor: before", [peak], unit="MiB", floor=before),
        row(f"{name}.budget", "the same; floor: --memory", [peak], unit="MiB", floor=BUDGET / 2**20),
        row(f"{name}.after", "memory 10 s after the end; floor: before", [after], unit="MiB", floor=before),
        *_reads(name, observed, seconds),
    ]


async def _watchers(load: Ground) -> list[Row]:
    count = WATCHERS // 10 if load.bench.scale.quick else WATCHERS
    async with load.driver("crowd") as runner, load.server() as server:
        (session,) = await load.bench.parts.load.run(turns.create_sessions, address=server.address, count=1)
        words = {"address": server.address, "session": session}

        async def watch() -> tuple[Any, Any]:
            up = await runner.run(crowd.watch_together, count=count, seconds=90, tries_again=True, **words)
            return up, await runner.run(crowd.end_a_turn, seconds=30, **words)

        observed = await load.observe(server, watch(), seconds=20)
    (opened, ended), name = observed.result, "attack.watchers"
    before, peak = observed.samples[0].memory, max(sample.memory for sample in observed.samples)
    return [
        row(f"{name}.up", f"of {count} watchers of one session, those up", [opened["up"]], unit="", floor=count),
        row(f"{name}.opening", "from the first one's call until all are up", [opened["seconds"]], unit="s"),
        row(f"{name}.refused", "refusals with RetryInfo on the way, which they heeded", [opened["refusals"]], unit=""),
        row(f"{name}.got", "those that got a turn's end", [ended["completed"]], unit="", floor=count),
        row(f"{name}.seconds", "from a message to its turn's end at the last watcher", [ended["seconds"]], unit="s"),
        row(f"{name}.peak", "the most memory that the server held; floor: before", [peak], unit="MiB", floor=before),
        *_reads(name, observed, 20),
        *_ends(name, opened["ends"]),
    ]


async def _once(load: Ground) -> list[Row]:
    """Opens the same watchers, none of which tries again."""
    count = WATCHERS // 10 if load.bench.scale.quick else WATCHERS
    async with load.driver("crowd") as runner, load.server() as server:
        (session,) = await load.bench.parts.load.run(turns.create_sessions, address=server.address, count=1)
        words = {"address": server.address, "session": session, "count": count}
        opened = await runner.run(crowd.watch_together, seconds=90, tries_again=False, **words)
    name = "attack.watchers.once"
    about = f"of {count} watchers that try once, those up"
    return [row(f"{name}.up", about, [opened["up"]], unit="", floor=count), *_ends(name, opened["ends"])]


async def _callers(load: Ground) -> list[Row]:
    seconds = CALLING / 3 if load.bench.scale.quick else CALLING
    async with load.driver("crowd") as runner, load.server() as server:
        (session,) = await load.bench.parts.load.run(turns.create_sessions, address=server.address, count=1)
        words = {"address": server.address, "session": session, "callers": CALLERS, "seconds": seconds}
        observed = await load.observe(server, runner.run(crowd.call_together, **words), seconds=seconds)
    ends, name = observed.result, "attack.callers"
    unavailable = sum(count for end, count in ends.items() if end.startswith("UNAVAILABLE"))
    about = f"calls of {CALLERS} callers on one session"
    return [
        row(f"{name}.answered", f"{about}, answered a second", [ends.get(OK, 0) / seconds], unit="/s"),
        row(f"{name}.unavailable", f"{about}, those that ended UNAVAILABLE", [unavailable], unit=""),
        *_reads(name, observed, seconds),
        *_ends(name, ends),
    ]


def _reads(name: str, observed: Observed, seconds: float) -> list[Row]:
    """Returns the rows of those who read other sessions meanwhile."""
    answered = [1000 * took for _, took, end in observed.reads if end == OK]
    share = 100 * len(answered) / max(1, len(observed.reads))
    void = cores.overdriven([observed.use(0, seconds)]) or cores.disturbed(observed.others(0, seconds))
    p99 = quantile(answered, 0.99) or 1000 * PATIENCE
    return [
        row(f"{name}.reads.answered", "GetSession of other sessions answered", [share], unit="%", void=void),
        row(f"{name}.reads.p99", "p99 of GetSession of other sessions", [p99], unit="ms", void=void),
    ]


def _ends(name: str, ends: dict[str, int]) -> list[Row]:
    return [row(f"{name}.ended.{end}", "calls that ended so", [count], unit="") for end, count in sorted(ends.items())]


MEASURES = (Measure("memory-attack", "half-sent bodies, and crowds on one session", memory_attack),)
