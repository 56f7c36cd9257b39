"""Measures what the service does beyond its capacity: with plain turns, a slow database, and a slow model."""

import asyncio
import contextlib
import signal
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

from pymongo import AsyncMongoClient

from tests.bench import cores
from tests.bench.bench import Bench, Measure
from tests.bench.figures import Invalid, Row, row
from tests.bench.jobs import offered
from tests.bench.measures.ground import Ground, ground
from tests.bench.measures.offered_load import SERVED, Phases, Step, is_served, refusals, step_rows
from tests.bench.pacing import Pace
from tests.bench.parts import Served

FACTORS: Final = (1.0, 2.0, 3.0, 5.0)
SLOW_FACTORS: Final = (1.0, 3.0)
RECOVERING: Final = 0.8
"""The share of capacity that is offered after an overload."""
ANSWER: Final = Pace(1, apart_ms=0, first_ms=200)
DELAY: Final = 0.02
"""Seconds that are added to each database operation."""
LEASE_LOST: Final = "lease was lost"
"""What the server's log line has when it loses a lease."""
OPEN_STATES: Final = ("PENDING", "RUNNING", "BACKING_OFF")
FINISHING: Final = 20.0
"""Seconds after a step that its accepted turns have to end."""
_LOOKED_AT: Final = 0.2
_AT_ONCE: Final = 64
"""Turns at once that warm a server up, and from whose rate the capacity is guessed at first."""
_PREPARING: Final = 2.0
_UP, _DOWN = 1.05, 0.93
"""From one tried rate to the next."""
_MOST_TRIES: Final = 8
_LONGEST_DRAIN: Final = 90.0


async def overload(bench: Bench) -> list[Row]:
    """Finds the capacity, and offers multiples of it."""
    async with ground(bench, "overload") as plain:
        return await _steps(plain, FACTORS)


async def slow_database(bench: Bench) -> list[Row]:
    """Does the same with a database that takes longer for each operation."""
    async with ground(bench, "overload.slow", delay=DELAY) as slow:
        return await _steps(slow, SLOW_FACTORS)


async def open_turns(bench: Bench) -> list[Row]:
    """Opens many turns of a model that takes long: that is no overload."""
    seconds, count, rate = (8, 200, 50.0) if bench.scale.quick else (30, 1000, 50.0)
    phases = Phases(settling=count / rate, counted=seconds - 2, recovering=0)
    answer = Pace(1, apart_ms=0, first_ms=1000 * seconds)
    patience = {"patience": 3.0 * seconds, "linger": 2.0 * seconds}
    async with ground(bench, "overload.open") as plain, plain.server() as server:
        step = await _step(plain, server, phases, [[rate, count / rate]], answer=answer, **patience)
    refused = refusals(step.ends, bare=True) + refusals(step.ends, bare=False)
    completed = 100 * step.ends[offered.COMPLETED] / count
    void, name = cores.overdriven([step.use]) or cores.disturbed(step.others), "overload.open"
    return [
        row(f"{name}.refused", f"of {count} turns that are open at once, those refused", [refused], unit=""),
        row(f"{name}.completed", "open turns that are COMPLETED", [completed], unit="%"),
        row(f"{name}.reads.answered", "GetSession answered", [100 * step.answered], unit="%", void=void),
        row(f"{name}.reads.p99", "p99 of GetSession while they are open", [step.reads_p99_ms], unit="ms", void=void),
        row(f"{name}.memory", "the most memory that the server held", [step.memory], unit="MiB"),
        row(f"{name}.leases_lost", "leases lost by their owner", [step.leases_lost], unit=""),
    ]


async def drain(bench: Bench) -> list[Row]:
    """Stops a server by SIGTERM in the middle of three times its capacity, or of its rate in a closed loop."""
    seconds, name = (8.0 if bench.scale.quick else 20.0), "overload.drain"
    async with ground(bench, name) as plain, plain.server() as server:
        rate = await _prepare(plain, server, seconds=2 * _PREPARING)
        offer = [[3 * (bench.scale.capacity or rate), seconds]]
        loading = asyncio.create_task(_offer(plain, server, offer))
        await asyncio.sleep(seconds / 2)
        began = time.monotonic()
        server.program.send(signal.SIGTERM)
        status = await server.program.ended(seconds=_LONGEST_DRAIN)
        took = time.monotonic() - began
        await loading
    if status is None:
        raise Invalid(f"the server had not ended {_LONGEST_DRAIN:.0f} s after SIGTERM")
    return [
        row(f"{name}.seconds", "from SIGTERM at 3 x capacity to the server's end", [took], unit="s"),
        row(f"{name}.status", "the server's exit status", [status], unit=""),
    ]


async def _steps(load: Ground, factors: Sequence[float]) -> list[Row]:
    """Finds the capacity unless it is given, and offers multiples of it, each to a server of its own."""
    bench, name = load.bench, load.name
    phases = Phases(3, 6, 10) if bench.scale.quick else Phases()
    capacity = bench.scale.capacity or await _capacity(load, phases)
    rows = [row(f"{name}.capacity", "turns a second that are COMPLETED in time", [capacity], unit="/s")]
    at_capacity = 0.0
    for factor in bench.scale.steps or factors:
        bench.show_progress(f"{factor:g} times {capacity:.0f} turns a second")
        offer = [[factor * capacity, phases.end], [RECOVERING * capacity, phases.recovering]]
        async with load.server() as server:
            await _prepare(load, server)
            step = await _step(load, server, phases, offer)
        at_capacity = at_capacity or step.memory
        rows += step_rows(name, factor, step, capacity=capacity, memory_at_capacity=at_capacity)
    return rows


async def _capacity(load: Ground, phases: Phases) -> float:
    """Returns the highest rate that was served, to 7 %; each rate is tried on a server of its own."""
    async with load.server() as server:
        rate = await _prepare(load, server, seconds=2 * _PREPARING)
    served, refused = 0.0, False
    for _ in range(_MOST_TRIES):
        load.bench.show_progress(f"capacity: {rate:.0f} turns a second")
        if await _serves(load, rate, phases):
            served, rate = rate, rate * _UP
        else:
            refused, rate = True, rate * _DOWN
        if served and refused:
            return served
    raise Invalid(f"the capacity is not among the rates that were tried, at last {rate:.0f} turns a second")


async def _prepare(load: Ground, server: Served, *, seconds: float = _PREPARING) -> float:
    """Runs turns in a closed loop. Returns how many a second were COMPLETED."""
    words = {"pace": ANSWER.words, "concurrency": _AT_ONCE, "seconds": seconds}
    rate: float = await load.bench.parts.load.run(offered.saturate, address=server.address, **words)
    return rate


async def _serves(load: Ground, rate: float, phases: Phases) -> bool:
    """Returns whether a new server serves this rate, and the readers, for the length of a step."""
    async with load.server() as server:
        await _prepare(load, server)
        most_bad = round((1 - SERVED) * rate * phases.end)
        offer = _offer(load, server, [[rate, phases.end]], most_bad=most_bad)
        observed = await load.observe(server, offer, seconds=phases.end)
    return is_served([record for record in observed.result["records"] if record[0] >= phases.settling])


async def _offer(
    load: Ground, server: Served, phases: Sequence[offered.Phase], *, answer: Pace = ANSWER, **more: Any
) -> dict[str, Any]:
    """Offers turns to the server from the load generator."""
    words = {"prefix": f"{uuid.uuid4().hex}-", "phases": phases, "pace": answer.words}
    done: dict[str, Any] = await load.bench.parts.load.run(offered.offer_turns, address=server.address, **words, **more)
    return done


async def _step(load: Ground, server: Served, phases: Phases, offer: Sequence[offered.Phase], **more: Any) -> Step:
    """Offers turns, and reads until the overload's end."""
    observed = await load.observe(server, _offer(load, server, offer, **more), seconds=phases.end)
    done = observed.result
    return Step(
        phases=phases,
        turns=[(at, took, end) for at, took, end in done["records"]],
        reads=[(at - done["began"], took, end) for at, took, end in observed.reads],
        memory=max(sample.memory for sample in observed.between(0, phases.end)),
        leases_lost=server.program.output().count(LEASE_LOST),
        unfinished=await _unfinished(load, server),
        use=observed.use(phases.settling, phases.end),
        others=observed.others(phases.settling, phases.end),
    )


async def _unfinished(load: Ground, server: Served) -> int:
    """Returns how many of the accepted turns are not COMPLETED, once none is open or time is up."""
    async with AsyncMongoClient[dict[str, Any]](load.bench.parts.database.uri) as client:
        stored = client[server.database].turns
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISHING):
                while await stored.count_documents({"state": {"$in": OPEN_STATES}}, limit=1):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOKED_AT)
        return await stored.count_documents({"state": {"$ne": "COMPLETED"}})


MEASURES = (
    Measure("overload", "what 1, 2, 3 and 5 times the capacity does", overload),
    Measure("overload-slow-database", "the same with 20 ms added to each database operation", slow_database),
    Measure("overload-drain", "SIGTERM at 3 times the capacity", drain),
    Measure("overload-open-turns", "1,000 open turns of a model that takes 30 s", open_turns),
)
