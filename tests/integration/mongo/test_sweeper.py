"""The sweeper on a real database: an approval that it cannot read or expire does not keep it from the rest."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import a_turn, an_approval, an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of, until
from tests.integration.mongo.conftest import Client, FailPoint
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.replica.schedule import JitteredInterval
from turnkeeper.engine.replica.sweeper import Sweeper
from turnkeeper.store.changeset import ApprovalChange
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry.metrics import Metrics


async def _lapsed(store: MongoStore, *, ago: int) -> tuple[SessionKey, Approval]:
    """Stores a pending approval, in a session of its own, that expired so many seconds ago."""
    key = await begin(store)
    expired = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=ago)
    approval = an_approval(key, expire_time=expired)
    new: dict[str, Any] = {"new_turns": (a_turn(key, id=approval.turn_id),), "new_approvals": (approval,)}
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), **new)))
    return key, approval


def _sweeper(store: MongoStore, broken: str = "") -> Sweeper:
    """Expires what it is given, except the approval that is broken."""

    async def expire(approval: Approval) -> None:
        if approval.id == broken:
            raise LookupError("a defect")
        key = approval.session_key
        change = ApprovalChange(approval=replace(approval, state=ApprovalState.EXPIRED), lapsed=True)
        await committed(store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(change,))))

    return Sweeper(
        store,
        metrics=Metrics(NoOpMeterProvider()),
        expire=expire,
        notify_worker=lambda: None,
        interval=JitteredInterval(0.1, lambda: 0.0),
        lease=timedelta(seconds=1),
    )


@pytest.mark.parametrize(
    "spoiled",
    [{"$unset": {"tool_class": ""}}, {"$set": {"kind": "OF_A_LATER_VERSION"}}],
    ids=["missing", "unknown"],
)
async def test_an_approval_that_cannot_be_read_is_passed_over(
    store: MongoStore, client: Client, database_name: str, spoiled: dict[str, dict[str, str]]
) -> None:
    _, unreadable = await _lapsed(store, ago=20)
    _, other = await _lapsed(store, ago=10)
    approvals = client[database_name]["approvals"]
    await approvals.update_one({"_id.id": unreadable.id}, spoiled)
    await _sweeper(store).sweep()
    states = {document["_id"]["id"]: document["state"] async for document in approvals.find({})}
    assert states == {unreadable.id: "PENDING", other.id: "EXPIRED"}


async def test_an_approval_that_cannot_be_expired_keeps_no_other_waiting(store: MongoStore) -> None:
    _, broken = await _lapsed(store, ago=20)
    await _lapsed(store, ago=10)
    await _sweeper(store, broken.id).sweep()
    assert [lapsed.id for lapsed in await store.lapsed_approvals(limit=9)] == [broken.id]


async def test_after_a_failed_call_it_waits_one_lease(
    store: MongoStore, failing: FailPoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Owners renew first: they could not while the database was unavailable, though they are alive."""
    key, _ = await _lapsed(store, ago=10)
    async with asyncio.TaskGroup() as group:
        async with failing(["find"], errorCode=13):
            sweeping = group.create_task(_sweeper(store).run())

            async def failed() -> bool:
                return "not swept: the database is unavailable" in caplog.text

            await until(failed)
            failed_at = time.monotonic()

        async def expired() -> bool:
            return not await store.lapsed_approvals(limit=1)

        await until(expired)
        sweeping.cancel()
    assert time.monotonic() - failed_at >= 0.95, "a lease is one second here"
    assert (await head_of(store, key)).last_seq == 3
