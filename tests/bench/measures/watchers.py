"""Measures events to watchers, live and from the log, beside a bare server stream of the same bytes (F3)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.bench.bench import Bench, Measure, answer_to
from tests.bench.figures import Invalid, Row, row
from tests.bench.jobs import recording, turns, watch
from tests.bench.parts import Served

MANY = 100
REPLAYS = 8
"""Streams that read the log at the same time."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """One round: events that arrived, seconds, CPU seconds of the server and of the database, and responses."""

    events: int
    seconds: float
    server: float
    database: float = 0.0
    responses: int = 0

    @property
    def per_second(self) -> float:
        return self.events / self.seconds

    @property
    def cpu_us(self) -> float:
        return 1e6 * self.server / self.events


async def live(bench: Bench) -> list[Row]:
    """Measures one session with previews: one watcher and a hundred, at full speed and at a model's pace."""
    return [figure for scene in SCENES for figure in rows_of(scene, await deliveries(bench, scene))]


def rows_of(scene: "Scene", results: dict[str, list[Delivered]]) -> list[Row]:
    """Returns the rows: at full speed the rate beside F3; to many watchers the CPU beside F3 live."""
    rows, ours = list[Row](), results["subject"]
    if not scene.paced:
        rates, floor = [result.per_second for result in ours], [result.per_second for result in results["F3"]]
        about = f"events a second, {scene.about}; floor F3"
        rows.append(row(f"{scene.name}.events", about, rates, unit="/s", floor=floor))
    if scene.watchers == MANY:
        cpu, floor = [result.cpu_us for result in ours], [result.cpu_us for result in results["F3 live"]]
        about = f"server CPU per delivered event, {scene.about}"
        rows.append(row(f"{scene.name}.cpu", f"{about}; floor F3 live", cpu, unit="µs", floor=floor))
        above = [_above(many, one) for many, one in zip(ours, results["alone"], strict=True)]
        theirs = [_above(many, one) for many, one in zip(results["F3 live"], results["F3 live alone"], strict=True)]
        of_watching = f"{about}, above the same turns with one watcher; floor F3 live, likewise"
        rows.append(row(f"{scene.name}.above", of_watching, above, unit="µs", floor=theirs))
        responses = f"responses per delivered event, {scene.about}; floor F3 live"
        theirs = [result.responses / result.events for result in results["F3 live"]]
        ratio = [result.responses / result.events for result in ours]
        rows.append(row(f"{scene.name}.responses", responses, ratio, unit="", floor=theirs))
        if not scene.paced:
            sent = [result.cpu_us for result in results["F3"]]
            rows.append(row(f"{scene.name}.F3", f"F3, all at once: {about}", sent, unit="µs"))
    return rows


def _above(many: Delivered, one: Delivered) -> float:
    """Returns the microseconds for each event that went to the further watchers of the same turns."""
    return 1e6 * (many.server - one.server) / (many.events - one.events)


@dataclass(frozen=True, slots=True)
class Scene:
    """Watchers of a number of turns; in a quick run of fewer."""

    watchers: int
    turns: int
    quick_turns: int
    paced: bool = False

    @property
    def name(self) -> str:
        return f"watch.{self.watchers}{'.paced' if self.paced else ''}"

    @property
    def about(self) -> str:
        return f"{self.watchers} watching{', at the pace of a model' if self.paced else ''}"

    @property
    def message(self) -> str:
        return "paced" if self.paced else "at once"

    def count(self, *, quick: bool) -> int:
        return self.quick_turns if quick else self.turns


SCENES = (Scene(1, 50, 5), Scene(MANY, 20, 3), Scene(MANY, 4, 1, paced=True))


async def deliveries(bench: Bench, scene: Scene) -> dict[str, list[Delivered]]:
    subject = await bench.parts.subject()
    kept = bench.parts.folder / scene.name
    bench.show_progress(f"{scene.about}: to be recorded")
    await _watched(bench, subject, scene, keep=kept)
    responses = kept.with_name(f"{kept.name}.responses")
    sides: dict[str, Callable[[], Awaitable[Delivered]]] = {"subject": partial(_watched, bench, subject, scene)}
    if not scene.paced:
        sent = await bench.parts.floor("replay", responses)
        first = await bench.parts.floor("replay", _first_of(responses))
        opening = [await _read(bench, first, "recorded", scene.watchers) for _ in range(2)][1]  # the first warms it up
        sides["F3"] = partial(_sent, bench, sent, opening.server, scene.watchers, responses)
    if scene.watchers > 1:
        sides["alone"] = partial(_watched, bench, subject, replace(scene, watchers=1))
        broadcast = await bench.parts.floor("broadcast", kept.with_name(f"{kept.name}.broadcast"))
        sides["F3 live"] = partial(_watched, bench, broadcast, scene)
        sides["F3 live alone"] = partial(_watched, bench, broadcast, replace(scene, watchers=1))
    return await bench.alternate(sides)


async def _watched(bench: Bench, server: Served, scene: Scene, *, keep: Path | None = None) -> Delivered:
    """Runs turns in a watched session. The cost of the turns themselves is included."""
    load, answer, count = bench.parts.load, answer_to(scene.message), scene.count(quick=bench.scale.quick)
    sessions = ["recorded"]
    if server.database:
        sessions = await load.run(turns.create_sessions, address=server.address, count=1)
    at = {"address": server.address, "session_id": sessions[0]}
    await load.run(watch.open_watchers, **at, count=scene.watchers)
    async with bench.window(server) as spent:
        done = await load.run(watch.talk, **at, message=scene.message, answer=answer, count=count)
    delivered = await load.run(watch.end_watchers, answer=answer, count=count, file=str(keep or ""))
    return Delivered(delivered["events"], done["seconds"], spent.server, spent.database, delivered["responses"])


async def _sent(bench: Bench, floor: Served, opening: float, streams: int, responses: Path) -> Delivered:
    """Streams the same responses from F3, without the CPU of opening: the subject's streams were open before."""
    spent = await _read(bench, floor, "recorded", streams)
    expected = len(watch.events_of(recording.responses_of(responses))) * streams
    if spent.events != expected:
        raise Invalid(f"F3 sent {spent.events} events, not {expected}")
    return Delivered(expected, spent.seconds, spent.server - opening)


def _first_of(responses: Path) -> Path:
    """Returns a recording of the first response alone."""
    first = responses.with_suffix(".first")
    recording.keep(recording.responses_of(responses)[:1], first)
    return first


async def replay(bench: Bench) -> list[Row]:
    """Measures several readers of a log from its beginning, none of which is in the server's memory."""
    load, subject = bench.parts.load, await bench.parts.subject()
    answer, count = answer_to("at once"), 60 if bench.scale.quick else 400
    (session,) = await load.run(turns.create_sessions, address=subject.address, count=1)
    bench.show_progress(f"a session of {count} turns")
    talk = {"address": subject.address, "message": "at once", "answer": answer}
    await load.run(turns.stream_turns, sessions=[session] * count, concurrency=1, **talk)
    file = bench.parts.folder / "log.responses"
    await load.run(recording.record, address=subject.address, session_id=session, file=str(file))
    floor = await bench.parts.floor("replay", file)
    results = await bench.alternate(
        {
            "subject": partial(_read, bench, subject, session, REPLAYS),
            "F3": partial(_read, bench, floor, session, REPLAYS),
        }
    )
    ours, theirs = results["subject"], results["F3"]
    about = f"a log of {ours[0].events // REPLAYS} events, read by {REPLAYS} at once"
    if {result.responses for result in ours} != {result.responses for result in theirs}:
        raise Invalid("the readers of the log got it in other responses than those of F3")
    rates, cpu = [result.per_second for result in ours], [result.cpu_us for result in ours]
    return [
        row(
            "replay.events",
            f"events a second, {about}; floor F3",
            rates,
            unit="/s",
            floor=[t.per_second for t in theirs],
        ),
        row("replay.cpu", "server CPU per event; floor F3", cpu, unit="µs", floor=[result.cpu_us for result in theirs]),
        row("replay.database", "database CPU per event", [1e6 * t.database / t.events for t in ours], unit="µs"),
    ]


async def _read(bench: Bench, server: Served, session: str, streams: int) -> Delivered:
    async with bench.window(server) as spent:
        done = await bench.parts.load.run(watch.read_all, address=server.address, session_id=session, streams=streams)
    return Delivered(done["events"], done["seconds"], spent.server, spent.database, done["responses"])


MEASURES = (
    Measure("watchers", "events to one watcher and to a hundred", live),
    Measure("replay", "the log, read from its beginning", replay),
)
