"""The expirer on a real database: what it cannot read or expire keeps nothing else waiting, and replicas share."""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from tests.builders import a_turn, an_approval, an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of, lapsed_approvals
from tests.expiring import expirer_on, lapsed_turn
from tests.integration.mongo.commands import Recorder, name_of
from tests.integration.mongo.conftest import Client, NewStore
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.replica import expirer
from turnkeeper.engine.replica.expirer import Expirer
from turnkeeper.engine.replica.schedule import JitteredInterval
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import ApprovalChange, Snapshot
from turnkeeper.store.mongo import shares, sweeps
from turnkeeper.store.mongo.store import MongoStore

Expire = Callable[[Approval], Awaitable[None]]


async def _lapsed(store: MongoStore, *, ago: int) -> tuple[SessionKey, Approval]:
    """Stores a pending approval, in a session of its own, that expired so many seconds ago."""
    key = await begin(store)
    expired = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=ago)
    approval = an_approval(key, expire_time=expired)
    new: dict[str, Any] = {"new_turns": (a_turn(key, id=approval.turn_id),), "new_approvals": (approval,)}
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), **new)))
    return key, approval


def _expiring(store: MongoStore) -> Expire:
    """Returns a function that stores an approval as EXPIRED."""

    async def expire(approval: Approval) -> None:
        key = approval.session_key
        change = ApprovalChange(approval=replace(approval, state=ApprovalState.EXPIRED), lapsed=True)
        await committed(store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(change,))))

    return expire


def _expirer(store: MongoStore, expire: Expire | None = None) -> Expirer:
    chosen = expire or _expiring(store)

    async def expire_one(approval: Approval, snapshot: Snapshot | None, *, wake: timedelta) -> None:
        await chosen(approval)

    async def announce(approval: Approval, snapshot: Snapshot | None) -> None:
        raise AssertionError(f"{approval.id} has no warning")

    return Expirer(store, expire=expire_one, announce=announce, interval=JitteredInterval(0.1, lambda: 0.0))


@pytest.mark.parametrize(
    "spoiled",
    [
        {"$unset": {"tool_class": ""}},
        {"$set": {"kind": "OF_A_LATER_VERSION", "schema": 2}},
        {"$set": {"create_time": {"of": "a later form"}, "time_left": {"of": "a later form"}}},
    ],
    ids=["missing", "unknown value", "another form"],
)
async def test_i17_a_hundred_approvals_of_a_newer_version_keep_no_other_waiting(
    store: MongoStore, client: Client, database_name: str, spoiled: dict[str, dict[str, str]]
) -> None:
    """They lapsed first, and fill the first pages."""
    _, unreadable = await _lapsed(store, ago=20)
    _, other = await _lapsed(store, ago=10)
    approvals = client[database_name]["approvals"]
    await approvals.update_one({"_id.id": unreadable.id}, spoiled)
    copied = await approvals.find_one({"_id.id": unreadable.id})
    assert copied is not None
    copies = [{**copied, "_id": {**copied["_id"], "id": f"copy-{n}"}, "tool_call_id": f"c-{n}"} for n in range(99)]
    await approvals.insert_many(copies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "PAGE", 7)
        await _expirer(store).expire_lapsed()
    assert [document["_id"]["id"] async for document in approvals.find({"state": "EXPIRED"})] == [other.id]


@pytest.mark.parametrize("error", [LookupError("a defect"), ServiceUnavailable()], ids=["defect", "unavailable"])
async def test_an_approval_that_cannot_be_expired_keeps_no_other_waiting(
    store: MongoStore, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    _, broken = await _lapsed(store, ago=20)
    await _lapsed(store, ago=10)
    expire = _expiring(store)

    async def fails(approval: Approval) -> None:
        if approval.id == broken.id:
            raise error
        await expire(approval)

    with caplog.at_level(logging.WARNING):
        await _expirer(store, fails).expire_lapsed()
    assert [lapsed.id for lapsed in await lapsed_approvals(store)] == [broken.id]
    assert "approvals of 1 turns have lapsed: not expired" in caplog.text


async def test_what_lapses_together_costs_few_commands(recorder: Recorder, store: MongoStore) -> None:
    """Each group of turns takes a query of each collection, and the changesets of a group share transactions."""
    turns = [await lapsed_turn(store, timedelta(seconds=1)) for _ in range(40)]
    with pytest.MonkeyPatch.context() as patch, recorder.recording() as commands:
        patch.setattr(expirer, "TURNS_AT_ONCE", 20)
        await expirer_on(store).expire_lapsed()
    sent = Counter(name_of(command) for command in commands)
    assert sent["aggregate"] <= 3  # the heads of each group, and the count of what has lapsed
    assert sent["find"] <= 11
    assert sent["commitTransaction"] <= 6
    for key, (approval,) in turns:
        stored = await store.approval(key.tenant, approval.id)
        assert stored is not None
        assert stored.state is ApprovalState.EXPIRED


async def test_replicas_share_what_lapsed_at_once(new_store: NewStore) -> None:
    """Three replicas expire at the same time: each has its share, and nothing is tried twice."""
    replicas = [await new_store(replica=f"replica-{number}") for number in range(3)]
    for replica in replicas:
        await replica.write_heartbeat(silent_after=timedelta(minutes=1))
    lapsed = [await _lapsed(replicas[0], ago=0) for _ in range(60)]
    tried: dict[str, list[str]] = {}

    async def expire(store: MongoStore, name: str) -> None:
        expiring = _expiring(store)

        async def counted(approval: Approval) -> None:
            tried.setdefault(approval.id, []).append(name)
            await expiring(approval)

        await _expirer(store, counted).expire_lapsed()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "PAGE", 4)
        patch.setattr(shares, "SHARE_KEPT", timedelta(hours=1))
        await asyncio.gather(*(expire(store, str(number)) for number, store in enumerate(replicas)))
    assert {approval.id for _, approval in lapsed} == set(tried)
    assert Counter(names[0] for names in tried.values()) == {"0": 20, "1": 20, "2": 20}
    assert all(len(names) == 1 for names in tried.values())
    assert await lapsed_approvals(replicas[0]) == []


async def test_what_a_dead_replica_leaves_is_expired_by_the_others(new_store: NewStore) -> None:
    """Its heartbeat is still fresh. The others help each from a place of its own."""
    first, second, _dead = replicas = [await new_store(replica=f"replica-{number}") for number in range(3)]
    for replica in replicas:
        await replica.write_heartbeat(silent_after=timedelta(minutes=1))
    for _ in range(30):
        await _lapsed(first, ago=10)

    async def expire(store: MongoStore, approval: Approval) -> None:
        while (await store.approval(approval.tenant, approval.id) or approval).state is ApprovalState.PENDING:
            with contextlib.suppress(AssertionError):  # both write to one head: then it is decided again
                await _expiring(store)(approval)

    while await lapsed_approvals(first):  # a busy database may refuse one of them, which the next call tries again
        await asyncio.gather(*(_expirer(store, partial(expire, store)).expire_lapsed() for store in (first, second)))


async def test_what_lapses_together_expires_in_one_pass(store: MongoStore) -> None:
    for _ in range(60):
        await _lapsed(store, ago=random.randint(1, 5))
    await _expirer(store).expire_lapsed()
    assert await lapsed_approvals(store) == []
