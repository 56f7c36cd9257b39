"""What a turn costs late in a conversation, apart from the bytes that the model must be sent."""

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
PLACES = {1: 20, 10: 4, 50: 4, 200: 1, 1000: 1}
"""Which turn of a session, and over how many sessions its window is spread: half of it before that turn, half after."""


@dataclass(slots=True)
class Talk:
    """Sessions, and how many turns each of them had."""

    bench: Bench
    server: Served
    sessions: list[str]
    had: dict[str, int] = field(default_factory=dict)

    async def go_on(self, sessions: list[str], each: int) -> None:
        """So many more turns in each of these, one after the other."""
        wanted = [session for session in sessions for _ in range(each)]
        job = {"address": self.server.address, "message": MESSAGE, "answer": answer_to(MESSAGE), "concurrency": 1}
        if wanted:
            await self.bench.parts.load.run(turns.stream_turns, sessions=wanted, **job)
        for session in sessions:
            self.had[session] = self.had.get(session, 0) + each

    async def at(self, turn: int) -> float:
        """CPU milliseconds of the server for a turn, there."""
        chosen = self.sessions[: PLACES[turn]]
        each = WINDOW // len(chosen)
        for session in chosen:
            await self.go_on([session], first(turn, each) - 1 - self.had.get(session, 0))
        async with self.bench.window(self.server) as spent:
            await self.go_on(chosen, each)
        return 1000 * spent.server / WINDOW

    async def check(self) -> None:
        """A majority has every turn as COMPLETED, and the model is sent all of the longest conversation."""
        load, url = self.bench.parts.load, self.bench.parts.model_url
        longest = max(self.had, key=lambda session: self.had[session])
        await load.run(jobs.forget_requests, url=url)
        await self.go_on([longest], 1)
        sent = await load.run(jobs.last_request, url=url)
        if sent != 2 * self.had[longest]:  # the instructions, two a turn before, and the message
            raise Invalid(f"at turn {self.had[longest]} the model was sent {sent} messages")
        async with AsyncMongoClient[dict[str, object]](
            self.bench.parts.database.uri, readConcernLevel="majority"
        ) as client:
            match = {"session_id": {"$in": self.sessions}, "state": "COMPLETED"}
            found = await client[self.server.database].turns.count_documents(match)
        if found != sum(self.had.values()):
            raise Invalid(f"of {sum(self.had.values())} turns a majority has {found} as COMPLETED")


async def growth(bench: Bench) -> list[Row]:
    """The server's CPU per turn at these turns; in a quick run up to the fiftieth."""
    places = [turn for turn in PLACES if turn <= (50 if bench.scale.quick else max(PLACES))]
    subject = await bench.parts.subject()
    sessions = await bench.parts.load.run(turns.create_sessions, address=subject.address, count=max(PLACES.values()))
    talk, cost = Talk(bench, subject, sessions), {}
    for turn in places:
        bench.say(f"turn {turn}")
        cost[turn] = await talk.at(turn)
    await talk.check()
    sending, asking = await _model_costs(bench, places)
    return [each for turn in places for each in rows_of(turn, cost, sending, asking)]


def rows_of(turn: int, cost: dict[int, float], sending: dict[int, float], asking: dict[int, float]) -> list[Row]:
    """`sending` is what the finished bytes cost, `asking` a call of our model client; of both the growth is taken."""
    apart = {each: cost[each] - (sending[each] - sending[1]) for each in (turn, 10)}
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
                await sender.run(jobs.ask_model, turn=turn, count=WINDOW, answer=answer)
            asking[turn] = 1000 * spent.server / WINDOW
    return sending, asking


def first(turn: int, each: int) -> int:
    """The first of so many turns with this one in their middle; the last of them is never beyond the thousandth."""
    return turn if turn == 1 else min(turn - (each - 1) // 2, max(PLACES) - each + 1)


MEASURES = (Measure("growth", "a turn late in a conversation", growth),)
