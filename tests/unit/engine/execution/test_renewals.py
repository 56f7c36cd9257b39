"""How a worker renews its leases: all at once, and each alone if that fails."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from tests.processes import until
from tests.unit.engine.execution.one_replica import Replica
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.lease import HeldLease
from turnkeeper.errors import ServiceUnavailable

LEASE = timedelta(seconds=0.8)


class Renewals:
    """Takes the place of the store's renewals, and records them."""

    def __init__(self, replica: Replica, patch: pytest.MonkeyPatch) -> None:
        self._renew, self._renew_all = replica.store.renew, replica.store.renew_all
        self.fails: set[SessionKey] = set()
        """The sessions of which nothing is known while all are renewed at once."""
        self.is_down = False
        """Nothing is known of any session while all are renewed at once."""
        self.together: list[set[SessionKey]] = []
        self.alone: list[SessionKey] = []
        patch.setattr(replica.store, "renew", self.renew)
        patch.setattr(replica.store, "renew_all", self.renew_all)

    async def renew_all(self, leases: Mapping[SessionKey, int], **given: Any) -> Mapping[SessionKey, bool]:
        self.together.append(set(leases))
        if self.is_down:
            raise ServiceUnavailable
        return await self._renew_all({key: leases[key] for key in set(leases) - self.fails}, **given)

    async def renew(self, key: SessionKey, **given: Any) -> bool:
        self.alone.append(key)
        return await self._renew(key, **given)


async def running(replica: Replica, *, count: int) -> list[HeldLease]:
    """Returns the leases of turns whose model answers nothing."""
    replica.model.goes_on.clear()
    for _ in range(count):
        await replica.accepted()
    await until(lambda: replica.model.calls == count)
    return list(replica.held_leases)


@pytest.mark.parametrize("failing", ["none", "one", "all"])
async def test_leases_are_renewed_together_and_alone_if_that_fails(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    replica = Replica(lease=LEASE)
    renewals = Renewals(replica, monkeypatch)
    async with replica.running():
        leases = await running(replica, count=3)
        keys = {lease.key for lease in leases}
        renewals.fails, renewals.is_down = {leases[0].key} if failing == "one" else set(), failing == "all"
        renewals.together.clear()
        for lease in leases:
            lease.renewed_at -= 5
        await until(lambda: all(lease.age < 1 for lease in leases))
        assert renewals.together[0] == keys
        assert set(renewals.alone) == {"none": set(), "one": {leases[0].key}, "all": keys}[failing]


async def test_a_run_whose_lease_is_lost_is_cancelled() -> None:
    replica = Replica(lease=LEASE)
    async with replica.running():
        kept, lost = await running(replica, count=2)
        replica.database.sessions[lost.key].owner = "another"
        await until(lambda: len(replica.held_leases) == 1)
        assert list(replica.held_leases) == [kept]
        assert replica.model.cancels == 1
