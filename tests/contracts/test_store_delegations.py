"""Delegations are stored with their records, count until their time by the store's clock, and can be taken back."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.contracts.test_store_audit import a_record, stored
from turnkeeper.domain.audit import StoredRecord
from turnkeeper.domain.delegation import Delegation
from turnkeeper.store.contract import Store

TENANT = "acme"
LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
OF_EVE = Delegation(tenant=TENANT, person="eve", delegate="sue", until=LATER, create_time=LATER - timedelta(days=2))


async def listed(store: Store, **which: Any) -> list[tuple[str, str]]:
    page = await store.delegations(TENANT, limit=100, **which)
    return [(delegation.person, delegation.delegate) for delegation in page]


async def records(store: Store) -> list[StoredRecord]:
    return sorted([record async for record in store.records(TENANT, seal=0)])


async def test_a_delegation_is_stored_with_its_record_and_found_by_both(store: Store) -> None:
    await store.put_delegation(OF_EVE, record := a_record())
    assert list(await store.delegations(TENANT, limit=9)) == [OF_EVE]
    for which in ({"delegate": "sue"}, {"concerning": "sue"}, {"concerning": "eve"}):
        assert await listed(store, **which) == [("eve", "sue")]
    for which in ({"delegate": "eve"}, {"concerning": "joe"}, {"delegate": "sue", "concerning": "joe"}):
        assert await listed(store, **which) == []
    assert await store.delegations("other", limit=9) == []
    assert await records(store) == [stored(record)]


async def test_a_second_one_to_the_same_delegate_takes_its_place(store: Store) -> None:
    await store.put_delegation(OF_EVE, first := a_record())
    longer = replace(OF_EVE, until=LATER + timedelta(days=3))
    await store.put_delegation(longer, second := a_record())
    assert list(await store.delegations(TENANT, limit=9)) == [longer]
    assert await records(store) == sorted([stored(first), stored(second)])


async def test_one_that_is_over_by_the_stores_clock_counts_no_more(store: Store) -> None:
    await store.put_delegation(replace(OF_EVE, until=datetime.now(UTC) - timedelta(seconds=1)), a_record())
    assert await listed(store) == []
    await store.put_delegation(OF_EVE, a_record())
    assert await listed(store) == [("eve", "sue")]


async def test_it_is_taken_back_once_and_recorded(store: Store) -> None:
    await store.put_delegation(OF_EVE, first := a_record())
    assert not await store.remove_delegation("other", "eve", "sue", a_record("other"))
    assert not await store.remove_delegation(TENANT, "sue", "eve", a_record())
    assert await store.remove_delegation(TENANT, "eve", "sue", last := a_record())
    assert not await store.remove_delegation(TENANT, "eve", "sue", a_record())
    assert await listed(store) == []
    assert await records(store) == sorted([stored(first), stored(last)])


async def test_pages_follow_each_other_without_a_gap(store: Store) -> None:
    pairs = [("eve", "joe"), ("eve", "sue"), ("joe", "eve"), ("sue", "eve")]
    for person, delegate in reversed(pairs):
        await store.put_delegation(replace(OF_EVE, person=person, delegate=delegate), a_record())
    after: tuple[str, str] | None = None
    listed_pairs: list[tuple[str, str]] = []
    while page := await store.delegations(TENANT, limit=3, after=after):
        listed_pairs += [(delegation.person, delegation.delegate) for delegation in page]
        after = listed_pairs[-1]
    assert listed_pairs == pairs
