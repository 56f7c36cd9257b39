"""The audit trail: records that are stored with their effect or by themselves, seals in one chain, one sealer."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import NOON, a_session_key, an_event, new_id
from tests.contracts.conftest import NewStore
from tests.contracts.implementations import having
from tests.contracts.stores import LONG, SHORT, a_changeset, begin, committed, head_of, purge, until
from turnkeeper.domain.audit import AuditRecord, ChainEnd, Origin, Seal, StoredRecord, seal_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.audit import Unsealed
from turnkeeper.store.changeset import Conflict, HeadChange
from turnkeeper.store.contract import Store
from turnkeeper.store.maintenance import Retention
from turnkeeper.store.mongo.store import MongoStore

TENANT = "acme"


def a_record(tenant: str = TENANT, **given: Any) -> AuditRecord:
    record = AuditRecord(
        tenant=tenant,
        id=new_id("record"),
        at=NOON,
        action="freeze_admission",
        target="acme",
        outcome="OK",
        origin=Origin(principal="olga", credential_id="cn=olga", on_behalf_of="", request_id="r-1"),
        details={"why": "load"},
    )
    return replace(record, **given)


def of_event(key: SessionKey, sequence: int) -> AuditRecord:
    return a_record(key.tenant, id=f"{key.session_id}/{sequence}/c", session_id=key.session_id, sequence=sequence)


def stored(record: AuditRecord, *, seal: int = 0) -> StoredRecord:
    return StoredRecord(record.id, record.text, seal)


async def unsealed(store: Store, tenant: str = TENANT) -> Sequence[StoredRecord]:
    return [record async for record in store.records(tenant, seal=0)]


async def seals(store: Store, tenant: str = TENANT) -> list[Seal]:
    return [seal async for seal in store.seals(tenant)]


async def seal_next(store: Store, tenant: str = TENANT, *, limit: int = 10) -> Seal:
    unsealed = await store.begin_seal(tenant, limit=limit, lease=LONG)
    assert unsealed is not None
    seal = seal_of(tenant, list(unsealed.records), after=unsealed.end, at=NOON)
    assert await store.put_seal(seal)
    return seal


async def test_a_changeset_stores_its_records_with_its_effect(store: Store) -> None:
    key = await begin(store)
    record = of_event(key, 2)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), audit=(record,))))
    assert await unsealed(store, key.tenant) == [stored(record)]
    assert await store.records_of_session(key) == [stored(record)]
    assert await store.records_of_session(replace_tenant(key)) == []


async def test_a_changeset_that_is_not_stored_leaves_no_record(store: Store) -> None:
    key = await begin(store)
    read = await head_of(store, key)
    await committed(store.commit(a_changeset(read, an_event())))
    assert isinstance(await store.commit(a_changeset(read, an_event(), audit=(of_event(key, 2),))), Conflict)
    assert await unsealed(store, key.tenant) == []


async def test_a_repeated_changeset_has_one_record(store: Store) -> None:
    key = await begin(store)
    changeset = a_changeset(await head_of(store, key), an_event(), audit=(of_event(key, 2),))
    first = await committed(store.commit(changeset))
    assert await store.commit(changeset) == first
    assert len(await unsealed(store, key.tenant)) == 1


async def test_a_record_of_another_session_is_a_defect(store: Store) -> None:
    key = await begin(store)
    changeset = a_changeset(await head_of(store, key), an_event(), audit=(of_event(a_session_key(), 2),))
    with pytest.raises(ValueError, match="another session"):
        await store.commit(changeset)
    assert await unsealed(store, key.tenant) == []


async def test_a_record_without_a_changeset_is_stored_once(store: Store) -> None:
    record = a_record()
    await store.record(record, a_record("other"))
    await store.record(replace(record, outcome="CHANGED"))
    assert await unsealed(store) == [stored(record)]
    assert sorted(await store.audited_tenants()) == sorted(await store.unsealed_tenants()) == ["acme", "other"]


async def test_seals_are_a_chain_in_which_each_record_has_one_place(store: Store) -> None:
    assert await store.begin_seal(TENANT, limit=10, lease=SHORT) is None
    records = [a_record(at=NOON + timedelta(seconds=second)) for second in (3, 1, 2)]
    await store.record(*records)
    first = await seal_next(store, limit=2)
    assert [leaf.id for leaf in first.leaves] == [records[1].id, records[2].id]
    second = await seal_next(store)
    assert await seals(store) == [first, second]
    assert (first.number, second.number) == (1, 2)
    assert f'"previous":"{first.hash}"' in second.text
    assert await store.chain_end(TENANT) == ChainEnd(2, second.hash)
    assert [seal async for seal in store.seals(TENANT, numbers=[2])] == [second]
    assert [record async for record in store.records(TENANT, seal=2)] == [stored(records[0], seal=2)]
    assert await unsealed(store) == []
    assert await store.unsealed_tenants() == []
    assert [record async for record in store.unlisted_records(TENANT, beyond=2)] == []
    assert [record.id async for record in store.unlisted_records(TENANT, beyond=1)] == [records[0].id]


async def test_one_replica_at_a_time_seals_a_tenant(new_store: NewStore) -> None:
    one, two = await new_store("one"), await new_store("two")
    await one.record(a_record(), a_record("other"))
    taken = await one.begin_seal(TENANT, limit=10, lease=LONG)
    assert taken is not None
    assert await two.begin_seal(TENANT, limit=10, lease=LONG) is None
    assert await two.begin_seal("other", limit=10, lease=LONG) is not None
    assert await one.put_seal(seal_of(TENANT, list(taken.records), after=taken.end, at=NOON))
    await one.record(a_record())
    assert (await seal_next(two)).number == 2  # the lease was released


async def test_a_sealer_that_was_too_slow_stores_nothing(new_store: NewStore) -> None:
    one, two = await new_store("one"), await new_store("two")
    await one.record(a_record())
    taken = await one.begin_seal(TENANT, limit=10, lease=SHORT)
    assert taken is not None

    async def sealed_by_two() -> bool:
        unsealed = await two.begin_seal(TENANT, limit=10, lease=LONG)
        return unsealed is not None and await two.put_seal(
            seal_of(TENANT, list(unsealed.records), after=unsealed.end, at=NOON)
        )

    await until(sealed_by_two)
    late = seal_of(TENANT, list(taken.records), after=taken.end, at=NOON + timedelta(seconds=1))
    assert not await one.put_seal(late)
    assert len(await seals(two)) == 1


async def test_a_sealer_whose_lease_another_one_has_stores_nothing(new_store: NewStore) -> None:
    one, two = await new_store("one"), await new_store("two")
    await one.record(a_record())
    slow = await one.begin_seal(TENANT, limit=10, lease=SHORT)
    assert slow is not None
    taken: list[Unsealed] = []

    async def taken_by_two() -> bool:
        unsealed = await two.begin_seal(TENANT, limit=10, lease=LONG)
        taken.extend([unsealed] if unsealed is not None else [])
        return bool(taken)

    await until(taken_by_two)
    assert not await one.put_seal(seal_of(TENANT, list(slow.records), after=slow.end, at=NOON))
    assert await seals(two) == []
    assert await two.put_seal(seal_of(TENANT, list(taken[0].records), after=taken[0].end, at=NOON))


async def test_many_sealers_leave_no_gap_and_no_record_twice(new_store: NewStore) -> None:
    replicas = [await new_store(name) for name in ("one", "two", "three")]
    await replicas[0].record(*(a_record() for _ in range(30)))

    async def work(replica: Store) -> None:
        while TENANT in await replica.unsealed_tenants():
            unsealed = await replica.begin_seal(TENANT, limit=3, lease=LONG)
            if unsealed is not None:
                await replica.put_seal(seal_of(TENANT, list(unsealed.records), after=unsealed.end, at=NOON))
            await asyncio.sleep(0)

    await asyncio.gather(*map(work, replicas))
    chain = await seals(replicas[0])
    assert [seal.number for seal in chain] == list(range(1, len(chain) + 1))
    ids = [leaf.id for seal in chain for leaf in seal.leaves]
    assert len(ids) == len(set(ids)) == 30


@having(Retention)
async def test_a_purge_leaves_the_records(store: MongoStore) -> None:
    key = await begin(store)
    record = of_event(key, 2)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), audit=(record,))))
    deleted = a_changeset(await head_of(store, key), an_event(), head=HeadChange(deleted=True))
    await committed(store.commit(deleted))
    assert await purge(store) == 1
    assert await store.records_of_session(key) == [stored(record)]


def replace_tenant(key: SessionKey) -> SessionKey:
    return SessionKey("foreign", key.session_id)
