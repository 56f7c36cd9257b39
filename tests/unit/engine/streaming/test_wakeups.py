"""One timer notifies every waiter after its deadline, and none twice."""

import asyncio
from collections import Counter

from turnkeeper.engine.streaming.wakeups import NEVER, READERS_AT_ONCE, Broadcast, DeadlineTimers


class Waiter:
    def __init__(self) -> None:
        self.deadline = self.listed = NEVER
        self.notified_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def notify_deadline(self) -> None:
        self.notified_at.set_result(asyncio.get_running_loop().time())


async def test_each_is_notified_after_its_deadline_in_any_order() -> None:
    timers, now = DeadlineTimers(), asyncio.get_running_loop().time()
    waiters = {wait: Waiter() for wait in (0.03, 0.01, 0.05, 0.02)}
    for wait, waiter in waiters.items():
        timers.set(waiter, now + wait)
    for wait, waiter in waiters.items():
        assert await asyncio.wait_for(waiter.notified_at, 5) >= now + wait


async def test_a_later_deadline_notifies_later_and_an_earlier_one_sooner() -> None:
    timers, now = DeadlineTimers(), asyncio.get_running_loop().time()
    later, sooner, other = Waiter(), Waiter(), Waiter()
    timers.set(later, now + 0.01)
    timers.set(later, now + 0.04)
    timers.set(sooner, now + 600)
    timers.set(sooner, now + 0.02)
    timers.set(other, now + 0.03)
    assert await asyncio.wait_for(sooner.notified_at, 5) < now + 600
    await asyncio.wait_for(other.notified_at, 5)
    assert await asyncio.wait_for(later.notified_at, 5) >= now + 0.04


async def test_a_dropped_deadline_notifies_nothing() -> None:
    timers, now = DeadlineTimers(), asyncio.get_running_loop().time()
    gone, last = Waiter(), Waiter()
    timers.set(gone, now + 0.01)
    timers.set(last, now + 0.02)
    gone.deadline = NEVER
    await asyncio.wait_for(last.notified_at, 5)
    assert not gone.notified_at.done()
    timers.set(gone, now + 0.03)
    await asyncio.wait_for(gone.notified_at, 5)


async def test_a_subscriber_that_leaves_disturbs_no_other() -> None:
    broadcast = Broadcast()
    first, second, third = broadcast.subscribe(), broadcast.subscribe(), broadcast.subscribe()
    first.cancel()
    broadcast.unsubscribe(second)
    broadcast.notify()
    assert not second.done()
    assert third.done()
    assert broadcast.count == 1


class Listening:
    """A reader that counts its notifications, and knows in which iteration of the loop the last one came."""

    iteration = 0

    def __init__(self) -> None:
        self.changes = self.at = 0

    def on_change(self) -> None:
        self.changes += 1
        self.at = Listening.iteration


async def pass_iterations(count: int) -> None:
    for _ in range(count):
        Listening.iteration += 1
        await asyncio.sleep(0)


async def test_readers_are_notified_of_each_change_once_until_they_leave() -> None:
    broadcast, staying, leaving = Broadcast(), Listening(), Listening()
    broadcast.add(staying)
    broadcast.add(leaving)
    broadcast.notify()
    broadcast.notify()
    assert staying.changes == 0, "not inside of what made the change"
    await pass_iterations(2)
    assert (staying.changes, leaving.changes) == (1, 1)
    broadcast.notify()
    broadcast.remove(leaving)
    await pass_iterations(2)
    assert (staying.changes, leaving.changes) == (2, 1)


async def test_thousands_of_readers_are_notified_of_a_change_in_many_iterations_of_the_loop() -> None:
    broadcast, readers = Broadcast(), [Listening() for _ in range(10 * READERS_AT_ONCE + 1)]
    for reader in readers:
        broadcast.add(reader)
    broadcast.notify()
    await pass_iterations(20)
    assert [reader.changes for reader in readers] == [1] * len(readers)
    assert max(Counter(reader.at for reader in readers).values()) == READERS_AT_ONCE


async def test_a_reader_that_leaves_while_others_are_notified_gets_nothing_more() -> None:
    broadcast, second = Broadcast(), Listening()

    class First(Listening):
        def on_change(self) -> None:
            super().on_change()
            broadcast.remove(second)

    first = First()
    broadcast.add(first)
    broadcast.add(second)
    broadcast.notify()
    await pass_iterations(2)
    assert (first.changes, second.changes) == (1, 0)
