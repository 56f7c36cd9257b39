"""Measures the cost of a turn late in a conversation, apart from the bytes that the model must be sent."""

from dataclasses import dataclass, field

from pymongo import AsyncMongoClient

from tests.bench.bench import Bench, Measure, answer_to
from tests.bench.figures import Invalid, Row, row
from tests.bench.jobs import growth as jobs
from tests.bench.jobs import turns
from tests.bench.parts import Served

MESSAGE = "at once"
WINDOW = 20
"""Turns that are measured together, one after the other."""
TURNS_MEASURED = {1: 20, 10: 4, 50: 4, 200: 1, 1000: 1}
"""The turns measured, each with the number of sessions that share its window: half before that turn, half after."""


@dataclass(slots=True)
class Talk:
    """Sessions, and the number of turns that each of them had."""

    bench: Bench
    server: Served
    sessions: list[str]
    had: dict[str, int] = field(default_factory=dict)

    async def add_turns(self, sessions: list[str], count: int) -> None:
        """Runs `count` more turns in each of these sessions, one after the other."""
        turn_sessions = [session for session in sessions for _ in range(count)]
        job = {"address": self.server.address, "message": MESSAGE, "answer": answer_to(MESSAGE), "concurrency": 1}
        if turn_sessions:
            await self.bench.parts.load.run(turns.stream_turns, sessions=turn_sessions, **job)
        for session in sessions:
            self.had[session] = self.had.get(session, 0) + count

    async def at(self, turn: int) -> float:
        """Returns the server's CPU milliseconds for a turn, measured around this turn."""
        chosen = self.sessions[: TURNS_MEASURED[turn]]
        count = WINDOW // len(chosen)
        for session in chosen:
            await self.add_turns([session], first(turn, count) - 1 - self.had.get(session, 0))
        async with self.bench.window(self.server) as spent:
            await self.add_turns(chosen, count)
        return 1000 * spent.server / WINDOW

    async def check(self) -> None:
        """Raises Invalid unless every turn is COMPLETED and the model is sent all of the longest conversation."""
        load, url = self.bench.parts.load, self.bench.parts.model_url
        longest = max(self.had, key=lambda session: self.had[session])
        await load.run(jobs.forget_requests, url=url)
        await self.add_turns([longest], 1)
        sent = await load.run(jobs.last_request, url=url)
        if sent != 2 * self.had[longest]:  # the instructions, two a turn before, and the message
            raise Invalid(f"at turn {self.had[longest]} the model was sent {sent} messages")
        async with AsyncMongoClient[dict[str, object]](
            self.bench.parts.database.uri, readConcernLevel="majority"
        ) as client:
            match = {"session_id": {"$in": self.sessions}, "state": "COMPLETED"}
            completed = await client[self.server.database].turns.count_documents(match)
        if completed != sum(self.had.values()):
            raise Invalid(f"of {sum(self.had.values())} turns a majority has {completed} as COMPLETED")


async def growth(bench: Bench) -> list[Row]:
    """Measures the server's CPU per turn at these turns; in a quick run up to the fiftieth."""
    places = [turn for turn in TURNS_MEASURED if turn <= (50 if bench.scale.quick else max(TURNS_MEASURED))]
    subject = await bench.parts.subject()
    sessions = await bench.parts.load.run(
        turns.create_sessions, address=subject.address, count=max(TURNS_MEASURED.values())
    )
    talk, cost = Talk(bench, subject, sessions), {}
    for turn in places:
        bench.show_progress(f"turn {turn}")
        cost[turn] = await talk.at(turn)
    await talk.check()
    sending, asking = await _model_costs(bench, places)
    return [figure for turn in places for figure in rows_of(turn, cost, sending, asking)]


def rows_of(turn: int, cost: dict[int, float], sending: dict[int, float], asking: dict[int, float]) -> list[Row]:
    """Returns the rows of a turn. `sending`: cost of the finished bytes; `asking`: of a call of the model client."""
    apart = {turn_number: cost[turn_number] - (sending[turn_number] - sending[1]) for turn_number in (turn, 10)}
    return [
        row(
            f"growth.{turn}",
            f"server CPU of turn {turn}, apart from the bytes for the model; floor: turn 10",
            [apart[turn]],
            unit="ms",
            floor=apart[10],
        ),
        row(
            f"growth.{turn}.all", f"server CPU of turn {turn}; floor: turn 10", [cost[turn]], unit="ms", floor=cost[10]
        ),
        row(
            f"growth.{turn}.bytes",
            f"sending turn {turn}'s finished bytes, and reading the answer",
            [sending[turn]],
            unit="ms",
        ),
        row(
            f"growth.{turn}.client",
            f"turn {turn}'s conversation through our model client alone",
            [asking[turn]],
            unit="ms",
        ),
    ]


async def _model_costs(bench: Bench, places: list[int]) -> tuple[dict[int, float], dict[int, float]]:
    sending, asking = dict[int, float](), dict[int, float]()
    answer = answer_to(MESSAGE)
    async with bench.parts.runner("sender") as sender:
        await sender.run(jobs.prepare, url=bench.parts.model_url, message=MESSAGE, answer=answer, turns=places)
        for turn in [places[0], *places]:  # the first time to warm up
            async with bench.window(sender) as spent:
                await sender.run(jobs.send_bytes, turn=turn, count=WINDOW)
            sending[turn] = 1000 * spent.server / WINDOW
            async with bench.window(sender) as spent:
                await sender.run(jobs.call_model, turn=turn, count=WINDOW, answer=answer)
            asking[turn] = 1000 * spent.server / WINDOW
    return sending, asking


def first(turn: int, count: int) -> int:
    """Returns the first of `count` turns with this one in their middle; the last is never beyond the thousandth."""
    return turn if turn == 1 else min(turn - (count - 1) // 2, max(TURNS_MEASURED) - count + 1)


MEASURES = (Measure("growth", "a turn late in a conversation", growth),)
