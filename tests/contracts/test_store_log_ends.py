"""The end of a log names its history: what is known of another history is noticed, and never continued."""

from dataclasses import replace

from tests.builders import an_event, new_id
from tests.contracts.stores import a_changeset, begin, committed, head_of, run_turn
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import Conflict, Fenced, LogEnd
from turnkeeper.store.contract import Store


async def append(store: Store, key: SessionKey, events: int = 1) -> LogEnd:
    """Appends so many events. Returns the log's end."""
    changeset = a_changeset(await head_of(store, key), *(an_event() for _ in range(events)))
    stored = await committed(store.commit(changeset))
    assert {event.changeset_id for event in stored.events} == {changeset.changeset_id}
    return LogEnd(stored.last_seq, changeset.changeset_id)


async def test_a_head_names_the_changeset_of_its_last_event(store: Store) -> None:
    key = await begin(store)
    first = (await head_of(store, key)).end
    assert first.sequence == 1
    assert first.changeset_id
    second = await append(store, key, 2)
    assert second == (await head_of(store, key)).end
    assert await store.ends([key, SessionKey(key.tenant, "absent")]) == {key: second}
    session = await store.session(key)
    assert session is not None
    assert session[1].end == (await head_of(store, key)).end


async def test_an_event_names_its_changeset(store: Store) -> None:
    key = await begin(store)
    first = (await head_of(store, key)).end
    second = await append(store, key, 2)
    read = await store.events(key, after=0, limit=9)
    assert [event.changeset_id for event in read] == [first.changeset_id, second.changeset_id, second.changeset_id]


async def test_a_changeset_without_events_leaves_the_end(store: Store) -> None:
    key = await begin(store)
    turn, _ = await run_turn(store, key)
    before = await head_of(store, key)
    await committed(store.commit(a_changeset(before, turns=(turn,))))
    assert (await head_of(store, key)).end == before.end


async def test_a_decision_on_another_history_is_a_conflict(store: Store) -> None:
    """All its numbers fit."""
    key = await begin(store)
    await append(store, key)
    read = await head_of(store, key)
    changeset = replace(a_changeset(read, an_event()), last_changeset="of another history")
    assert await store.commit(changeset) == Conflict()
    assert await store.commit(replace(changeset, events=())) == Conflict()
    assert (await head_of(store, key)).end == read.end
    await committed(store.commit(a_changeset(read, an_event())))


async def test_an_owner_of_another_history_stores_nothing(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key)
    read = await head_of(store, key)
    changeset = a_changeset(read, an_event(), fence=owned.fence)
    assert await store.commit(replace(changeset, last_changeset="of another history")) == Conflict()
    await committed(store.commit(changeset))


async def test_an_owner_stores_nothing_while_another_one_has_its_fence(store: Store) -> None:
    """A database that was restored to before a claim gives its fence again."""
    key = await begin(store)
    _, owned = await run_turn(store, key, owner="one")
    changeset = a_changeset(await head_of(store, key), an_event(), fence=owned.fence)
    assert await store.commit(replace(changeset, owner="two")) == Fenced()
    assert await store.commit(replace(changeset, owner="two", events=())) == Fenced()
    await committed(store.commit(replace(changeset, owner="one")))


async def test_a_log_holds_its_ends(store: Store) -> None:
    key = await begin(store)
    ends = [await append(store, key, events) for events in (1, 2, 1)]
    assert await store.holds(key, *ends)
    assert await store.holds(key, LogEnd(3, ends[1].changeset_id))
    assert await store.holds(key, LogEnd(3))


async def test_a_log_holds_no_end_of_another_history_and_none_beyond_its_own(store: Store) -> None:
    key = await begin(store)
    end = await append(store, key)
    other = new_id("changeset")
    assert not await store.holds(key, LogEnd(2, other))
    assert not await store.holds(key, end, LogEnd(1, other))
    assert not await store.holds(key, LogEnd(3))
    assert not await store.holds(key, end, LogEnd(3, end.changeset_id))
    assert not await store.holds(SessionKey(key.tenant, "absent"), LogEnd(1))
    assert not await store.holds(SessionKey("another", key.session_id), LogEnd(1))
