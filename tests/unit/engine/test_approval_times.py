"""The warning before an approval expires, once for all replicas, and more time to decide."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.builders import a_lone_decider
from tests.expiring import expirer_on, waiting_turn
from tests.unit.engine.test_expiring_approvals import Scene
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.approval_events import ApprovalExpired, ApprovalExpiring, ApprovalExtended
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.replica import expirer
from turnkeeper.engine.rules.approval_times import Extension
from turnkeeper.errors import ApprovalAlreadyProcessed, ApprovalHasExpired, InvalidRequest

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)


def payloads(scene: Scene, key: SessionKey, kind: type[Any]) -> list[Any]:
    """Returns the session's events of this kind."""
    events = (logged.event.payload for logged in scene.database.sessions[key].log)
    return [payload for payload in events if isinstance(payload, kind)]


def extension_to(ttl: timedelta, **decider: Any) -> Extension:
    return Extension(ttl=ttl, decider=replace(a_lone_decider(), **decider))


async def waiting(scene: Scene, *expiring: timedelta | None) -> tuple[SessionKey, list[Approval]]:
    """Stores a turn with approvals that expire in half an hour. `expiring`: when the warning of each is due, from now.

    Each could be decided for an hour.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    given = [{"expiring_time": None if due is None else now + due, "ttl": HOUR} for due in expiring]
    return await waiting_turn(scene.store, *({**fields, "expire_time": now + HOUR / 2} for fields in given))


async def test_a_warning_is_stored_once_when_it_is_due() -> None:
    scene = Scene()
    key, (due, later, none) = await waiting(scene, -SECOND, HOUR / 4, None)
    for _ in range(2):
        await expirer_on(scene.store).expire_and_warn()
    (warned,) = payloads(scene, key, ApprovalExpiring)
    assert warned == ApprovalExpiring(approval_id=due.id, tool_call_id=due.tool_call_id, expire_time=due.expire_time)
    stored = scene.database.sessions[key].approvals
    assert [stored[approval.id].is_expiring for approval in (due, later, none)] == [True, False, False]
    assert {approval.state for approval in stored.values()} == {ApprovalState.PENDING}


async def test_replicas_that_warn_together_warn_once() -> None:
    scene = Scene()
    keys = [(await waiting(scene, -SECOND, -SECOND))[0] for _ in range(3)]
    await asyncio.gather(*(expirer_on(scene.store).warn() for _ in range(3)))
    assert [len(payloads(scene, key, ApprovalExpiring)) for key in keys] == [2, 2, 2]


async def test_what_has_lapsed_expires_without_a_warning() -> None:
    scene = Scene()
    now = datetime.now(UTC).replace(microsecond=0)
    key, _ = await waiting_turn(scene.store, {"expiring_time": now - HOUR, "expire_time": now - SECOND, "ttl": HOUR})
    await expirer_on(scene.store).warn()
    assert not payloads(scene, key, ApprovalExpiring)
    await expirer_on(scene.store).expire_and_warn()
    assert len(payloads(scene, key, ApprovalExpired)) == 1
    assert not payloads(scene, key, ApprovalExpiring)


@pytest.mark.parametrize("method", ["snapshots", "commit"])
async def test_a_warning_that_fails_delays_no_other(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Neither those of other turns that are read with it, nor those that are read after it."""
    monkeypatch.setattr(expirer, "TURNS_AT_ONCE", 1)
    scene = Scene()
    keys = [(await waiting(scene, -SECOND))[0] for _ in range(3)]

    async def defect() -> None:
        raise ZeroDivisionError

    async def warned() -> int:
        await expirer_on(scene.store).warn()
        return sum(len(payloads(scene, key, ApprovalExpiring)) for key in keys)

    scene.before[method] = defect
    assert [await warned(), await warned()] == [2, 3]


async def test_an_extension_is_an_event_and_goes_on_record() -> None:
    scene = Scene()
    key, (approval,) = await waiting(scene, HOUR / 4)
    extension = extension_to(HOUR + HOUR / 2, through="portal")
    longer = await scene.approvals.extend(approval.id, extension, tenant=key.tenant)
    assert longer.expire_time == approval.expire_time + HOUR / 2
    (event,) = payloads(scene, key, ApprovalExtended)
    assert event == ApprovalExtended(
        approval_id=approval.id,
        tool_call_id=approval.tool_call_id,
        ttl=extension.ttl,
        expire_time=longer.expire_time,
        extended_by="ada",
        extended_through="portal",
    )
    assert longer.extension_sequence == len(scene.database.sessions[key].log)
    (record,) = [
        record for record in scene.database.trails[key.tenant].records.values() if record.action == "extend_approval"
    ]
    assert (record.target, record.sequence) == (approval.id, longer.extension_sequence)
    assert (record.details["extended_by"], record.details["ttl_seconds"]) == ("ada", "5400")
    assert await scene.approvals.extend(approval.id, extension, tenant=key.tenant) == longer
    assert len(payloads(scene, key, ApprovalExtended)) == 1, "a repeat stores nothing"


async def test_more_than_twice_the_time_is_refused() -> None:
    scene = Scene()
    key, (approval,) = await waiting(scene, HOUR / 4)
    with pytest.raises(InvalidRequest):
        await scene.approvals.extend(approval.id, extension_to(2 * HOUR + SECOND), tenant=key.tenant)
    assert not payloads(scene, key, ApprovalExtended)


async def test_an_approval_whose_time_is_over_expires_instead() -> None:
    scene = Scene()
    now = datetime.now(UTC).replace(microsecond=0)
    key, (approval,) = await waiting_turn(scene.store, {"expire_time": now - SECOND, "ttl": HOUR})
    for _ in range(2):
        with pytest.raises(ApprovalHasExpired):
            await scene.approvals.extend(approval.id, extension_to(2 * HOUR), tenant=key.tenant)
    assert len(payloads(scene, key, ApprovalExpired)) == 1
    assert not payloads(scene, key, ApprovalExtended)


async def test_an_approval_that_was_decided_is_not_extended() -> None:
    scene = Scene()
    key, (approval,) = await waiting(scene, HOUR / 4)
    extension = extension_to(2 * HOUR)

    async def decide() -> None:
        stored = scene.database.sessions[key].approvals
        stored[approval.id] = approval.closed(ApprovalState.REJECTED, at=approval.create_time)

    scene.before["snapshot"] = decide
    for _ in range(2):
        with pytest.raises(ApprovalAlreadyProcessed):
            await scene.approvals.extend(approval.id, extension, tenant=key.tenant)
    assert not payloads(scene, key, ApprovalExtended)
