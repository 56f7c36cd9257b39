"""Many leases are renewed by one command, and each is known for certain to be held or lost."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from tests.contracts.stores import LONG, SHORT, begin, head_of, lapse, run_turn
from tests.integration.mongo.commands import Recorder, name_of
from tests.integration.mongo.conftest import Client, FailPoint
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo import renewals
from turnkeeper.store.mongo.renewer import MongoRenewer
from turnkeeper.store.mongo.store import MongoStore

MANY = 7


async def lapsed(store: MongoStore, count: int) -> dict[SessionKey, int]:
    """Returns sessions with the fences of their owner `one`, whose leases have lapsed and were not requeued."""
    leases: dict[SessionKey, int] = {}
    for _ in range(count):
        key = await begin(store)
        _, owned = await run_turn(store, key, lease=SHORT)
        leases[key] = owned.fence
    for key in leases:
        await lapse(store, key)
    return leases


@asynccontextmanager
async def locked(client: Client, database: str, key: SessionKey) -> AsyncIterator[None]:
    """Keeps a head locked, as the transaction of a killed server does."""
    async with client.start_session() as session, await session.start_transaction():
        await client[database].heads.update_one(
            {"session_id": key.session_id}, {"$set": {"locked": True}}, session=session
        )
        yield
        await session.abort_transaction()


async def test_many_leases_are_renewed_by_one_command(store: MongoStore, recorder: Recorder) -> None:
    leases = await lapsed(store, MANY)
    with recorder.recording() as commands:
        assert await store.renew_all(leases, owner="one", lease=LONG) == dict.fromkeys(leases, True)
    (command,) = [command for command in commands if name_of(command) == "update"]
    assert len(command["updates"]) == MANY
    assert command["writeConcern"] == {"w": "majority", "j": True}
    for key in leases:
        assert (await head_of(store, key)).owned


@pytest.fixture
def renewer(mongo_uri: str, database_name: str) -> MongoRenewer:
    return MongoRenewer(mongo_uri, database=database_name, operation=timedelta(seconds=5))


@pytest.mark.parametrize("by_thread", [False, True])
@pytest.mark.parametrize("lost", [(0,), (3, 4), range(MANY)])
async def test_each_lease_that_is_lost_is_named(
    store: MongoStore, renewer: MongoRenewer, lost: range | tuple[int, ...], by_thread: bool
) -> None:
    leases = await lapsed(store, MANY)
    keys = list(leases)
    for number in lost:
        await run_turn(store, keys[number], owner="two")

    async def renewed() -> Mapping[SessionKey, bool]:
        if by_thread:
            return await asyncio.to_thread(renewer.renew_all, leases, owner="one", lease=LONG)
        return await store.renew_all(leases, owner="one", lease=LONG)

    assert await renewed() == {key: number not in lost for number, key in enumerate(keys)}
    renewer.close()
    for number, key in enumerate(keys):
        head = await head_of(store, key)
        assert (head.owner, head.owned) == ("two" if number in lost else "one", True)


async def test_a_locked_head_holds_up_its_own_batch_alone(
    store: MongoStore, client: Client, database_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewals, "BATCH", 2)
    monkeypatch.setattr(renewals, "LEAST_LIMIT_S", 0.2)
    leases = await lapsed(store, MANY)
    first = next(iter(leases))
    async with locked(client, database_name, first):
        known = await store.renew_all(leases, owner="one", lease=SHORT)
        assert first not in known
        assert len(known) >= MANY - 2
        assert all(known.values())
        with pytest.raises(ServiceUnavailable):
            await store.renew_all({first: leases[first]}, owner="one", lease=SHORT)
    assert await store.renew_all(leases, owner="one", lease=LONG) == dict.fromkeys(leases, True)


@pytest.mark.parametrize("by_thread", [False, True])
async def test_a_slow_database_ends_no_renewal_that_is_in_time(
    store: MongoStore, renewer: MongoRenewer, failing: FailPoint, monkeypatch: pytest.MonkeyPatch, by_thread: bool
) -> None:
    monkeypatch.setattr(renewals, "LEAST_LIMIT_S", 0.1)
    leases, lease = await lapsed(store, 1), timedelta(seconds=4)
    await asyncio.to_thread(renewer.renew_all, leases, owner="one", lease=lease)  # it is connected from now on
    async with failing(["update"], blockConnection=True, blockTimeMS=300):
        if by_thread:
            known = await asyncio.to_thread(renewer.renew_all, leases, owner="one", lease=lease)
        else:
            known = await store.renew_all(leases, owner="one", lease=lease)
    assert known == dict.fromkeys(leases, True)
    renewer.close()


@pytest.mark.parametrize(("lease", "limit"), [(1.0, 1.0), (2.0, 1.0), (7.0, 2.625), (30.0, 11.25)])
def test_a_renewal_has_three_eighths_of_the_lease_and_a_second_at_least(lease: float, limit: float) -> None:
    assert renewals.limit_s(timedelta(seconds=lease)) == limit


async def test_what_is_not_known_of_any_lease_is_unavailable(
    store: MongoStore, renewer: MongoRenewer, failing: FailPoint
) -> None:
    leases = await lapsed(store, 1)
    async with failing(["update"], errorCode=13):
        with pytest.raises(ServiceUnavailable):
            await store.renew_all(leases, owner="one", lease=LONG)
        with pytest.raises(ServiceUnavailable):
            await asyncio.to_thread(renewer.renew_all, leases, owner="one", lease=LONG)
    renewer.close()
