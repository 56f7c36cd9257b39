"""The environment of a measure: the parts of the run, its scale, and windows of CPU time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self, TypeVar

from pymongo import AsyncMongoClient

from tests.bench.cpu import cpu_seconds
from tests.bench.figures import Invalid, Row
from tests.bench.jobs import turns
from tests.bench.parts import FILES, Parts, Served
from turnkeeper.model.script_file import load_script

SETTLING: Final = 0.25
"""Seconds after the last answer that still count: a server's work after its answer is part of its cost."""

T = TypeVar("T")


class Measured(Protocol):
    """A program whose CPU time is measured."""

    @property
    def pids(self) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to do: rounds of each side, turns a round. `quick`: less of everything.

    `capacity`: turns a second that a server serves; 0 lets the measures that need it find it. `steps`: only these
    multiples of it are offered; empty: those of the measure.
    """

    rounds: int = 5
    turns: int = 200
    quick: bool = False
    capacity: float = 0.0
    steps: tuple[float, ...] = ()


@dataclass(slots=True)
class Spent:
    """CPU seconds and wall seconds of a window, once it has ended."""

    server: float = 0.0
    database: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of turns cost: CPU milliseconds a turn, turns a second, responses a turn."""

    server_ms: float = 0.0
    database_ms: float = 0.0
    per_second: float = 0.0
    responses: float = 0.0
    first_text_ms: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls, spent: Spent, *, count: int, seconds: float, responses: int = 0, first_text_ms: Sequence[float] = ()
    ) -> Self:
        """Returns the cost of each turn from a window of `count` turns that took `seconds`."""
        return cls(
            server_ms=1000 * spent.server / count,
            database_ms=1000 * spent.database / count,
            per_second=count / seconds,
            responses=responses / count,
            first_text_ms=list(first_text_ms),
        )


@dataclass(frozen=True, slots=True)
class Bench:
    """The argument of every measure. `show_progress` prints a line of progress."""

    parts: Parts
    scale: Scale
    show_progress: Callable[[str], None]

    async def alternate(self, sides: Mapping[str, Callable[[], Awaitable[T]]]) -> dict[str, list[T]]:
        """Runs the sides by turns, one round each, so that a disturbance of the machine affects all sides alike.

        Returns each side's results. The first round of each side warms it up and does not count.
        """
        results: dict[str, list[T]] = {name: [] for name in sides}
        for number in range(self.scale.rounds + 1):
            for name, play in sides.items():
                self.show_progress(
                    f"round {number} of {self.scale.rounds}: {name}" if number else f"warming up: {name}"
                )
                result = await play()
                if number:
                    results[name].append(result)
        return results

    @contextlib.asynccontextmanager
    async def window(self, measured: Measured) -> AsyncIterator[Spent]:
        """Measures the CPU that these processes and the database use inside the block and shortly after it."""
        await asyncio.sleep(SETTLING)  # so that the work of earlier rounds is over
        spent, began = Spent(), time.perf_counter()
        before = cpu_seconds(measured.pids), cpu_seconds(self.parts.database_pids)
        yield spent
        spent.seconds = time.perf_counter() - began
        await asyncio.sleep(SETTLING)
        spent.server = cpu_seconds(measured.pids) - before[0]
        spent.database = cpu_seconds(self.parts.database_pids) - before[1]

    async def turns(
        self,
        server: Served,
        *,
        concurrency: int,
        message: str = "at once",
        count: int = 0,
        apart: float = 0.0,
        around: AbstractContextManager[object] | None = None,
    ) -> Round:
        """Runs a round of `count` turns (default `scale.turns`), each in a session of its own that is created before.

        The subject's turns are read back after the window. Raises Invalid if one is not whole.
        `around` is entered while turns run, and at no other time.
        """
        count = count or max(self.scale.turns, concurrency)
        load, answer = self.parts.load, answer_to(message)
        sessions = [str(number) for number in range(count)]
        if server.database:
            sessions = await load.run(turns.create_sessions, address=server.address, count=count)
        async with self.window(server) as spent:
            with around or contextlib.nullcontext():
                done = await load.run(
                    turns.stream_turns,
                    address=server.address,
                    sessions=sessions,
                    message=message,
                    answer=answer,
                    concurrency=concurrency,
                    apart=apart,
                )
        if server.database:
            await self.check(server, sessions, [answer] * len(sessions))
        return Round.of(spent, count=count, **done)

    async def check(self, server: Served, sessions: list[str], answers: list[str]) -> None:
        """Raises Invalid unless a majority has every session's turn as COMPLETED and its log can be read."""
        async with AsyncMongoClient[dict[str, Any]](self.parts.database.uri, readConcernLevel="majority") as client:
            states = client[server.database].turns.find({"session_id": {"$in": sessions}}, {"state": 1})
            reached = [turn["state"] async for turn in states]
        if reached != ["COMPLETED"] * len(sessions):
            raise Invalid(f"of {len(sessions)} turns a majority has {reached.count('COMPLETED')} as COMPLETED")
        await self.parts.load.run(turns.read_back, address=server.address, sessions=sessions, answers=answers)


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure: its name for `--only`, a description, and the function that returns its rows."""

    name: str
    about: str
    run: Callable[[Bench], Awaitable[list[Row]]]


def answer_to(message: str) -> str:
    """Returns the scripted model's answer to this message."""
    replies = load_script(FILES / "model.toml").replies
    return replies[0].text if message.startswith("paced") else replies[-1].text
