"""What a store promises about snapshots that are read together: each is what `snapshot` returns."""

from dataclasses import replace
from datetime import timedelta

from tests.builders import a_call, a_session_key, a_turn, an_approval, an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CallState
from turnkeeper.domain.turn import TurnKey
from turnkeeper.store.changeset import HeadChange, Snapshot
from turnkeeper.store.contract import Store


async def _turn(store: Store, key: SessionKey, turn_id: str) -> TurnKey:
    """Stores a turn with open and closed tool calls and approvals."""
    new_calls = tuple(
        a_call(key, id=f"{turn_id}-{number}", turn_id=turn_id, position=number, state=state)
        for number, state in enumerate((CallState.READY, CallState.RETURNED, CallState.STARTED))
    )
    states = (ApprovalState.PENDING, ApprovalState.APPROVED, ApprovalState.PENDING)
    new_approvals = tuple(
        an_approval(key, turn_id=turn_id, tool_call_id=call.id, state=state)
        for call, state in zip(new_calls, states, strict=True)
    )
    changeset = a_changeset(
        await head_of(store, key),
        an_event(),
        new_turns=(a_turn(key, id=turn_id),),
        new_calls=new_calls,
        new_approvals=new_approvals,
    )
    await committed(store.commit(changeset))
    return TurnKey(key, turn_id)


def _timeless(snapshot: Snapshot | None) -> Snapshot | None:
    if snapshot is None:
        return None
    by_id = tuple(sorted(snapshot.approvals, key=lambda approval: approval.id))
    return replace(snapshot, head=replace(snapshot.head, now=snapshot.session.create_time), approvals=by_id)


async def test_snapshots_are_those_of_each_turn_by_itself(store: Store) -> None:
    """The same ids in both tenants; one session has two of the turns, and one has a turn that is not requested."""
    keys = [SessionKey(tenant, session_id) for tenant in ("blue", "red") for session_id in ("one", "two")]
    for key in keys:
        await begin(store, key)
    turns = [await _turn(store, key, "first") for key in keys[:3]]
    turns.append(await _turn(store, keys[0], "second"))
    await _turn(store, keys[3], "first")
    snapshots = await store.snapshots(turns)
    assert list(snapshots) == turns
    for turn in turns:
        alone = await store.snapshot(turn.session, turn_id=turn.turn_id)
        assert alone is not None
        assert len(alone.calls) == len(alone.approvals) == 2
        assert _timeless(snapshots[turn]) == _timeless(alone)
        assert timedelta() <= alone.head.now - snapshots[turn].head.now < timedelta(minutes=1)


async def test_what_is_not_found_is_left_out(store: Store) -> None:
    deleted = await begin(store)
    turns = [await _turn(store, deleted, "turn"), TurnKey(a_session_key(), "turn")]
    change = HeadChange(deleted=True)
    await committed(store.commit(a_changeset(await head_of(store, deleted), an_event(), head=change)))
    assert await store.snapshots(turns) == {}
    without = TurnKey(await begin(store), "another")
    snapshots = await store.snapshots([*turns, without])
    assert list(snapshots) == [without]
    assert snapshots[without].turn is None


async def test_no_turns_have_no_snapshots(store: Store) -> None:
    assert await store.snapshots([]) == {}
