"""Which lapsed leases show that a turn kills its owners, and turns that their owner gives back."""

from datetime import timedelta

from tests.builders import a_turn, an_event
from tests.contracts.conftest import NewStore
from tests.contracts.stores import LONG, SHORT, a_changeset, begin, committed, head_of, lapse, make_due, until
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import Claim, HeadChange, LeaseChange
from turnkeeper.store.contract import Store


async def claimed(store: Store, owner: str, *, lease: timedelta = LONG) -> Claim:
    """Returns the next claim: what is requeued may be due a little later."""
    claims: list[Claim] = []

    async def claim() -> bool:
        claims.extend(filter(None, [await store.claim(owner, lease=lease)]))
        return bool(claims)

    await until(claim)
    return claims[0]


BRIEF = timedelta(milliseconds=100)
"""A lease of an owner that is lost. Its heartbeat, just before, may be up to three of it older than the renewal."""


async def write(store: Store, key: SessionKey, claim: Claim, *, lease: timedelta = SHORT, **head: object) -> None:
    """Stores a changeset of the owner; its lease is a short one from now on."""
    change = HeadChange(lease_for=lease, **head)  # type: ignore[arg-type]
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), fence=claim.fence, head=change)))


async def lose(store: Store, sweeper: Store, key: SessionKey, *, owner: str = "dead", writes: bool = True) -> Claim:
    """Claims the turn and is not heard of again. Returns the claim. The sweeper has requeued the turn then."""
    await store.write_heartbeat(silent_after=2 * BRIEF)
    claim = await claimed(store, owner, lease=LONG if writes else SHORT)
    await store.write_heartbeat(silent_after=2 * BRIEF)
    if writes:
        await write(store, key, claim, lease=BRIEF)
    await lapse(store, key)
    assert await sweeper.requeue_lapsed() == 1
    return claim


async def test_an_owner_is_lost_if_it_wrote_and_its_heartbeat_stopped(new_store: NewStore) -> None:
    living = await new_store("living")
    key = await begin(living)
    await make_due(living, key)
    for lost_owners in range(3):
        name = f"dead-{lost_owners}"
        claim = await lose(await new_store(name), living, key, owner=name)
        assert claim.lost_owners == lost_owners
    claim = await claimed(living, "living")
    assert (claim.lost_owners, claim.lapses) == (3, 1)


async def test_an_owner_that_wrote_nothing_is_not_lost(new_store: NewStore) -> None:
    """It may be that its claim was stored late, and that it never knew."""
    dead, living = await new_store("dead"), await new_store("living")
    key = await begin(living)
    await make_due(living, key)
    await lose(dead, living, key, writes=False)
    claim = await claimed(living, "living")
    assert (claim.lost_owners, claim.lapses) == (0, 1)


async def test_the_owner_that_took_the_lease_with_the_message_has_written(new_store: NewStore) -> None:
    dead, living = await new_store("dead"), await new_store("living")
    key = await begin(living)
    turn = a_turn(key)
    take = HeadChange(lease=LeaseChange.TAKE, owner="dead", lease_for=BRIEF, active_turn=turn.id)
    changeset = a_changeset(await head_of(dead, key), an_event(turn_id=turn.id), head=take, new_turns=(turn,))
    await dead.write_heartbeat(silent_after=2 * BRIEF)
    await committed(dead.commit(changeset))
    await lapse(living, key)
    assert await living.requeue_lapsed() == 1
    assert (await claimed(living, "living")).lost_owners == 1


async def test_an_owner_whose_heartbeat_had_stopped_long_before_is_not_lost(new_store: NewStore) -> None:
    """It renewed its lease without it: that the heartbeat is missing says nothing of its end."""
    silent, living = await new_store("silent"), await new_store("living")
    key = await begin(living)
    await make_due(living, key)
    await silent.write_heartbeat(silent_after=timedelta(milliseconds=1))
    claim = await claimed(silent, "silent", lease=LONG)
    await write(silent, key, claim)
    await lapse(living, key)
    assert await living.requeue_lapsed() == 1
    claim = await claimed(living, "living")
    assert (claim.lost_owners, claim.lapses) == (0, 1)


async def test_a_slow_owner_whose_heartbeat_goes_on_is_not_lost(new_store: NewStore) -> None:
    slow, living = await new_store("slow"), await new_store("living")
    key = await begin(living)
    await make_due(living, key)
    claim = await claimed(slow, "slow", lease=SHORT)
    await write(slow, key, claim)
    await lapse(living, key)
    await slow.write_heartbeat(silent_after=SHORT)
    assert await living.requeue_lapsed() == 1
    claim = await claimed(living, "living")
    assert (claim.lost_owners, claim.lapses) == (0, 1)


async def test_a_paused_owner_is_not_lost_once_its_heartbeat_moves_again(new_store: NewStore) -> None:
    paused, living = await new_store("paused"), await new_store("living")
    key = await begin(living)
    await make_due(living, key)
    await lose(paused, living, key, owner="paused")
    await paused.write_heartbeat(silent_after=SHORT)
    assert (await claimed(living, "living")).lost_owners == 0


async def test_no_number_of_pauses_adds_up(new_store: NewStore) -> None:
    """Two replicas are paused by turns: each is alive while the other one has the turn."""
    one, two = await new_store("one"), await new_store("two")
    key = await begin(one)
    await make_due(one, key)
    for number in range(6):
        paused, living = (one, two) if number % 2 else (two, one)
        claim = await lose(paused, living, key, owner="one" if number % 2 else "two")
        assert claim.lost_owners <= 1, "only the one that is paused just now"


async def test_a_process_that_was_started_again_under_its_name_was_lost(new_store: NewStore) -> None:
    dead, living = await new_store("dead"), await new_store("living")
    key = await begin(living)
    await make_due(living, key)
    await lose(dead, living, key)
    again = await new_store("dead")
    await again.write_heartbeat(silent_after=LONG)
    claim = await claimed(again, "dead", lease=SHORT)
    assert claim.lost_owners == 1
    await write(again, key, claim)
    await lapse(living, key)
    third = await new_store("dead")
    await third.write_heartbeat(silent_after=LONG)
    assert await living.requeue_lapsed() == 1
    assert (await claimed(living, "living")).lost_owners == 2


async def test_a_replica_that_sweeps_its_own_turn_is_not_lost(new_store: NewStore) -> None:
    """The machine slept, say: its heartbeat is as old as its leases."""
    only = await new_store("only")
    key = await begin(only)
    await make_due(only, key)
    await lose(only, only, key, owner="only")
    assert (await claimed(only, "only")).lost_owners == 0


async def test_progress_sets_the_count_back_and_another_changeset_does_not(new_store: NewStore) -> None:
    dead, living = await new_store("dead"), await new_store("living")
    key = await begin(living)
    await make_due(living, key)
    await lose(dead, living, key)
    claim = await claimed(living, "living", lease=SHORT)
    await write(living, key, claim)
    await lapse(living, key)
    assert await living.requeue_lapsed() == 1
    claim = await claimed(living, "living", lease=SHORT)
    assert claim.lost_owners == 1
    await write(living, key, claim, progress=True)
    await lapse(living, key)
    assert await living.requeue_lapsed() == 1
    assert (await claimed(living, "living")).lost_owners == 0


async def test_the_next_turn_begins_without_lost_owners_and_broken_runs(new_store: NewStore) -> None:
    dead, living = await new_store("dead"), await new_store("living")
    key = await begin(living)
    await make_due(living, key)
    await lose(dead, living, key)
    claim = await claimed(living, "living")
    assert await living.give_back(key, owner="living", fence=claim.fence, broken=True)
    claim = await claimed(living, "living")
    assert (claim.lost_owners, claim.broken_runs) == (1, 1)
    following = a_turn(key)
    ends = HeadChange(lease=LeaseChange.RELEASE, active_turn=following.id, wake=timedelta())
    changeset = a_changeset(
        await head_of(living, key), an_event(), fence=claim.fence, head=ends, new_turns=(following,)
    )
    await committed(living.commit(changeset))
    claim = await claimed(living, "living")
    assert (claim.turn_id, claim.lost_owners, claim.broken_runs) == (following.id, 0, 0)


async def test_a_turn_that_is_given_back_can_be_claimed_at_once_and_has_lost_no_owner(store: Store) -> None:
    key = await begin(store)
    turn = await make_due(store, key)
    claim = await claimed(store, "one")
    assert not await store.give_back(key, owner="two", fence=claim.fence)
    assert not await store.give_back(key, owner="one", fence=claim.fence + 1)
    assert await store.give_back(key, owner="one", fence=claim.fence)
    assert not await store.give_back(key, owner="one", fence=claim.fence)
    again = await store.claim("one", lease=LONG)
    assert again is not None
    assert (again.turn_id, again.fence, again.lapses, again.broken_runs) == (turn.id, claim.fence + 1, 0, 0)


async def test_after_a_broken_run_another_replica_may_claim_first(new_store: NewStore) -> None:
    one, other = await new_store("one"), await new_store("other")
    for replica in (one, other):
        await replica.write_heartbeat(silent_after=LONG)
    key = await begin(one)
    await make_due(one, key)
    claim = await claimed(one, "one")
    assert await one.give_back(key, owner="one", fence=claim.fence, broken=True)
    assert await one.claim("one", lease=LONG) is None
    again = await other.claim("other", lease=LONG)
    assert again is not None
    assert again.broken_runs == 1


async def test_after_a_broken_run_a_replica_without_others_claims_at_once(new_store: NewStore) -> None:
    alone = await new_store("alone")
    await alone.write_heartbeat(silent_after=LONG)
    key = await begin(alone)
    await make_due(alone, key)
    for broken_runs in range(3):
        claim = await alone.claim("alone", lease=LONG)
        assert claim is not None
        assert claim.broken_runs == broken_runs
        assert await alone.give_back(key, owner="alone", fence=claim.fence, broken=True)
    assert await alone.claim("alone", lease=LONG) is None, "it waits, because it broke again when it should have ended"
    assert (await claimed(alone, "alone")).broken_runs == 3
