"""Decisions use the database's time: the store sends none of its own."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.builders import a_turn, an_approval, an_event
from tests.contracts.stores import LONG, SHORT, a_changeset, begin, head_of, lapse, lapsed_approvals
from tests.integration.mongo.commands import Recorder
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.store.changeset import ApprovalChange, Committed, HeadChange, LeaseChange
from turnkeeper.store.mongo.store import MongoStore


def _times(value: Any) -> Iterator[datetime]:
    if isinstance(value, datetime):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _times(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _times(item)


async def test_leases_wake_ups_and_expiry_use_the_databases_clock(recorder: Recorder, store: MongoStore) -> None:
    """This process sends no time near its own; builders use one that is long past or given."""
    key = await begin(store)
    turn, approval = a_turn(key), an_approval(key)
    due = HeadChange(active_turn=turn.id, wake=timedelta())
    head = await head_of(store, key)
    with recorder.recording() as commands:
        changeset = a_changeset(head, an_event(), head=due, new_turns=(turn,), new_approvals=(approval,))
        assert isinstance(await store.commit(changeset), Committed)
        claim = await store.claim("one", lease=LONG)
        assert claim is not None
        renewal = HeadChange(lease_for=LONG)
        owned = a_changeset(await head_of(store, key), an_event(), fence=claim.fence, head=renewal)
        assert isinstance(await store.commit(owned), Committed)
        decided = approval.closed(ApprovalState.APPROVED, at=approval.create_time)
        change = ApprovalChange(approval=decided, lapsed=False)
        taken = HeadChange(lease=LeaseChange.TAKE, owner="two", lease_for=SHORT)
        other = a_changeset(await head_of(store, key), an_event(), head=taken, approvals=(change,))
        assert isinstance(await store.commit(other), Committed)
        assert await store.renew(key, owner="two", fence=claim.fence + 1, lease=SHORT)
        await lapse(store, key)
        await lapsed_approvals(store)
    sent = [time for command in commands for time in _times(command)]
    now = datetime.now(UTC)
    near = [time for time in sent if abs(now - time.replace(tzinfo=UTC)) < timedelta(minutes=30)]
    assert sent
    assert near == []
    assert "$$NOW" in repr(commands)
