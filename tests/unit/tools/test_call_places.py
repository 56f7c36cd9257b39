"""Places are taken in order, and none is lost, whatever becomes of those who wait."""

import asyncio

from turnkeeper.tools.call_places import CallPlaces


async def waiting(room: CallPlaces) -> asyncio.Task[None]:
    """Returns a task that waits for a place."""
    task = asyncio.create_task(room.wait())
    await asyncio.sleep(0)
    return task


async def test_there_are_as_many_places_as_stated() -> None:
    room = CallPlaces(2)
    assert [room.take() for _ in range(3)] == [True, True, False]
    room.give_back()
    assert [room.take() for _ in range(2)] == [True, False]


async def test_a_place_goes_to_the_one_that_waited_longest() -> None:
    room = CallPlaces(1)
    await room.wait()
    first, second = await waiting(room), await waiting(room)
    room.give_back()
    assert not room.take(), "it goes to the one that waits"
    await first
    assert not second.done()
    room.give_back()
    await second
    room.give_back()
    assert room.take()


async def test_one_that_gives_up_takes_no_place() -> None:
    room = CallPlaces(1)
    assert room.take()
    first, second = await waiting(room), await waiting(room)
    first.cancel()
    await asyncio.wait([first])
    room.give_back()
    await second
    room.give_back()
    assert room.take()


async def test_a_place_that_comes_with_the_cancellation_goes_on() -> None:
    room = CallPlaces(1)
    assert room.take()
    first, second = await waiting(room), await waiting(room)
    room.give_back()
    first.cancel()
    await asyncio.wait([first])
    await second
    room.give_back()
    assert [room.take(), room.take()] == [True, False]
