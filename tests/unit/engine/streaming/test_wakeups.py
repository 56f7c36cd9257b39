"""One timer notifies every waiter after its deadline, and none twice."""

import asyncio

from turnkeeper.engine.streaming.wakeups import NEVER, Broadcast, DeadlineTimers


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
