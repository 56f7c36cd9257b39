"""Measures how many live streams one core carries, at the pace of a real model, beside three relays.

Server and database are kept on one core, load and model on another.
"""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.bench import cores
from tests.bench.bench import Bench, Measure
from tests.bench.cpu import cpu_seconds
from tests.bench.figures import Row, row
from tests.bench.jobs import live
from tests.bench.jobs.model import model_lateness
from tests.bench.measures import agents_sdk
from tests.bench.pacing import Pace
from tests.bench.parts import Served
from turnkeeper.settings import Settings

SHORT, LONG = 64, 256
"""Chunks of the two answers; the difference in CPU is the cost of the chunks between."""
PACES: Final = {chunks: Pace(chunks, apart_ms=20, first_ms=50) for chunks in (SHORT, LONG)}
BEFOREHAND: Final = Pace(8, apart_ms=20)
"""What each side warms up with, 16 at once: a cold server refuses 64 at once, and what it refuses warms nothing."""
SLOWEST_F7: Final = 0.12
"""CPU milliseconds of F7 for a further delta; a slower one is no floor."""
JUDGED_FROM: Final = 64
"""Turns at once from which F7 is judged so: with fewer, each delta wakes a core that rests, which costs more."""
FLOORS: Final = ("F2", "F5", "F7")


@dataclass(frozen=True, slots=True)
class LiveRound:
    """One round of one side: CPU milliseconds a turn, lateness in milliseconds, the share of each core in use."""

    chunks: int
    server_ms: float
    database_ms: float
    late_ms: tuple[float, float]
    responses: float
    cores: Sequence[float]

    @property
    def both_ms(self) -> float:
        return self.server_ms + self.database_ms

    @property
    def per_core(self) -> float:
        """Streams that one core carries: an answer's own length over the CPU that it took."""
        return 1000 * PACES[self.chunks].seconds / self.both_ms


Rounds = Mapping[tuple[str, int], Sequence[LiveRound]]
"""The rounds of each side and answer."""


async def live_streams(bench: Bench, *, concurrency: int) -> list[Row]:
    """Runs rounds of the subject and the floors by turns, with short and with long answers; F5 in one round alone.

    The subject that sends deltas as they come has the database after the other one: each has its own cost alone.
    """
    model = await bench.parts.pacing_model()
    results: dict[tuple[str, int], list[LiveRound]] = {}
    model_cpu = cpu_seconds(model.pids)
    await bench.parts.load.run(model_lateness, url=model.address)
    floors = {
        "F2": await bench.parts.floor("relay", model_url=model.address),
        "F5": await agents_sdk.floor(bench, model_url=model.address),
        "F7": await bench.parts.floor("relay_bare", model_url=model.address),
    }
    async with _subject(bench, "live", model_url=model.address) as server:
        await _rounds(bench, {"subject": server, **floors}, results, concurrency=concurrency)
    if "delta_interval" in Settings.model_fields:
        async with _subject(bench, "live-0", "--delta-interval", "0", model_url=model.address) as server:
            await _rounds(bench, {"interval_0": server}, results, concurrency=concurrency)
    model_cpu = cpu_seconds(model.pids) - model_cpu
    own = await bench.parts.load.run(model_lateness, url=model.address)
    rows = rows_of(results, at=concurrency)
    rows.append(row(f"live.{concurrency}.model.late_p99", "p99 of the model's own lateness", [own["p99"]], unit="ms"))
    rows.append(
        row(f"live.{concurrency}.model.chunk", "the model's CPU a chunk", [1e6 * model_cpu / own["chunks"]], unit="µs")
    )
    return rows


def _subject(bench: Bench, name: str, *flags: str, model_url: str) -> AbstractAsyncContextManager[Served]:
    database = f"{name}-{uuid.uuid4().hex[:8]}"
    return bench.parts.server(name, *flags, database=database, OPENAI_BASE_URL=model_url)


async def _rounds(
    bench: Bench,
    sides: Mapping[str, Served],
    results: dict[tuple[str, int], list[LiveRound]],
    *,
    concurrency: int,
) -> None:
    """Adds the rounds of these sides to the results: one side after the other, again and again."""
    model = await bench.parts.pacing_model()
    serving = [pid for server in sides.values() for pid in server.pids]
    driving = [*model.pids, *bench.parts.load.pids]
    with cores.pinned(serving=[*serving, *bench.parts.database_pids], driving=driving):
        for name, server in sides.items():
            bench.show_progress(f"warming up: {name}")
            await play(bench, server, BEFOREHAND, count=2 * concurrency, concurrency=min(concurrency, 16))
        rounds, repeats = (1, 1) if bench.scale.quick else (min(3, bench.scale.rounds), 2)
        for number in range(rounds):
            for chunks, pace in PACES.items():
                for name, server in sides.items():
                    if name == "F5" and number:
                        continue
                    bench.show_progress(f"round {number + 1} of {rounds}: {name}, {chunks} chunks")
                    result = await play(bench, server, pace, count=repeats * concurrency, concurrency=concurrency)
                    results.setdefault((name, chunks), []).append(result)


async def play(bench: Bench, server: Served, pace: Pace, *, count: int, concurrency: int) -> LiveRound:
    """Runs `count` turns, `concurrency` at once; the subject's are read back after the window."""
    sessions = [f"live-{uuid.uuid4().hex}" for _ in range(count)]
    async with bench.window(server) as spent:
        before = cores.clocks()
        done = await bench.parts.load.run(
            live.stream_live, address=server.address, sessions=sessions, pace=pace.words, concurrency=concurrency
        )
        used = cores.used(before, cores.clocks())
    if server.database:
        await bench.check(server, sessions, done["answers"])
    return LiveRound(
        chunks=pace.chunks,
        server_ms=1000 * spent.server / count,
        database_ms=1000 * spent.database / count if server.database else 0.0,
        late_ms=tuple(done["late_ms"]),
        responses=done["responses"] / count,
        cores=used,
    )


def rows_of(results: Rounds, *, at: int) -> list[Row]:
    """Returns the rows of one concurrency."""
    slow = _slow(results) if at >= JUDGED_FROM else ""
    rows = list[Row]()
    for chunks in PACES:
        rows += _subject_rows(results, chunks, at, slow)
        rows += [_streams(name, f"{name}.live.{at}.{chunks}", results[name, chunks]) for name in FLOORS]
        rows += [
            row(f"{name}.live.{at}.{chunks}.late_p99", f"{name}: p99 of a delta's lateness", late, unit="ms")
            for name in FLOORS
            for late in [[result.late_ms[1] for result in results[name, chunks]]]
        ]
    for name in dict.fromkeys(name for name, _ in results):
        subject = name not in FLOORS
        prefix = f"live.{at}" if name == "subject" else f"{name}.live.{at}"
        further, fixed = costs(results[name, SHORT], results[name, LONG])
        floor = costs(results["F2", SHORT], results["F2", LONG]) if subject else (None, None)
        void = max((_void(results[name, chunks]) for chunks in PACES), key=len)
        beside = "; floor F2" if subject else ""
        rows += [
            row(
                f"{prefix}.delta",
                f"{name}: CPU of a further delta{beside}",
                further,
                unit="ms",
                floor=floor[0],
                void=void or (slow if name == "F7" else ""),
            ),
            row(
                f"{prefix}.fixed",
                f"{name}: CPU of a turn without its deltas{beside}",
                fixed,
                unit="ms",
                floor=floor[1],
                void=void,
            ),
        ]
    return rows


def costs(short: Sequence[LiveRound], long: Sequence[LiveRound]) -> tuple[list[float], list[float]]:
    """Returns each round's CPU milliseconds of a further delta, and of a turn without its deltas.

    Server and database; a line through the short and the long answer.
    """
    further = [(much.both_ms - few.both_ms) / (LONG - SHORT) for few, much in zip(short, long, strict=True)]
    return further, [few.both_ms - SHORT * delta for few, delta in zip(short, further, strict=True)]


def _slow(results: Rounds) -> str:
    """Returns why F7 does not count, or an empty string."""
    further = row("", "", costs(results["F7", SHORT], results["F7", LONG])[0], unit="ms").value
    return f"F7 takes {further:.3f} ms a delta, more than {SLOWEST_F7}" if further > SLOWEST_F7 else ""


def _subject_rows(results: Rounds, chunks: int, at: int, slow: str) -> list[Row]:
    rounds, name = results["subject", chunks], f"live.{at}.{chunks}"
    floors = {floor: results[floor, chunks] for floor in ("F2", "F7")}
    rows = [
        _streams("streams a core", name, rounds, beside="F2", floor=floors["F2"]),
        _streams("streams a core", f"{name}.F7", rounds, beside="F7", floor=floors["F7"], slow=slow),
    ]
    if ("interval_0", chunks) in results:
        as_they_come = results["interval_0", chunks]
        rows.append(
            _streams("with deltas as they come", f"{name}.interval_0", as_they_come, beside="F2", floor=floors["F2"])
        )
    relay = floors["F2"]
    void = _void(rounds)
    for place, share in enumerate((50, 99)):
        late = [result.late_ms[place] for result in rounds]
        theirs = [result.late_ms[place] for result in relay]
        about = f"p{share} of a delta's lateness to the model's own time; floor F2"
        rows.append(row(f"{name}.late_p{share}", about, late, unit="ms", floor=theirs, void=void))
    server = [result.server_ms for result in rounds]
    database = [result.database_ms for result in rounds]
    rows += [
        row(f"{name}.server", "server CPU a turn", server, unit="ms", void=void),
        row(f"{name}.database", "database CPU a turn", database, unit="ms", void=void),
        row(f"{name}.responses", "responses a turn", [result.responses for result in rounds], unit=""),
    ]
    return rows


def _streams(
    about: str,
    name: str,
    rounds: Sequence[LiveRound],
    *,
    beside: str = "",
    floor: Sequence[LiveRound] = (),
    slow: str = "",
) -> Row:
    """Returns the row of streams per core, with the most that was used of each core in a round."""
    most = [max(shares) for shares in zip(*(result.cores for result in rounds), strict=True)]
    use = ", ".join(f"core {number} at {share:.0%}" for number, share in enumerate(most))
    theirs = [result.per_core for result in floor]
    about = f"{about}; floor {beside}; {use}" if beside else f"{about}: streams a core; {use}"
    void = _void(rounds) or _void(floor) or slow
    return row(name, about, [result.per_core for result in rounds], unit="", floor=theirs or None, void=void)


def _void(rounds: Sequence[LiveRound]) -> str:
    """Returns why these rounds do not count, or an empty string."""
    return cores.overdriven(result.cores for result in rounds)


MEASURES = tuple(
    Measure(
        f"live-streams-{concurrency}",
        f"live streams that one core carries, {concurrency} at once",
        partial(live_streams, concurrency=concurrency),
    )
    for concurrency in (16, 64, 128)
)
