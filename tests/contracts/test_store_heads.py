"""What a changeset does to the head: lease, wake-up, queue, request to cancel."""

from datetime import timedelta

import pytest

from tests.builders import a_session_key, an_event
from tests.contracts.stores import LONG, SHORT, a_changeset, begin, committed, head_of, lapse, make_due, run_turn, until
from turnkeeper.store.changeset import Cancel, Fenced, HeadChange, LeaseChange
from turnkeeper.store.contract import Store


async def test_an_owners_changeset_extends_its_lease(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key, lease=SHORT)
    await lapse(store, key)
    changeset = a_changeset(await head_of(store, key), fence=owned.fence, head=HeadChange(lease_for=LONG))
    await committed(store.commit(changeset))
    head = await head_of(store, key)
    assert (head.owner, head.owned, head.fence) == ("one", True, owned.fence)
    assert await store.requeue_lapsed() == 0


async def test_a_changeset_of_another_writer_leaves_the_lease_alone(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key, lease=SHORT)
    await lapse(store, key)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=HeadChange(lease_for=LONG))))
    head = await head_of(store, key)
    assert (head.owner, head.owned, head.fence) == ("one", False, owned.fence)
    assert await store.requeue_lapsed() == 1


async def test_taking_the_lease_raises_the_fence(store: Store) -> None:
    key = await begin(store)
    _, first = await run_turn(store, key)
    change = HeadChange(lease=LeaseChange.TAKE, owner="two", lease_for=LONG)
    second = await committed(store.commit(a_changeset(await head_of(store, key), head=change)))
    assert second.fence == first.fence + 1
    head = await head_of(store, key)
    assert (head.owner, head.owned, head.fence) == ("two", True, second.fence)


@pytest.mark.parametrize(("lease", "grows"), [(LeaseChange.RELEASE, 0), (LeaseChange.BREAK, 1)])
async def test_letting_the_lease_go(store: Store, lease: LeaseChange, grows: int) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key)
    await committed(store.commit(a_changeset(await head_of(store, key), head=HeadChange(lease=lease))))
    head = await head_of(store, key)
    assert (head.owner, head.owned, head.fence) == ("", False, owned.fence + grows)


@pytest.mark.parametrize("lease", list(LeaseChange))
async def test_i4_an_old_fence_is_refused(store: Store, lease: LeaseChange) -> None:
    """Whatever the fenced owner wants to do with the lease, and though it read the head just now."""
    key = await begin(store)
    _, first = await run_turn(store, key)
    _, second = await run_turn(store, key, owner="two")
    change = HeadChange(lease=lease, owner="one", lease_for=LONG)
    changeset = a_changeset(await head_of(store, key), an_event(), fence=first.fence, head=change)
    assert await store.commit(changeset) == Fenced()
    head = await head_of(store, key)
    assert (head.owner, head.fence, head.last_seq) == ("two", second.fence, second.last_seq)
    await committed(store.commit(a_changeset(head, an_event(), fence=second.fence)))


@pytest.mark.parametrize("lease", [LeaseChange.RELEASE, LeaseChange.BREAK])
async def test_i4_an_owner_whose_lease_was_let_go_is_fenced(store: Store, lease: LeaseChange) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key)
    await committed(store.commit(a_changeset(await head_of(store, key), head=HeadChange(lease=lease))))
    changeset = a_changeset(await head_of(store, key), an_event(), fence=owned.fence)
    assert await store.commit(changeset) == Fenced()


async def test_i4_an_owner_is_fenced_once_the_sweeper_took_its_turn(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key, lease=SHORT)
    read = await head_of(store, key)
    await lapse(store, key)
    assert await store.requeue_lapsed() == 1
    late = a_changeset(read, an_event(), fence=owned.fence, head=HeadChange(lease_for=LONG))
    assert await store.commit(late) == Fenced()
    claim = await store.claim("two", lease=LONG)
    assert claim is not None
    assert await store.commit(late) == Fenced()
    assert (await head_of(store, key)).owner == "two"


async def test_i4_an_owner_whose_lease_lapsed_goes_on_until_it_is_claimed(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key, lease=SHORT)
    await lapse(store, key)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), fence=owned.fence)))


async def test_a_wake_up_makes_the_turn_claimable_when_it_is_due(store: Store) -> None:
    soon, later = await begin(store), await begin(store)
    await make_due(store, later, wake=timedelta(hours=1))
    assert await store.claim("one", lease=LONG) is None
    turn = await make_due(store, soon, wake=timedelta(milliseconds=100))

    async def claimed() -> bool:
        claim = await store.claim("one", lease=LONG)
        return claim is not None and claim.turn_id == turn.id

    await until(claimed)


@pytest.mark.parametrize(
    ("change", "by_owner"),
    [
        (HeadChange(lease=LeaseChange.TAKE, owner="two", lease_for=LONG), False),
        (HeadChange(active_turn=""), False),
        (HeadChange(lease=LeaseChange.RELEASE), True),
    ],
    ids=["taking", "no-active-turn", "releasing"],
)
async def test_a_wake_up_is_cleared(store: Store, change: HeadChange, by_owner: bool) -> None:
    key = await begin(store)
    turn, owned = await run_turn(store, key)
    fence = owned.fence if by_owner else None
    await committed(store.commit(a_changeset(await head_of(store, key), head=HeadChange(wake=timedelta()))))
    await committed(store.commit(a_changeset(await head_of(store, key), fence=fence, head=change)))
    again = HeadChange(lease=LeaseChange.BREAK, active_turn=turn.id)
    await committed(store.commit(a_changeset(await head_of(store, key), head=again)))
    assert await store.claim("three", lease=LONG) is None


@pytest.mark.parametrize("lease", [LeaseChange.KEEP, LeaseChange.BREAK])
async def test_a_wake_up_outlives_other_changesets(store: Store, lease: LeaseChange) -> None:
    key = await begin(store)
    await make_due(store, key)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=HeadChange(lease=lease))))
    assert await store.claim("one", lease=LONG) is not None


async def test_a_turn_that_is_owned_is_not_claimable_though_its_wake_up_is_due(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=HeadChange(wake=timedelta()))))
    assert await store.claim("two", lease=LONG) is None
    head = await head_of(store, key)
    assert (head.owner, head.fence) == ("one", owned.fence)


async def test_what_a_changeset_does_not_name_stays(store: Store) -> None:
    key = await begin(store)
    turn, owned = await run_turn(store, key)
    request = Cancel(turn_id=turn.id, by="ada", reason="REQUESTED")
    change = HeadChange(queue=("second", "$third"), cancel=request)
    await committed(store.commit(a_changeset(await head_of(store, key), head=change)))
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), fence=owned.fence)))
    head = await head_of(store, key)
    assert (head.active_turn, head.queue, head.cancel) == (turn.id, ("second", "$third"), request)
    cleared = HeadChange(active_turn="second", queue=("$third",), cancel=Cancel())
    await committed(store.commit(a_changeset(head, head=cleared)))
    head = await head_of(store, key)
    assert (head.active_turn, head.queue, head.cancel) == ("second", ("$third",), Cancel())


async def test_a_callers_value_is_never_an_expression(store: Store) -> None:
    key = await begin(store, a_session_key(tenant="$tenant", session_id="$last_seq"))
    change = HeadChange(lease=LeaseChange.TAKE, owner="$fence", lease_for=LONG, active_turn="$$NOW", queue=("$fence",))
    changeset = a_changeset(await head_of(store, key), changeset_id="$fence", head=change)
    first = await committed(store.commit(changeset))
    head = await head_of(store, key)
    assert (head.owner, head.active_turn, head.queue) == ("$fence", "$$NOW", ("$fence",))
    assert await store.commit(changeset) == first


async def test_a_renewal_extends_the_lease_of_its_owner_alone(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key, lease=SHORT)
    fence = owned.fence
    await lapse(store, key)
    read = await head_of(store, key)

    async def renew(owner: str, fence: int) -> bool:
        return await store.renew(key, owner=owner, fence=fence, lease=LONG)

    assert not await renew("one", fence + 1)
    assert not await renew("one", fence - 1)
    assert not await renew("two", fence)
    assert not (await head_of(store, key)).owned
    assert await renew("one", fence)
    head = await head_of(store, key)
    assert head.owned
    assert head.revision == read.revision
    await run_turn(store, key, owner="two")
    assert not await renew("one", fence)


async def test_all_leases_of_an_owner_are_renewed_at_once(store: Store) -> None:
    keys = [await begin(store) for _ in range(3)]
    leases = {key: (await run_turn(store, key, lease=SHORT))[1].fence for key in keys}
    for key in keys:
        await lapse(store, key)
    await run_turn(store, keys[1], owner="two")
    renewed = await store.renew_all(leases, owner="one", lease=LONG)
    assert renewed == {keys[0]: True, keys[1]: False, keys[2]: True}
    assert [(await head_of(store, key)).owner for key in keys] == ["one", "two", "one"]
    assert all([(await head_of(store, key)).owned for key in keys])
    assert await store.renew_all({}, owner="one", lease=LONG) == {}
