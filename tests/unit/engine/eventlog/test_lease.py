"""The leases that a replica holds: until when each is surely held, who is notified, and when its run is cancelled."""

import asyncio
import time
from datetime import timedelta

import pytest

from tests.builders import a_session_key
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.lease import HeldLease, HeldLeases, LeaseLost

KEY: SessionKey = a_session_key()
DURATION = timedelta(seconds=12)


def a_lease(*, age: float = 0.0) -> HeldLease:
    return HeldLease(
        key=KEY, turn_id="turn", owner="one", fence=1, duration=DURATION, renewed_at=time.monotonic() - age
    )


@pytest.mark.parametrize(("age", "due", "held"), [(0, False, True), (4, True, True), (9, True, False)])
def test_a_lease_is_renewed_after_a_quarter_and_surely_held_for_two_thirds(age: float, due: bool, held: bool) -> None:
    lease = a_lease(age=age)
    assert (lease.renewal_due, lease.surely_held) == (due, held)
    if held:
        lease.check()
    else:
        with pytest.raises(LeaseLost):
            lease.check()


def test_an_earlier_renewal_makes_a_lease_no_older() -> None:
    lease = a_lease()
    before = lease.renewed_at
    lease.renewed(before - 5)
    assert lease.renewed_at == before


def test_a_replica_holds_only_leases_that_are_surely_held() -> None:
    leases = HeldLeases()
    assert not leases.holds(KEY)
    leases.add(a_lease())
    assert leases.holds(KEY)
    leases.add(a_lease(age=9))
    assert not leases.holds(KEY)


def test_removing_an_earlier_lease_leaves_the_newer_one() -> None:
    leases, earlier, newer = HeldLeases(), a_lease(), a_lease()
    leases.add(earlier)
    leases.add(newer)
    leases.remove(earlier)
    assert list(leases) == [newer]
    leases.remove(newer)
    assert len(leases) == 0


def test_only_the_sessions_own_run_is_notified() -> None:
    leases, lease = HeldLeases(), a_lease()
    leases.add(lease)
    leases.notify(a_session_key())
    assert not lease.notified.is_set()
    leases.notify(KEY)
    assert lease.notified.is_set()


async def run_until_cancelled() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("writes", [0, 1])
async def test_a_lost_leases_run_is_cancelled_unless_a_commit_is_under_way(writes: int) -> None:
    leases, lease = HeldLeases(), a_lease()
    leases.add(lease)
    lease.run = run = asyncio.create_task(run_until_cancelled())
    lease.writes = writes
    leases.lose(lease)
    assert lease.lost is (writes == 0)
    assert run.cancelling() == (writes == 0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
