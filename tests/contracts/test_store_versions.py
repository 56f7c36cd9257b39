"""Turns that need a newer version than this one: who may own them, and what is done for them meanwhile (I17)."""

from datetime import timedelta

from tests.builders import a_turn, an_event
from tests.contracts.stores import LONG, SHORT, a_changeset, begin, committed, head_of, lapse, make_due, run_turn
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import HeadChange, LeaseChange
from turnkeeper.store.contract import Store

NEWER = 1_000_000
"""No version of ours supports it."""


async def test_i17_a_turn_that_needs_a_newer_version_is_not_claimed(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key)
    needs = HeadChange(lease=LeaseChange.RELEASE, wake=timedelta(), needs=NEWER)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), fence=owned.fence, head=needs)))
    assert (await head_of(store, key)).needs == NEWER
    assert await store.claim("one", lease=LONG) is None


async def test_i17_a_need_does_not_shrink_and_ends_with_its_turn(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key)
    for needs, expected in ((NEWER, NEWER), (1, NEWER), (None, NEWER)):
        changeset = a_changeset(await head_of(store, key), an_event(), fence=owned.fence, head=HeadChange(needs=needs))
        await committed(store.commit(changeset))
        assert (await head_of(store, key)).needs == expected
    following = a_turn(key)
    ends = HeadChange(lease=LeaseChange.RELEASE, active_turn=following.id, wake=timedelta())
    changeset = a_changeset(await head_of(store, key), an_event(), fence=owned.fence, head=ends, new_turns=(following,))
    await committed(store.commit(changeset))
    assert (await head_of(store, key)).needs == 0
    claim = await store.claim("one", lease=LONG)
    assert claim is not None
    assert claim.turn_id == following.id


async def test_i17_what_a_log_needs_stays_for_every_later_turn(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key)
    needs = HeadChange(lease=LeaseChange.RELEASE, active_turn="", log_needs=NEWER)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), fence=owned.fence, head=needs)))
    await make_due(store, key)
    head = await head_of(store, key)
    assert (head.needs, head.log_needs) == (0, NEWER)
    assert await store.claim("one", lease=LONG) is None


async def test_i17_a_lapsed_lease_is_requeued_and_a_turn_that_rests_is_left_alone(store: Store) -> None:
    lost, rests = await begin(store), await begin(store)
    _, owned = await run_turn(store, lost, lease=SHORT)
    change = HeadChange(lease_for=SHORT, needs=NEWER)
    await committed(store.commit(a_changeset(await head_of(store, lost), an_event(), fence=owned.fence, head=change)))
    _, owned = await run_turn(store, rests, state=TurnState.RUNNING)
    change = HeadChange(lease=LeaseChange.RELEASE, needs=NEWER)
    await committed(store.commit(a_changeset(await head_of(store, rests), an_event(), fence=owned.fence, head=change)))
    await lapse(store, lost)
    assert await store.requeue_lapsed() == 1
    assert (await head_of(store, lost)).lapses == 1
    assert (await head_of(store, rests)).lapses == 0
    assert await store.claim("one", lease=LONG) is None
