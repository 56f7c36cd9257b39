"""Claims whose answer does not come in time: such a claim is looked up, and is never taken for refused."""

import asyncio
from functools import partial
from typing import Any

import pytest
from pymongo.errors import PyMongoError

from tests.contracts.stores import LONG, begin, head_of, make_due, run_turn, until
from tests.integration.mongo.conftest import Client, FailPoint
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo.store import MongoStore

SLOW_MAJORITY = {"code": 50, "codeName": "MaxTimeMSExpired", "errmsg": "no majority in time"}
"""The write is stored, and the time is over before a majority has it."""


async def two_due(store: MongoStore) -> list[SessionKey]:
    """Returns two sessions whose turns are due."""
    keys = [await begin(store), await begin(store)]
    for key in keys:
        await make_due(store, key)
    return keys


async def owned(store: MongoStore, keys: list[SessionKey]) -> list[str]:
    """Returns the sessions that have an owner."""
    return [key.session_id for key in keys if (await head_of(store, key)).owner]


async def test_a_claim_that_is_stored_late_is_found_and_no_other_turn_is_claimed(
    store: MongoStore, failing: FailPoint
) -> None:
    keys = await two_due(store)
    async with failing(["update"], times=1, writeConcernError=SLOW_MAJORITY):
        claim = await store.claim("one", lease=LONG)
    assert claim is not None
    assert await owned(store, keys) == [claim.session_id]
    assert await store.renew(claim.session_key, owner="one", fence=claim.fence, lease=LONG)


async def test_a_claim_that_stays_unknown_is_given_back(store: MongoStore, failing: FailPoint) -> None:
    keys = await two_due(store)
    async with failing(["update"], writeConcernError=SLOW_MAJORITY):
        with pytest.raises(ServiceUnavailable):
            await store.claim("one", lease=LONG)

    async def is_given_back() -> bool:
        return not await owned(store, keys)

    await until(is_given_back)
    claims = [await store.claim("two", lease=LONG) for _ in keys]
    assert sorted(claim.fence for claim in claims if claim) == [1, 2]
    assert [claim.lapses for claim in claims if claim] == [0, 0]


async def test_a_claim_that_never_reached_the_database_is_not_stored_later(
    store: MongoStore, failing: FailPoint, client: Client, database_name: str
) -> None:
    """The first command is held up for longer than its caller waits."""

    async def is_held_up() -> bool:
        where = {"command.update": "heads", "command.$db": database_name}
        return bool((await client.admin.command({"currentOp": 1, **where}))["inprog"])

    async def goes_on() -> bool:
        return not await is_held_up()

    key = await begin(store)
    await make_due(store, key)
    async with failing(["update"], times=1, blockConnection=True, blockTimeMS=1_500):
        claim = await store.claim("one", lease=LONG)
        assert claim is not None
        assert await is_held_up()
        await until(goes_on)
    assert claim.fence == (await head_of(store, key)).fence == 1


async def test_a_locked_head_is_passed_over(store: MongoStore, client: Client, database_name: str) -> None:
    keys = await two_due(store)
    heads = client[database_name]["heads"]
    async with client.start_session() as session, await session.start_transaction():
        await heads.update_one({"session_id": keys[0].session_id}, {"$set": {"locked": True}}, session=session)
        claim = await store.claim("one", lease=LONG)
        assert claim is not None
        assert claim.session_id == keys[1].session_id
        assert await store.claim("one", lease=LONG) is None
        await session.abort_transaction()
    claim = await store.claim("one", lease=LONG)
    assert claim is not None
    assert (claim.session_id, claim.fence) == (keys[0].session_id, 1)


async def test_a_lease_that_the_owner_took_with_a_message_is_not_taken_for_its_slow_claim(
    store: MongoStore, failing: FailPoint
) -> None:
    """Both have the same owner and the same fence."""
    key = await begin(store)
    await make_due(store, key)
    async with failing(["update"], times=1, blockConnection=True, blockTimeMS=1_500):
        claiming = asyncio.create_task(store.claim("one", lease=LONG))
        await until(partial(_commands_are_under_way, store))
        turn, _ = await run_turn(store, key, owner="one")
        assert await claiming is None
    head = await head_of(store, key)
    assert (head.owner, head.fence, head.active_turn, head.owned) == ("one", 1, turn.id, True)


async def test_a_claim_whose_caller_is_cancelled_is_given_back(store: MongoStore, failing: FailPoint) -> None:
    key = await begin(store)
    await make_due(store, key)
    async with failing(["update"], times=1, blockConnection=True, blockTimeMS=300):
        claiming = asyncio.create_task(store.claim("one", lease=LONG))
        await until(partial(_commands_are_under_way, store))
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming

    async def is_given_back() -> bool:
        head = await head_of(store, key)
        return head.fence == 1 and not head.owner

    await until(is_given_back)
    claim = await store.claim("two", lease=LONG)
    assert claim is not None
    assert (claim.fence, claim.lapses) == (2, 0)


async def _commands_are_under_way(store: MongoStore) -> bool:
    """Returns True if the database is working on an update of the store."""
    admin: Any = store._connection.client.admin  # noqa: SLF001 - the store has no method for it
    operations: dict[str, Any] = await admin.command(
        {"currentOp": 1, "command.update": "heads", "appName": "turnkeeper"}
    )
    return bool(operations["inprog"])


async def test_a_sweep_whose_answer_does_not_come_in_time_makes_the_worker_look(
    store: MongoStore, failing: FailPoint, client: Client, database_name: str
) -> None:
    key = await begin(store)
    await make_due(store, key)
    heads = client[database_name]["heads"]
    await heads.update_one({"session_id": key.session_id}, {"$set": {"wake_at": None}})
    async with failing(["update"], times=1, writeConcernError=SLOW_MAJORITY):
        assert await store.requeue_lapsed() == 1
    assert await store.claim("one", lease=LONG) is not None


async def test_a_database_that_refuses_a_claim_leaves_nothing_behind(store: MongoStore, failing: FailPoint) -> None:
    key = await begin(store)
    await make_due(store, key)
    async with failing(["update"], errorCode=13):
        with pytest.raises(ServiceUnavailable) as refused:
            await store.claim("one", lease=LONG)
        assert isinstance(refused.value.__cause__, PyMongoError)
    claim = await store.claim("one", lease=LONG)
    assert claim is not None
    assert claim.fence == 1
