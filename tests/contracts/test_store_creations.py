"""Changesets that create their session: its head, its documents and its first events are stored whole, once."""

import asyncio
from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from tests.builders import AGENT, NOON, a_first_event, a_request, a_session, a_session_key, a_turn, an_event
from tests.contracts.conftest import NewStore
from tests.contracts.stores import LONG, a_changeset, a_first_changeset, begin, committed, head_of, snapshot_of
from turnkeeper.domain.session import Session, SessionKey, SessionState
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import (
    Changeset,
    Committed,
    Conflict,
    Duplicate,
    Fork,
    HeadChange,
    LeaseChange,
    RequestRecord,
    Snapshot,
)
from turnkeeper.store.contract import Store
from turnkeeper.store.notifications import ChangeNotification

DELETED = HeadChange(lease=LeaseChange.BREAK, active_turn="", deleted=True)


def a_first_message(key: SessionKey, *, request: RequestRecord | None = None) -> Changeset:
    """Returns a changeset that creates the session with its first message, whose turn owner `one` leases."""
    turn = a_turn(key, state=TurnState.RUNNING)
    return a_first_changeset(
        key,
        an_event("hello", turn_id=turn.id),
        head=HeadChange(lease=LeaseChange.TAKE, owner="one", lease_for=LONG, active_turn=turn.id),
        session=a_session(key, state=SessionState.ACTIVE, title="hello"),
        new_turns=(turn,),
        request=request or a_request(key, turn_id=turn.id),
    )


async def test_a_session_and_its_first_message_are_stored_whole(store: Store) -> None:
    key = a_session_key()
    changeset = a_first_message(key)
    result = await committed(store.commit(changeset))
    assert (result.last_seq, result.fence) == (2, 1)
    assert [event.sequence for event in result.events] == [1, 2]
    assert list(result.events) == list(await store.events(key, after=0, limit=10))
    snapshot = await snapshot_of(store, key)
    (turn,) = changeset.new_turns
    assert changeset.creates is not None
    expected = replace(
        changeset.creates.head(now=snapshot.head.now),
        last_seq=2,
        last_changeset=changeset.changeset_id,
        fence=1,
        owner="one",
        owned=True,
        active_turn=turn.id,
        revision=snapshot.head.revision,
    )
    assert changeset.session is not None
    assert snapshot == Snapshot(head=expected, session=changeset.session, turn=turn, calls=(), approvals=())
    assert await store.agent(key.tenant, AGENT.name, AGENT.version) == AGENT
    assert changeset.request is not None
    assert await store.find_request(changeset.request.key) == changeset.request


async def test_the_session_is_as_one_that_is_created_before_its_message(store: Store) -> None:
    ones, twos = a_session_key(), a_session_key()
    await committed(store.commit(a_first_changeset(ones, an_event())))
    await begin(store, twos)
    await committed(store.commit(a_changeset(await head_of(store, twos), an_event())))
    one, two = await snapshot_of(store, ones), await snapshot_of(store, twos)
    own = {"session_id", "now", "revision", "last_changeset"}
    heads = [{name: value for name, value in asdict(head).items() if name not in own} for head in (one.head, two.head)]
    assert heads[0] == heads[1]
    assert replace(one.session, etag=two.session.etag) == replace(two.session, id=ones.session_id)


async def test_the_next_changeset_needs_no_read(store: Store) -> None:
    """The head that the creation names grows as that of any session."""
    key = a_session_key()
    changeset = a_first_changeset(key, an_event())
    await committed(store.commit(changeset))
    assert changeset.creates is not None
    first = changeset.creates.head(now=NOON)
    after = replace(first, last_seq=2, revision=first.revision + 1, last_changeset=changeset.changeset_id)
    await committed(store.commit(a_changeset(after, an_event())))


async def test_i8_a_second_commit_returns_what_the_first_did(store: Store) -> None:
    changeset = a_first_message(a_session_key())
    first = await committed(store.commit(changeset))
    assert await store.commit(changeset) == first


async def test_i8_another_changeset_of_the_same_request_is_a_duplicate(store: Store) -> None:
    key = a_session_key()
    request = a_request(key)
    await committed(store.commit(a_first_message(key, request=request)))
    assert await store.commit(a_first_message(key, request=replace(request, turn_id="other"))) == Duplicate(request)
    assert (await head_of(store, key)).last_seq == 2


async def test_a_session_with_the_id_is_a_conflict(store: Store) -> None:
    key = await begin(store)
    before = await snapshot_of(store, key)
    assert await store.commit(a_first_message(key)) == Conflict()
    after = await snapshot_of(store, key)
    assert after == replace(before, head=replace(before.head, now=after.head.now))


async def test_a_deleted_session_is_a_conflict_also_for_a_request_that_it_answered(store: Store) -> None:
    key = a_session_key()
    request = a_request(key)
    await committed(store.commit(a_first_message(key, request=request)))
    deleted = a_session(key, delete_time=NOON)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=DELETED, session=deleted)))
    assert await store.commit(a_first_message(key)) == Conflict()
    assert await store.commit(a_first_message(key, request=request)) == Conflict()


async def test_an_id_that_a_fork_reserved_is_a_conflict(store: Store) -> None:
    source, key = await begin(store), a_session_key()
    await store.reserve_fork(Fork(session=a_session(key), source_session_id=source.session_id, source_sequence=1))
    assert await store.commit(a_first_message(key)) == Conflict()
    assert await store.session(key) is None


async def test_of_many_creations_at_once_one_makes_the_session(new_store: NewStore) -> None:
    replicas = [await new_store() for _ in range(2)]
    key = a_session_key()
    changesets = [a_first_message(key) for _ in range(4)]
    sessions = [a_session(key, fingerprint=str(number)) for number in range(2)]
    results, existing = await asyncio.gather(
        asyncio.gather(*(replicas[n % 2].commit(changeset) for n, changeset in enumerate(changesets))),
        asyncio.gather(
            *(replicas[n].create_session(session, AGENT, event=a_first_event()) for n, session in enumerate(sessions))
        ),
    )
    winners: list[Session] = [session for session, before in zip(sessions, existing, strict=True) if before is None]
    winners += [
        changeset.session
        for changeset, result in zip(changesets, results, strict=True)
        if isinstance(result, Committed) and changeset.session is not None
    ]
    assert len(winners) == 1
    assert [result for result in results if not isinstance(result, Committed)].count(Conflict()) >= len(results) - 1
    assert all(before in (None, winners[0]) for before in existing)
    stored = await replicas[0].session(key)
    assert stored is not None
    assert stored[0] == winners[0]


async def test_i8_of_five_sendings_at_once_one_has_the_effect(new_store: NewStore) -> None:
    replicas = [await new_store() for _ in range(2)]
    key = a_session_key()
    request = a_request(key)
    changesets = [a_first_message(key, request=replace(request, turn_id=str(number))) for number in range(5)]
    results = await asyncio.gather(*(replicas[n % 2].commit(changeset) for n, changeset in enumerate(changesets)))
    (winner,) = [changesets[n] for n, result in enumerate(results) if isinstance(result, Committed)]
    assert winner.request is not None
    assert sum(result == Duplicate(winner.request) for result in results) == len(results) - 1
    assert len(await replicas[0].events(key, after=0, limit=10)) == 2


async def test_another_replica_is_notified_of_a_turn_that_it_may_claim(new_store: NewStore) -> None:
    here, there = await new_store(), await new_store()
    key = a_session_key()
    turn = a_turn(key)
    waiting = HeadChange(active_turn=turn.id, wake=timedelta())
    async with here.notifications() as notifications, asyncio.timeout(10):
        await committed(there.commit(a_first_changeset(key, an_event(), head=waiting, new_turns=(turn,))))
        notification = await anext(notifications)
    assert notification == ChangeNotification(tenant=key.tenant, session_id=key.session_id, last_seq=2, claimable=True)
    claim = await here.claim("two", lease=LONG)
    assert claim is not None
    assert (claim.turn_id, claim.fence) == (turn.id, 1)


async def test_i13_a_creation_of_another_session_is_refused(store: Store) -> None:
    key, other = a_session_key(), a_session_key()
    changeset = replace(a_first_message(key), creates=a_first_changeset(other).creates)
    with pytest.raises(ValueError, match="another session"):
        await store.commit(changeset)
    assert await store.session(key) is None
