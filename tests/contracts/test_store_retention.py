"""Deleted, trimmed, purged: what each does to reads, writes and claims, on any number of replicas."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pymongo.database import Database

from tests.builders import (
    AGENT,
    NOON,
    a_call,
    a_first_event,
    a_request,
    a_session,
    a_session_key,
    a_turn,
    an_approval,
    an_event,
)
from tests.contracts.implementations import having
from tests.contracts.stores import LONG, TextCodec, a_changeset, begin, committed, head_of, purge, run_turn, trim, until
from tests.contracts.test_store_forks import a_fork, a_log
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.event import SessionResumed
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import Changeset, Conflict, HeadChange, LeaseChange, RequestRecord
from turnkeeper.store.contract import Store
from turnkeeper.store.filters import ApprovalFilter, SessionFilter
from turnkeeper.store.maintenance import Retention
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.mongo.trims import LOOK

NewMongo = Callable[..., Awaitable[MongoStore]]
NOTHING = timedelta()
GOES = SessionResumed(principal="ada")
"""Of a kind that trimming takes."""


def a_deletion(changeset: Changeset, key: SessionKey) -> Changeset:
    hidden = HeadChange(lease=LeaseChange.BREAK, active_turn="", queue=(), deleted=True)
    return replace(changeset, head=hidden, session=a_session(key, delete_time=NOON))


async def delete(store: Store, key: SessionKey) -> None:
    await committed(store.commit(a_deletion(a_changeset(await head_of(store, key), an_event()), key)))


async def undelete(store: Store, key: SessionKey) -> None:
    snapshot = await store.snapshot(key, deleted=True)
    assert snapshot is not None
    shown: dict[str, Any] = {"head": HeadChange(deleted=False), "session": a_session(key)}
    await committed(store.commit(a_changeset(snapshot.head, an_event(), **shown)))


async def a_full_session(store: Store) -> tuple[SessionKey, RequestRecord, Approval]:
    """One of everything."""
    key = await begin(store)
    turn, request = a_turn(key), a_request(key)
    approval = an_approval(key, turn_id=turn.id)
    changeset = a_changeset(await head_of(store, key), an_event(turn_id=turn.id))
    new: dict[str, Any] = {
        "new_turns": (turn,),
        "new_calls": (a_call(key, turn_id=turn.id),),
        "new_approvals": (approval,),
    }
    await committed(store.commit(replace(changeset, request=request, **new)))
    return key, request, approval


# --- deleted ---------------------------------------------------------------------------------------------------


async def test_a_deleted_session_is_found_only_on_request(store: Store) -> None:
    key, request, approval = await a_full_session(store)
    await delete(store, key)
    assert await store.session(key) is None
    assert await store.snapshot(key) is None
    assert await store.find_request(request.key) is None
    assert await store.approval(key.tenant, approval.id) is None
    listed = [session.id for session, _ in await store.sessions(key.tenant, SessionFilter(), limit=99, after=None)]
    assert key.session_id not in listed
    of_it = ApprovalFilter(session_id=key.session_id)
    assert await store.approvals(key.tenant, of_it, limit=9, after=None) == []
    deleted = await store.session(key, deleted=True)
    assert deleted is not None
    assert (deleted[0].delete_time, deleted[1].deleted) == (NOON, True)
    await undelete(store, key)
    assert await store.session(key) is not None
    assert await store.find_request(request.key) == request
    assert await store.approvals(key.tenant, of_it, limit=9, after=None) == [approval]


async def test_a_page_of_approvals_is_filled_past_those_of_deleted_sessions(store: Store) -> None:
    keys = [(await a_full_session(store))[0] for _ in range(3)]
    await delete(store, keys[0])
    approvals = await store.approvals(keys[0].tenant, ApprovalFilter(), limit=2, after=None)
    assert {approval.session_id for approval in approvals} == {key.session_id for key in keys[1:]}


async def test_what_was_decided_before_the_deletion_is_not_stored_after_it(store: Store) -> None:
    key = await begin(store)
    _, taken = await run_turn(store, key)
    before = await head_of(store, key)
    await delete(store, key)
    assert await store.commit(a_changeset(before, an_event())) == Conflict()
    owners = a_changeset(before, an_event(), fence=taken.fence)
    assert not hasattr(await store.commit(owners), "events")
    assert not await store.renew(key, owner="one", fence=taken.fence, lease=LONG)


async def test_the_id_of_a_deleted_session_is_still_taken(store: Store) -> None:
    key = await begin(store)
    await delete(store, key)
    there = await store.create_session(a_session(key, fingerprint="new"), AGENT, event=a_first_event())
    assert there is not None
    assert there.delete_time == NOON


# --- trimmed ---------------------------------------------------------------------------------------------------


async def a_long_log(store: Store, *, turns: int = 3) -> SessionKey:
    """A session whose turns have each two events that a model needs not, and one that it needs."""
    key = await begin(store)
    for _ in range(turns):
        turn = a_turn(key, state=TurnState.COMPLETED)
        events = (an_event(turn_id=turn.id), *(an_event(payload=GOES, turn_id=turn.id) for _ in range(2)))
        await committed(store.commit(a_changeset(await head_of(store, key), *events, new_turns=(turn,))))
    return key


async def numbers(store: Store, key: SessionKey) -> list[int]:
    return [event.sequence for event in await store.events(key, after=0, limit=999)]


@having(Retention)
async def test_old_events_go_and_what_a_model_needs_stays(store: MongoStore) -> None:
    key = await a_long_log(store)

    async def trimmed() -> bool:  # ages are whole seconds
        await trim(store)
        return (await head_of(store, key)).compacted_to == 10

    await until(trimmed)
    assert await numbers(store, key) == [2, 5, 8]
    assert (await head_of(store, key)).last_seq == 10
    assert await trim(store) == 0
    await committed(store.commit(a_changeset(await head_of(store, key), an_event())))
    assert await numbers(store, key) == [2, 5, 8, 11]


@having(Retention)
async def test_young_events_stay(store: MongoStore) -> None:
    key = await a_long_log(store)
    assert await trim(store, keep=timedelta(minutes=1)) == 0
    assert len(await numbers(store, key)) == 10
    assert (await head_of(store, key)).compacted_to == 0


@having(Retention)
@pytest.mark.parametrize("queued", [False, True])
async def test_the_events_of_a_turn_that_has_not_ended_stay(store: MongoStore, queued: bool) -> None:
    key = await a_long_log(store, turns=1)
    turn = a_turn(key, first_sequence=5, state=TurnState.AWAITING_APPROVAL)
    change = HeadChange(queue=(turn.id,)) if queued else HeadChange(active_turn=turn.id)
    events = [an_event(payload=GOES, turn_id=turn.id) for _ in range(3)]
    await committed(store.commit(a_changeset(await head_of(store, key), *events, head=change, new_turns=(turn,))))

    async def trimmed() -> bool:
        await trim(store)
        return (await head_of(store, key)).compacted_to == 4

    await until(trimmed)
    await trim(store)
    assert await numbers(store, key) == [2, 5, 6, 7]


@having(Retention)
async def test_a_log_is_examined_again_after_a_pause(store: MongoStore) -> None:
    key = await a_long_log(store)
    await trim(store, keep=timedelta(hours=1), pause=timedelta(hours=1))
    younger = await a_long_log(store)

    async def trimmed() -> bool:
        await trim(store)
        return (await head_of(store, younger)).compacted_to == 10

    await until(trimmed)
    assert len(await numbers(store, key)) == 10


@having(Retention)
async def test_the_rest_of_a_log_that_is_longer_than_one_look_follows_at_once(store: MongoStore) -> None:
    key = await begin(store)
    events = (an_event(payload=GOES) for _ in range(2 * LOOK + 1))
    await committed(store.commit(a_changeset(await head_of(store, key), *events)))
    reached: list[int] = []
    for _ in range(4):
        await trim(store, keep=-timedelta(minutes=1), pause=timedelta(hours=1))
        reached.append((await head_of(store, key)).compacted_to)
    assert reached == [LOOK, 2 * LOOK, 2 * LOOK + 2, 2 * LOOK + 2]


@having(Retention)
async def test_many_replicas_trim_at_once(new_store: NewMongo) -> None:
    replicas = [await new_store() for _ in range(3)]
    keys = [await a_long_log(replicas[0]) for _ in range(4)]

    async def trimmed() -> bool:
        await asyncio.gather(*(trim(replica) for replica in replicas))
        return all([(await head_of(replicas[0], key)).compacted_to == 10 for key in keys])

    await until(trimmed)
    for key in keys:
        assert await numbers(replicas[0], key) == [2, 5, 8]


# --- purged ----------------------------------------------------------------------------------------------------


@having(Retention)
async def test_a_purged_session_is_gone_and_its_id_is_free(store: MongoStore) -> None:
    key, request, approval = await a_full_session(store)
    other, *_ = await a_full_session(store)
    assert await purge(store) == 0
    await delete(store, key)
    assert await purge(store, after=timedelta(minutes=1)) == 0
    assert await purge(store) == 1
    assert await store.session(key, deleted=True) is None
    assert await store.last_seqs([key]) == {}
    assert await numbers(store, key) == []
    await begin(store, key)
    assert await numbers(store, key) == [1]
    assert await store.find_request(request.key) is None
    assert await store.approval(key.tenant, approval.id) is None
    assert await store.turns(key, states=(), limit=9, before=None) == []
    assert await purge(store) == 0
    assert len(await numbers(store, key)) == 1
    assert len(await numbers(store, other)) == 2


@having(Retention)
async def test_a_session_that_was_undeleted_is_not_purged(store: MongoStore) -> None:
    key, *_ = await a_full_session(store)
    await delete(store, key)
    await undelete(store, key)
    assert await purge(store) == 0
    assert len(await numbers(store, key)) == 4


@having(Retention)
async def test_two_replicas_purge_at_once(new_store: NewMongo) -> None:
    replicas = [await new_store() for _ in range(3)]
    keys = [await a_long_log(replicas[0], turns=20) for _ in range(3)]
    for key in keys:
        await delete(replicas[0], key)
    await asyncio.gather(*(purge(replica) for replica in replicas))
    await purge(replicas[0])
    for key in keys:
        assert await numbers(replicas[0], key) == []
        assert await replicas[0].session(key, deleted=True) is None


@having(Retention)
async def test_a_purge_and_an_undeletion_exclude_each_other(new_store: NewMongo) -> None:
    one, two = [await new_store() for _ in range(2)]
    for _ in range(12):
        key = await a_long_log(one, turns=1)
        await delete(one, key)
        snapshot = await two.snapshot(key, deleted=True)
        assert snapshot is not None
        shown = a_changeset(snapshot.head, an_event(), head=HeadChange(deleted=False), session=a_session(key))
        _, result = await asyncio.gather(purge(one), two.commit(shown))
        await purge(one)
        left = await numbers(one, key)
        assert left == ([] if result == Conflict() else [1, 2, 3, 4, 5, 6]), result


@having(Retention)
async def test_a_new_session_is_not_made_over_the_rest_of_an_old_one(new_store: NewMongo) -> None:
    """Created again and again while it is purged: it never shows an event of before."""
    one, two = [await new_store() for _ in range(2)]
    key = a_session_key()
    await begin(one, key)
    for _ in range(6):
        await delete(one, key)
        (_, existing) = await asyncio.gather(
            purge(one), two.create_session(a_session(key), AGENT, event=a_first_event())
        )
        log = await numbers(two, key)
        if existing is None:
            assert log == [1]
        else:
            assert existing.delete_time == NOON
            await purge(one)
            await begin(one, key)


async def test_a_purger_that_wakes_too_late_leaves_a_new_session_alone(mongo_uri: str, database_name: str) -> None:
    """It had read what to delete; meanwhile another purged it all, and the same ids were used again."""
    held, go_on = asyncio.Event(), asyncio.Event()

    class Slow(MongoStore):
        async def _remove(self, key: Document, ids: Mapping[str, Sequence[Any]], *, last: bool = False) -> bool:
            if "requests" in ids:
                held.set()
                await go_on.wait()
            return await super()._remove(key, ids, last=last)

    slow, other = (kind(mongo_uri, database=database_name, codec=TextCodec()) for kind in (Slow, MongoStore))
    try:
        await other.open()
        key, request, _ = await a_full_session(other)
        await delete(other, key)
        stopped = asyncio.create_task(purge(slow))
        await held.wait()
        assert await purge(other) == 1
        await begin(other, key)
        again = a_changeset(await head_of(other, key), an_event(), new_turns=(a_turn(key),), request=request)
        await committed(other.commit(again))
        go_on.set()
        await stopped
        assert await other.find_request(request.key) == request
        assert await numbers(other, key) == [1, 2]
    finally:
        await slow.close()
        await other.close()


@having(Retention)
async def test_an_unfinished_fork_is_purged_and_its_id_free(
    store: MongoStore, shared_database: Database[Document]
) -> None:
    source, key = await begin(store), a_session_key()
    old, young = a_fork(key, source), a_fork(a_session_key(), source)
    events = a_log(2000)
    taken, other = await store.reserve_fork(old), await store.reserve_fork(young)
    assert taken is not None
    assert other is not None
    assert await store.copy_events(other, events) is not None
    going = await store.copy_events(taken, events)
    assert going is not None
    begun = {"session_id": key.session_id}
    shared_database.heads.update_one(begun, [{"$set": {"update_time": {"$subtract": ["$$NOW", 73 * 3_600_000]}}}])
    shared_database.heads.update_one({"session_id": other.session.id}, [{"$set": {"update_time": "$$NOW"}}])
    assert await purge(store, after=timedelta(days=30)) == 1
    assert shared_database.events.count_documents({"session_id": key.session_id}) == 0
    assert shared_database.events.count_documents({"session_id": other.session.id}) == 500
    assert await store.create_session(a_session(key), AGENT, event=a_first_event()) is None
    assert await store.copy_events(going, events) is None


@having(Retention)
async def test_a_fork_that_is_being_purged_is_no_fork_any_more(
    store: MongoStore, shared_database: Database[Document]
) -> None:
    fork = a_fork(a_session_key(), await begin(store))
    taken = await store.reserve_fork(fork)
    assert taken is not None
    shared_database.heads.update_one({"session_id": fork.session.id}, {"$set": {"purging": True}})
    assert await store.copy_events(taken, a_log(3)) is None
    assert await store.reserve_fork(fork) is None
