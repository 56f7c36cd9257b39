"""Callers that want the same at the same time share one read, which began after their calls."""

import asyncio
from collections.abc import Callable

import pytest

from tests.processes import until
from turnkeeper.domain.newer_version import newer_version_needed
from turnkeeper.errors import ServiceUnavailable, SessionError
from turnkeeper.store.mongo.shared_reads import SharedReads
from turnkeeper.store.mongo.transactions.tasks import Tasks

CALLERS = 50


class Database:
    """Answers with the number of the read once it is `open`. `failure` makes the error of a read, by its number."""

    def __init__(self) -> None:
        self.reads = 0
        self.open = asyncio.Event()
        self.failure: Callable[[int], SessionError | None] = lambda _number: None

    async def fetch(self) -> int:
        self.reads += 1
        number = self.reads
        await self.open.wait()
        if (error := self.failure(number)) is not None:
            raise error
        return number


async def begun(reads: SharedReads[int], database: Database, count: int) -> list[asyncio.Task[int]]:
    """Returns callers that have called, one after the other."""
    tasks = [asyncio.create_task(reads.read("s", database.fetch)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_a_read_serves_those_who_called_before_it_began_and_no_one_else() -> None:
    reads, database = SharedReads[int](Tasks()), Database()
    first = await begun(reads, database, CALLERS)
    assert database.reads == 1
    database.open.set()
    assert await asyncio.gather(*first) == [1, *[2] * (CALLERS - 1)]
    assert await reads.read("s", database.fetch) == 3, "nothing is kept"


async def test_reads_of_other_keys_do_not_wait() -> None:
    reads, database = SharedReads[int](Tasks()), Database()
    waiting = await begun(reads, database, 1)
    other = Database()
    other.open.set()
    assert await reads.read("another", other.fetch) == 1
    database.open.set()
    assert await waiting[0] == 1


@pytest.mark.parametrize("leaving", [0, 1], ids=["the reader", "the first who waits"])
async def test_a_caller_that_leaves_disturbs_no_other(leaving: int) -> None:
    reads, database = SharedReads[int](Tasks()), Database()
    tasks = await begun(reads, database, 3)
    tasks[leaving].cancel()
    await asyncio.wait([tasks[leaving]])
    database.open.set()
    staying = [task for number, task in enumerate(tasks) if number != leaving]
    assert [await asyncio.wait_for(task, 5) for task in staying] == ([2, 2] if leaving == 0 else [1, 2])


async def test_without_a_database_each_caller_gets_an_error_of_its_own_and_no_further_read_is_made() -> None:
    reads, database = SharedReads[int](Tasks()), Database()
    database.failure = lambda _number: ServiceUnavailable()
    tasks = await begun(reads, database, CALLERS)
    database.open.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, ServiceUnavailable) for error in errors)
    assert len(set(map(id, errors))) == CALLERS, "the error that ends a stream gets the stream's own cursor"
    assert database.reads == 2


async def test_after_another_error_each_caller_reads_for_itself() -> None:
    reads, database = SharedReads[int](Tasks()), Database()
    database.failure = lambda number: newer_version_needed() if number == 2 else None
    tasks = await begun(reads, database, 3)
    database.open.set()
    assert sorted(await asyncio.gather(*tasks)) == [1, 3, 4]


async def test_a_caller_reads_for_itself_if_the_read_under_way_takes_long() -> None:
    reads, database = SharedReads[int](Tasks(), patience=0.01), Database()
    tasks = await begun(reads, database, 2)
    await until(lambda: database.reads == 2)
    database.open.set()
    assert await asyncio.gather(*tasks) == [1, 2]
