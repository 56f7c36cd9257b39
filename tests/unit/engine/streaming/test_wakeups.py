"""One timer wakes everybody in time, and nobody twice."""

import asyncio

from turnkeeper.engine.streaming.wakeups import NEVER, Broadcast, DeadlineTimers


class Sleeper:
    def __init__(self) -> None:
        self.due = self.listed = NEVER
        self.rung: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def ring(self) -> None:
        self.rung.set_result(asyncio.get_running_loop().time())


async def test_each_is_woken_when_it_is_due_in_whatever_order_they_came() -> None:
    alarms, now = DeadlineTimers(), asyncio.get_running_loop().time()
    sleepers = {wait: Sleeper() for wait in (0.03, 0.01, 0.05, 0.02)}
    for wait, sleeper in sleepers.items():
        alarms.set(sleeper, now + wait)
    for wait, sleeper in sleepers.items():
        assert await asyncio.wait_for(sleeper.rung, 5) >= now + wait


async def test_what_was_put_off_comes_later_and_what_was_put_forward_sooner() -> None:
    alarms, now = DeadlineTimers(), asyncio.get_running_loop().time()
    later, sooner, other = Sleeper(), Sleeper(), Sleeper()
    alarms.set(later, now + 0.01)
    alarms.set(later, now + 0.04)
    alarms.set(sooner, now + 600)
    alarms.set(sooner, now + 0.02)
    alarms.set(other, now + 0.03)
    assert await asyncio.wait_for(sooner.rung, 5) < now + 600
    await asyncio.wait_for(other.rung, 5)
    assert await asyncio.wait_for(later.rung, 5) >= now + 0.04


async def test_who_wants_it_no_more_is_left_alone() -> None:
    alarms, now = DeadlineTimers(), asyncio.get_running_loop().time()
    gone, last = Sleeper(), Sleeper()
    alarms.set(gone, now + 0.01)
    alarms.set(last, now + 0.02)
    gone.due = NEVER
    await asyncio.wait_for(last.rung, 5)
    assert not gone.rung.done()
    alarms.set(gone, now + 0.03)
    await asyncio.wait_for(gone.rung, 5)


async def test_one_who_stops_waiting_takes_no_other_with_it() -> None:
    signal = Broadcast()
    first, second, third = signal.next(), signal.next(), signal.next()
    first.cancel()
    signal.leave(second)
    signal.fire()
    assert not second.done()
    assert third.done()
    assert signal.fired == 1
