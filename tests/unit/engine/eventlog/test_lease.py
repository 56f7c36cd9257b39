"""The leases that a replica holds: until when each is surely held, who is notified, and when its run is cancelled."""

import asyncio
import time
from datetime import timedelta

import pytest

from tests.builders import a_session_key
from turnkeeper import lease_clock
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.lease import OWNER_PATIENCE, HeldLease, HeldLeases, LeaseLost

KEY: SessionKey = a_session_key()
DURATION = timedelta(seconds=12)


def a_lease(*, age: float = 0.0) -> HeldLease:
    return HeldLease(
        key=KEY, turn_id="turn", owner="one", fence=1, duration=DURATION, renewed_at=lease_clock.now() - age
    )


@pytest.mark.parametrize(("age", "due", "held"), [(0, False, True), (4, True, True), (9, True, False)])
def test_a_lease_is_renewed_after_a_quarter_and_surely_held_for_two_thirds(age: float, due: bool, held: bool) -> None:
    lease = a_lease(age=age)
    assert (lease.renewal_due, lease.surely_held) == (due, held)


def test_a_lease_whose_owner_commits_is_renewed_later() -> None:
    """The commit renews it: a renewal beside it would make one of them be sent again."""
    for age, due in ((4, False), (7, True)):
        lease = a_lease(age=age)
        with lease.writing():
            assert lease.renewal_due is due


def test_a_suspended_machine_ages_its_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock of Linux stands still meanwhile."""
    lease = a_lease()
    slept = 60.0
    awake = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: awake(clock) + slept * (clock == time.CLOCK_BOOTTIME))
    assert not lease.surely_held


@pytest.mark.parametrize("change", [{"lost": True}, {"cut": True}, {}])
def test_an_owner_tries_on_until_its_lease_is_lost_or_its_patience_ends(change: dict[str, bool]) -> None:
    lease, now = a_lease(age=60), lease_clock.now()
    lease.check_tries(since=now)
    for name, value in change.items():
        setattr(lease, name, value)
    with pytest.raises(LeaseLost):
        lease.check_tries(since=now if change else now - OWNER_PATIENCE)


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
