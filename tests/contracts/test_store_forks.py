"""A fork is taken, copied by batches, and there as a whole or not at all."""

import asyncio
from dataclasses import replace

from tests.builders import AGENT, a_call, a_first_event, a_request, a_session, a_session_key, a_turn, an_event, new_id
from tests.contracts.conftest import NewStore
from tests.contracts.stores import begin, head_of
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CallState
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import Fork, RequestRecord
from turnkeeper.store.contract import Store


def a_fork(key: SessionKey, source: SessionKey, *, log_needs: int = 0, **given: str) -> Fork:
    return Fork(
        session=a_session(key, **given),
        source_session_id=source.session_id,
        source_sequence=1,
        log_needs=log_needs,
    )


def a_record(source: SessionKey, fork: SessionKey) -> RequestRecord:
    record = a_request(source, turn_id="", sequence=1, made_session_id=fork.session_id)
    return replace(record, key=replace(record.key, family="fork_session"))


def a_log(count: int) -> list[NewEvent]:
    return [a_first_event(), *(an_event(str(number)) for number in range(2, count + 1))]


async def copied(store: Store, fork: Fork, events: list[NewEvent]) -> tuple[Fork, int]:
    """The whole copy, and by how many batches."""
    batches = 0
    while fork.copied < len(events):
        going = await store.copy_events(fork, events)
        assert going is not None
        fork, batches = going, batches + 1
    return fork, batches


async def is_visible(store: Store, key: SessionKey) -> bool:
    session = await store.session(key)
    snapshot = await store.snapshot(key)
    last_seqs = await store.last_seqs([key])
    assert (session is None) == (snapshot is None) == (not last_seqs)
    return session is not None


async def test_a_large_log_is_copied_by_batches_and_seen_when_it_is_whole(store: Store) -> None:
    source, key = await begin(store), a_session_key()
    events = a_log(1201)
    taken = await store.reserve_fork(a_fork(key, source))
    assert taken is not None
    assert not await is_visible(store, key)
    fork, batches = await copied(store, taken, events)
    assert batches == 3
    assert not await is_visible(store, key)
    turn = a_turn(key, state=TurnState.COMPLETED)
    call = a_call(key, turn_id=turn.id, state=CallState.RETURNED)
    record = a_record(source, key)
    stored_record = await store.finish_fork(fork, fork.session, turns=(turn,), calls=(call,), request=record)
    assert stored_record == record
    assert await store.find_request(record.key) == record
    forked = await store.session(key)
    assert forked is not None
    assert (forked[0], forked[1].last_seq) == (fork.session, 1201)
    snapshot = await store.snapshot(key, turn_id=turn.id)
    assert snapshot is not None
    assert (snapshot.turn, snapshot.calls) == (turn, ()), "the call has returned"
    assert await store.call(key, call.id) == call
    log = await store.events(key, after=0, limit=2000)
    assert [event.sequence for event in log] == list(range(1, 1202))
    assert await store.copy_events(fork, events) is None
    assert await store.reserve_fork(a_fork(key, source)) is None


async def test_i17_an_owner_of_the_forks_turns_must_support_what_was_copied(store: Store) -> None:
    source, key = await begin(store), a_session_key()
    taken = await store.reserve_fork(a_fork(key, source, log_needs=7))
    assert taken is not None
    fork, _ = await copied(store, taken, a_log(1))
    await store.finish_fork(fork, fork.session, turns=(), calls=(), request=a_record(source, key))
    assert (await head_of(store, key)).log_needs == 7


async def test_events_of_many_bytes_make_smaller_batches(store: Store) -> None:
    source, key = await begin(store), a_session_key()
    events = [a_first_event(), *(an_event("x" * 250_000) for _ in range(40))]
    taken = await store.reserve_fork(a_fork(key, source))
    assert taken is not None
    assert (await copied(store, taken, events))[1] == 2


async def test_i8_five_tries_at_once_copy_one_log_and_make_one_session(new_store: NewStore) -> None:
    replicas = [await new_store() for _ in range(2)]
    source, key = await begin(replicas[0]), a_session_key()
    events = a_log(1300)
    record = a_record(source, key)

    async def attempt(number: int) -> RequestRecord | None:
        store = replicas[number % 2]
        going = await store.reserve_fork(a_fork(key, source, etag=new_id("etag")))
        first = going
        while going is not None and going.copied < len(events):
            going = await store.copy_events(going, events)
        if going is None or first is None:
            return None
        return await store.finish_fork(going, going.session, turns=(), calls=(), request=record)

    records = await asyncio.gather(*(attempt(number) for number in range(5)))
    assert record in records
    assert set(records) <= {record, None}
    log = await replicas[0].events(key, after=0, limit=2000)
    assert [event.sequence for event in log] == list(range(1, 1301))


async def test_a_reserved_id_is_not_free_for_another_session(store: Store) -> None:
    source, key = await begin(store), a_session_key()
    taken = await store.reserve_fork(a_fork(key, source, fingerprint="first"))
    again = await store.reserve_fork(a_fork(key, source, fingerprint="second"))
    assert taken is not None
    assert again == taken
    there = await store.create_session(a_session(key, fingerprint="third"), AGENT, event=a_first_event())
    assert there == taken.session
    assert await store.reserve_fork(a_fork(source, key)) is None


async def test_i13_a_fork_of_one_tenant_is_not_anothers(store: Store) -> None:
    blue, red = [a_session_key(tenant=tenant, session_id="forked") for tenant in ("blue", "red")]
    source = await begin(store)
    for key in (blue, red):
        taken = await store.reserve_fork(a_fork(key, source, title=key.tenant))
        assert taken is not None
        assert (taken.session.title, taken.copied) == (key.tenant, 0)
        await store.copy_events(taken, a_log(3))
