"""The sealer: every new record gets a seal, in order of time, in one chain that can be checked."""

import asyncio
from datetime import timedelta
from random import Random

from tests.builders import NOON
from tests.contracts.stores import TextCodec
from tests.contracts.test_store_audit import a_record
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.audit.verification import Verification, verify
from turnkeeper.engine.replica import sealer
from turnkeeper.engine.replica.sealer import Sealer


def a_store(database: MemoryDatabase) -> MemoryStore:
    return MemoryStore(database, codec=TextCodec(), enter=lambda _: asyncio.sleep(0), random=Random(1))


def a_sealer(store: MemoryStore) -> Sealer:
    return Sealer(store, sign=None, now=lambda: NOON, jitter=lambda: 0.5)


async def test_each_tenant_has_a_chain_of_its_own() -> None:
    store = a_store(MemoryDatabase(now=lambda: NOON))
    await store.record(a_record("acme"), a_record("other"), a_record(""))
    await a_sealer(store).seal()
    for tenant in ("acme", "other", ""):
        result = await verify(store, Verification(tenant))
        assert (result.seals, result.sealed, result.unsealed) == (1, 1, 0)


async def test_more_records_than_a_seal_takes_get_several_at_once() -> None:
    store = a_store(MemoryDatabase(now=lambda: NOON))
    await store.record(*(a_record() for _ in range(2 * sealer.MOST_RECORDS + 1)))
    await a_sealer(store).seal()
    result = await verify(store, Verification("acme"))
    assert (result.seals, result.sealed, result.unsealed) == (3, 2 * sealer.MOST_RECORDS + 1, 0)


async def test_nothing_new_is_no_seal() -> None:
    store = a_store(MemoryDatabase(now=lambda: NOON))
    await store.record(a_record())
    for _ in range(3):
        await a_sealer(store).seal()
    assert (await verify(store, Verification("acme"))).seals == 1


async def test_replicas_that_seal_at_once_leave_one_chain() -> None:
    database = MemoryDatabase(now=lambda: NOON)
    stores = [a_store(database) for _ in range(3)]
    for second in range(5):
        await stores[0].record(*(a_record(at=NOON + timedelta(seconds=second)) for _ in range(4)))
        await asyncio.gather(*(a_sealer(store).seal() for store in stores))
    result = await verify(stores[0], Verification("acme"))
    assert (result.sealed, result.unsealed) == (20, 0)


def test_a_record_has_a_seal_within_five_seconds_of_work() -> None:
    """The longest pause, and the lease of a replica that died in the middle of a seal."""
    assert sealer.INTERVAL * 1.25 < 5
    assert timedelta(seconds=5) >= sealer.LEASE
