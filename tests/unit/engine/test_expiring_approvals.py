"""Approvals that lapse together expire together, exactly once: those of one turn, and those of many sessions."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from tests.builders import a_lone_decider, an_event
from tests.contracts.stores import a_changeset, committed, head_of
from tests.expiring import approvals_on, expirer_on, lapsed_turn
from tests.memory_store import leases
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalState
from turnkeeper.domain.approval_events import ApprovalExpired
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import ToolOutcome
from turnkeeper.domain.tool_events import ToolReturned
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.replica.expirer import HELD_BACK, TURNS_AT_ONCE
from turnkeeper.engine.rules.approvals import EXPIRED_AT_ONCE
from turnkeeper.rpc.codec import WireCodec

LAPSED = 2 * EXPIRED_AT_ONCE + 1
SECOND = timedelta(seconds=1)


class Scene:
    """A store in memory that counts the calls of each method, and the verbs on approvals."""

    def __init__(self) -> None:
        self.calls = Counter[str]()
        self.before: dict[str, Callable[[], Awaitable[object]]] = {}
        """What happens before the next call of a method."""
        self.database = MemoryDatabase(now=lambda: datetime.now(UTC))
        self.store = MemoryStore(self.database, codec=WireCodec(), enter=self._enter, random=Random(1), replica="one")
        self.approvals = approvals_on(self.store)

    async def _enter(self, method: str) -> None:
        await asyncio.sleep(0)
        self.calls[method] += 1
        if method in self.before:
            await self.before.pop(method)()

    async def lapsed(self, *ages: timedelta) -> tuple[SessionKey, list[Approval]]:
        """Stores a turn that waits for approvals which lapsed so long ago."""
        stored = await lapsed_turn(self.store, *ages)
        self.calls.clear()
        return stored


async def test_d6_more_approvals_of_one_turn_than_a_changeset_takes_expire_in_one_call() -> None:
    scene = Scene()
    key, approvals = await scene.lapsed(*[SECOND] * LAPSED)
    await scene.approvals.expire(approvals[0])
    stored = scene.database.sessions[key]
    assert {approval.state for approval in stored.approvals.values()} == {ApprovalState.EXPIRED}
    assert scene.calls["commit"] == 3
    payloads = [logged.event.payload for logged in stored.log]
    expired = [payload.approval_id for payload in payloads if isinstance(payload, ApprovalExpired)]
    assert sorted(expired) == sorted(approval.id for approval in approvals)
    returned = [payload.outcome for payload in payloads if isinstance(payload, ToolReturned)]
    assert returned == [ToolOutcome.EXPIRED] * LAPSED
    assert stored.turns[approvals[0].turn_id].state is not TurnState.AWAITING_APPROVAL


async def test_d6_what_has_not_lapsed_stays_pending_and_its_turn_waits() -> None:
    scene = Scene()
    key, approvals = await scene.lapsed(*[SECOND] * EXPIRED_AT_ONCE, timedelta(hours=-1))
    await scene.approvals.expire(approvals[0])
    stored = scene.database.sessions[key]
    pending = [approval.id for approval in stored.approvals.values() if approval.state is ApprovalState.PENDING]
    assert pending == [approvals[-1].id]
    assert scene.calls["commit"] == 1
    assert stored.turns[approvals[0].turn_id].state is TurnState.AWAITING_APPROVAL


async def test_d6_what_lapses_together_is_read_together() -> None:
    scene = Scene()
    count = 2 * TURNS_AT_ONCE + 1
    turns = [await scene.lapsed(SECOND) for _ in range(count)]
    await expirer_on(scene.store).expire_lapsed()
    assert scene.calls == {"lapsed_approvals": 1, "snapshots": 3, "commit": count}
    for key, (approval,) in turns:
        assert scene.database.sessions[key].approvals[approval.id].state is ApprovalState.EXPIRED


@pytest.mark.parametrize("decision", [ApprovalDecision.APPROVE, ApprovalDecision.REJECT])
async def test_i6_a_decision_between_the_read_and_the_expiry_holds(decision: ApprovalDecision) -> None:
    """Its approval was read as lapsed; by the clock of the decision it had not lapsed yet."""
    scene = Scene()
    decided, other = [(key, approval) for key, (approval,) in [await scene.lapsed(n * SECOND) for n in (1, 60)]]
    clock = scene.database.now

    async def decide() -> None:
        scene.database.now = lambda: decided[1].expire_time - SECOND
        answer = Answer(decision=decision, decider=a_lone_decider(), arguments_hash=decided[1].arguments_hash)
        await scene.approvals.decide(decided[1].id, answer, tenant=decided[0].tenant)
        scene.database.now = clock

    scene.before["commit"] = decide
    await expirer_on(scene.store).expire_lapsed()
    stored = scene.database.sessions[decided[0]]
    assert stored.approvals[decided[1].id].decision is decision
    assert not [logged for logged in stored.log if isinstance(logged.event.payload, ApprovalExpired)]
    assert scene.database.sessions[other[0]].approvals[other[1].id].state is ApprovalState.EXPIRED


async def test_i6_an_expiry_whose_session_changed_meanwhile_is_decided_again() -> None:
    scene = Scene()
    key, (approval,) = await scene.lapsed(SECOND)

    async def change() -> None:
        await committed(scene.store.commit(a_changeset(await head_of(scene.store, key), an_event())))

    scene.before["commit"] = change
    await expirer_on(scene.store).expire_lapsed()
    assert scene.database.sessions[key].approvals[approval.id].state is ApprovalState.EXPIRED
    payloads = [logged.event.payload for logged in scene.database.sessions[key].log]
    assert len([payload for payload in payloads if isinstance(payload, ApprovalExpired)]) == 1


async def test_d6_the_turns_of_a_burst_are_held_back_until_the_rest_has_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    turns = [await scene.lapsed(age * SECOND) for age in (30, 20, 10)]
    now = datetime.now(UTC)
    scene.database.now = lambda: now
    monkeypatch.setattr(leases, "PAGE", 1)
    await expirer_on(scene.store).expire_lapsed()
    due = [scene.database.sessions[key].wake_at for key, _ in turns]
    assert due == [now + 2 * HELD_BACK, now + HELD_BACK, now]
