"""What an owner reads of its session: it stops only if another owner has the session for certain."""

import pytest

from tests.contracts.stores import LONG, a_changeset, begin, committed, head_of, make_due
from tests.unit.engine.lagging_store import LaggingStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.lease import LeaseLost
from turnkeeper.engine.eventlog.owner_reads import read_as_owner
from turnkeeper.store.changeset import Claim, HeadChange, LeaseChange, Snapshot


async def _claimed(store: LaggingStore, key: SessionKey) -> Claim:
    await make_due(store, key)
    claim = await store.claim("one", lease=LONG)
    assert claim is not None
    return claim


async def _read(store: LaggingStore, claim: Claim) -> Snapshot:
    return await read_as_owner(
        store, SessionKey(claim.tenant, claim.session_id), turn_id=claim.turn_id, fence=claim.fence, owner="one"
    )


async def test_an_owner_goes_on_if_a_reading_lags_behind_its_claim() -> None:
    store = LaggingStore()
    key = await begin(store)
    await store.lag(key)
    claim = await _claimed(store, key)
    assert (await _read(store, claim)).head.fence == claim.fence


async def test_an_owner_goes_on_if_a_reading_lags_behind_its_session() -> None:
    store = LaggingStore()
    claim = await _claimed(store, await begin(store))
    await store.lag(SessionKey("default", "absent"))
    assert (await _read(store, claim)).head.fence == claim.fence


async def test_a_later_fence_needs_no_further_reading() -> None:
    store = LaggingStore()
    key = await begin(store)
    claim = await _claimed(store, key)
    await store.give_back(key, owner="one", fence=claim.fence)
    assert await store.claim("two", lease=LONG) is not None
    with pytest.raises(LeaseLost):
        await _read(store, claim)
    assert not store.confirmed


async def test_a_lease_that_was_released_is_lost() -> None:
    store = LaggingStore()
    key = await begin(store)
    claim = await _claimed(store, key)
    released = HeadChange(lease=LeaseChange.RELEASE)
    await committed(store.commit(a_changeset(await head_of(store, key), fence=claim.fence, head=released)))
    with pytest.raises(LeaseLost):
        await _read(store, claim)


async def test_a_session_that_is_gone_for_certain_is_lost() -> None:
    store = LaggingStore()
    claim = Claim(tenant="default", session_id="absent", turn_id="turn", fence=1, lapses=0, late_by=LONG)
    with pytest.raises(LeaseLost):
        await _read(store, claim)
    assert store.confirmed == 1


async def test_a_lease_is_lost_if_another_owner_has_its_fence() -> None:
    """The database was restored to before the claim, and the turn claimed again."""
    store = LaggingStore()
    key = await begin(store)
    claim = await _claimed(store, key)
    with pytest.raises(LeaseLost):
        await read_as_owner(store, key, turn_id=claim.turn_id, fence=claim.fence, owner="two")
