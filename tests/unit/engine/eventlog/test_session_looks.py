"""Before callers of one session stand in line, they look whether they have anything to store, one after the other."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests.processes import until
from tests.unit.engine.eventlog.test_session_lines import KEY, Replica
from turnkeeper.engine.eventlog.session_lines import MOST_CALLERS, SessionLines
from turnkeeper.engine.eventlog.writer import Stored
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import SessionContended, TurnInProgress


async def looked(lines: SessionLines) -> None:
    async with lines.look(KEY):
        pass


async def test_one_caller_of_a_session_is_at_the_database_at_a_time() -> None:
    replica = await Replica.with_session()
    await asyncio.gather(*(replica.change(str(number)) for number in range(50)))
    assert replica.calls.count("snapshot") > 1
    assert replica.most_at_database == 1


async def test_looks_and_changes_take_turns() -> None:
    lines, order = SessionLines(lambda: 0.0), list[str]()

    async def change(name: str) -> None:
        with await lines.enter(KEY):
            order.append(name)
            await asyncio.sleep(0)

    async def look(name: str) -> None:
        async with lines.look(KEY):
            order.append(name)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(change(f"change {number}"))
        for number in range(4):
            group.create_task(look(f"look {number}"))
    assert order == [f"{kind} {number}" for number in range(4) for kind in ("change", "look")]
    assert not len(lines)


@pytest.mark.parametrize("is_looking", [True, False])
async def test_a_caller_that_leaves_while_another_is_at_the_database_leaves_nothing_behind(is_looking: bool) -> None:
    lines = SessionLines(lambda: 0.0)

    async def change() -> None:
        (await lines.enter(KEY)).leave()

    async with AsyncExitStack() as first:
        if is_looking:
            first.enter_context(await lines.enter(KEY))
            leaving = asyncio.create_task(looked(lines))
        else:
            await first.enter_async_context(lines.look(KEY))
            leaving = asyncio.create_task(change())
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        behind = asyncio.create_task(looked(lines) if is_looking else change())
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await behind
    assert not len(lines)


async def test_a_caller_that_leaves_when_a_look_went_before_it_leaves_nothing_behind() -> None:
    """The database was free when it came, and promised to the caller that looked."""
    lines, is_looking, go_on = SessionLines(lambda: 0.0), asyncio.Event(), asyncio.Event()

    async def look() -> None:
        async with lines.look(KEY):
            is_looking.set()
            await go_on.wait()

    async def change() -> None:
        (await lines.enter(KEY)).leave()

    async def change_twice() -> None:
        with await lines.enter(KEY):
            group.create_task(look())
            await asyncio.sleep(0)
        await change()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        leaving = group.create_task(change_twice())
        await is_looking.wait()
        leaving.cancel()
        await asyncio.wait([leaving])
        behind = group.create_task(change())
        await asyncio.sleep(0)
        go_on.set()
        await behind
    assert leaving.cancelled()
    assert not len(lines)


async def test_a_caller_that_leaves_while_it_waits_for_its_look_leaves_nothing_behind() -> None:
    lines = SessionLines(lambda: 0.0)
    async with lines.look(KEY):
        waiting = asyncio.create_task(looked(lines))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert not len(lines)


async def test_more_than_so_many_callers_that_wait_for_their_look_are_told_to_come_again() -> None:
    lines = SessionLines(lambda: 0.0)
    async with lines.look(KEY):
        waiting = [asyncio.create_task(looked(lines)) for _ in range(MOST_CALLERS - 1)]
        await asyncio.sleep(0)
        with pytest.raises(SessionContended):
            await looked(lines)
    await asyncio.gather(*waiting)
    assert not len(lines)


async def test_what_stores_nothing_needs_no_place() -> None:
    replica = await Replica.with_session()

    def refuse(_: UnitOfWork) -> str:
        raise TurnInProgress

    async with asyncio.timeout(5):
        with await replica.writer.lines.enter(KEY):
            changing = [replica.change(str(number)) for number in range(9)]
            refused = asyncio.create_task(replica.writer.append(KEY, refuse))
            unchanged = asyncio.create_task(replica.writer.append(KEY, lambda _: "as it is"))
            replica.go_on.clear()
            await asyncio.sleep(0)
        await until(lambda: replica.commits == 1)
        assert not refused.done(), "it looks once the change before it is stored"
        looks = replica.calls.count("snapshot")
        replica.go_on.set()
        with pytest.raises(TurnInProgress):
            await refused
        stored = await unchanged
        assert isinstance(stored, Stored)
        assert stored.committed is None
        await asyncio.gather(*changing)
    assert looks < replica.calls.count("snapshot")
    assert replica.commits == len(changing)
