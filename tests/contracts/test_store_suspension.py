"""What a store promises about suspended sessions: nothing is claimed, no clock of an approval runs."""

from dataclasses import replace
from datetime import timedelta

from tests.builders import (
    NOON,
    a_turn,
    an_approval,
    an_event,
)
from tests.contracts.stores import (
    LONG,
    a_changeset,
    begin,
    committed,
    head_of,
    lapse,
    lapsed_approvals,
    make_due,
    run_turn,
    until,
)
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import ApprovalChange, HeadChange
from turnkeeper.store.contract import Store


async def test_the_turn_of_a_suspended_session_is_not_claimed(store: Store) -> None:
    key = await begin(store)
    turn = await make_due(store, key)
    suspended = HeadChange(suspended=True)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=suspended)))
    assert (await head_of(store, key)).suspended
    assert await store.claim("one", lease=LONG) is None
    assert await store.requeue_lapsed() == 0
    resumed = HeadChange(suspended=False)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=resumed)))
    claim = await store.claim("one", lease=LONG)
    assert claim is not None
    assert claim.turn_id == turn.id


async def test_the_sweeper_leaves_a_suspended_turn_that_awaits_no_answer(store: Store) -> None:
    key = await begin(store)
    turn = a_turn(key, state=TurnState.RUNNING)
    change = HeadChange(active_turn=turn.id, suspended=True)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=change, new_turns=(turn,))))
    assert await store.requeue_lapsed() == 0
    resumed = HeadChange(suspended=False)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=resumed)))
    assert await store.requeue_lapsed() == 1


async def test_a_lease_that_lapses_in_a_suspension_is_claimed_after_it(store: Store) -> None:
    key = await begin(store)
    turn, _ = await run_turn(store, key, lease=timedelta(milliseconds=30))
    suspended = HeadChange(suspended=True)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=suspended)))
    await lapse(store, key)
    assert await store.requeue_lapsed() == 1
    assert await store.claim("two", lease=LONG) is None
    resumed = HeadChange(suspended=False)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=resumed)))

    async def claimed() -> bool:
        claim = await store.claim("two", lease=LONG)
        return claim is not None and claim.turn_id == turn.id

    await until(claimed)


async def test_the_owner_in_a_suspended_session_must_look(store: Store) -> None:
    key = await begin(store)
    await run_turn(store, key)
    assert list(await store.cancelled_among([key])) == []
    suspended = HeadChange(suspended=True)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=suspended)))
    assert list(await store.cancelled_among([key])) == [key.session_id]


async def test_an_approval_whose_clock_stands_still_never_lapses(store: Store) -> None:
    key = await begin(store)
    turn, approval = a_turn(key), an_approval(key)
    head = await head_of(store, key)
    waiting = replace(approval, turn_id=turn.id, expire_time=head.now + timedelta(seconds=20))
    await committed(
        store.commit(
            a_changeset(
                head,
                an_event(),
                head=HeadChange(active_turn=turn.id),
                new_turns=(turn,),
                new_approvals=(waiting,),
            )
        )
    )
    snapshot = await store.snapshot(key)
    assert snapshot is not None
    paused = waiting.paused(now=waiting.expire_time - timedelta(milliseconds=50))
    still = (ApprovalChange(approval=paused, lapsed=None),)
    await committed(store.commit(a_changeset(snapshot.head, an_event(), approvals=still)))
    assert await store.approval(key.tenant, waiting.id) == paused
    assert paused.unpaused(now=NOON).expire_time == NOON + timedelta(milliseconds=50)
    assert await lapsed_approvals(store) == []


async def test_approvals_whose_warning_is_due_are_found_unless_it_waits(store: Store) -> None:
    key = await begin(store)
    now = (await head_of(store, key)).now
    due, later, none, decided = (
        an_approval(key, expiring_time=now + after if after is not None else None)
        for after in (timedelta(), timedelta(hours=1), None, timedelta())
    )
    decided = replace(decided, state=ApprovalState.REJECTED)
    new = (due, later, none, decided)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), new_approvals=new)))
    assert [approval async for page in store.expiring_approvals() for approval in page] == [due]
    change = ApprovalChange(approval=replace(due, expiring_time=None, is_expiring=True), lapsed=False)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(change,))))
    assert [page async for page in store.expiring_approvals() if page] == []
