"""When a silent database ends readiness, and when it begins again."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, repeat

from turnkeeper.engine.replica.database_probe import DatabaseProbe
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.settings import Settings

PATIENCE = 0.6
"""Seconds; there are six pings in it."""
GOOD, REFUSED, SILENT, FROZEN = "good", "refused", "silent", "frozen"


@dataclass(slots=True)
class Database:
    """Answers the next pings as `answers` has it."""

    answers: Iterator[str]
    pings: int = 0
    good_at: float = 0.0
    changes: list[tuple[bool, int, float]] = field(default_factory=list)
    """Each report: whether the database answers, after how many pings, and how long after the last good one."""
    more: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def ping(self) -> None:
        self.pings += 1
        async with self.more:
            self.more.notify_all()
        match next(self.answers):
            case "refused":
                raise ServiceUnavailable
            case "silent":
                await asyncio.sleep(3600)
            case "frozen":  # with the whole process: the answer came meanwhile, and its time was over
                time.sleep(1.5 * PATIENCE)  # noqa: ASYNC251
                await asyncio.sleep(3600)
        self.good_at = time.monotonic()

    async def report(self, answers: bool) -> None:
        self.changes.append((answers, self.pings, time.monotonic() - self.good_at))
        async with self.more:
            self.more.notify_all()

    @asynccontextmanager
    async def probed(self) -> AsyncIterator[None]:
        probe = DatabaseProbe(self, patience=timedelta(seconds=PATIENCE), report=self.report)
        running = asyncio.create_task(probe.run())
        try:
            async with asyncio.timeout(20):
                yield
        finally:
            running.cancel()

    async def until(self, *, changes: int = 0, pings: int = 0) -> None:
        async with self.more:
            await self.more.wait_for(lambda: len(self.changes) >= changes and self.pings >= pings)


async def test_it_is_reported_after_its_time_and_again_after_two_answers() -> None:
    for failing in (REFUSED, SILENT):
        bad = [failing] * 3
        database = Database(chain([GOOD], repeat(failing)))
        async with database.probed():
            await database.until(changes=1)
            (answers, _, after), before = database.changes[0], database.pings
            assert not answers
            assert PATIENCE <= after < PATIENCE + 1, "it is late by a fifth of a ping's interval, and by a busy machine"
            database.answers = chain([GOOD], bad[:1], repeat(GOOD))
            await database.until(changes=2)
            answers, pings, _ = database.changes[1]
            assert answers
            assert pings - before >= 4, "one good ping is not enough, nor are two with a bad one between them"


async def test_a_few_bad_pings_are_none() -> None:
    database = Database(chain([GOOD], [REFUSED] * 3, repeat(GOOD)))
    async with database.probed():
        await database.until(pings=12)
    assert database.changes == []


async def test_a_process_that_was_frozen_asks_again_first() -> None:
    database = Database(chain([GOOD, FROZEN], repeat(GOOD)))
    async with database.probed():
        await database.until(pings=8)
    assert database.changes == []


def test_by_default_it_takes_half_a_minute() -> None:
    assert Settings().unready_after == timedelta(seconds=30)
