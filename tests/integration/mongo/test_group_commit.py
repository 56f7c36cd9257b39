"""Changesets of different sessions that wait at the same time are one transaction; each gets its own result."""

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo import monitoring

from tests.builders import a_call, a_request, a_session_key, a_turn, an_event
from tests.contracts.stores import LONG, SHORT, a_changeset, begin, committed, head_of, lapse, run_turn
from tests.integration.mongo.batches import (
    HELD_MS,
    MANY,
    assert_not_stored,
    assert_stored,
    count_of,
    new_changesets,
    new_session_keys,
    next_changeset,
    sessions_of,
    together,
    until_sent,
)
from tests.integration.mongo.commands import Recorder, name_of
from tests.integration.mongo.conftest import Client, FailPoint, NewStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Committed, Conflict, Duplicate, Fenced
from turnkeeper.store.mongo import indexes
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.mongo.transactions import group_commit
from turnkeeper.store.mongo.transactions.gathering import Gathering
from turnkeeper.store.mongo.transactions.group_commit import GroupCommit


def limited(**limits: Any) -> type[MongoStore]:
    """Returns a store whose batches have these limits."""

    class Limited(MongoStore):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self._group_commit = GroupCommit(self._transactions, **limits)

    return Limited


async def test_changesets_of_many_sessions_at_once_are_one_transaction(store: MongoStore, recorder: Recorder) -> None:
    changesets = await new_changesets(store)
    with recorder.recording() as commands:
        results = await together(store, *changesets)
    assert [name_of(command) for command in commands] == ["update", "insert", "insert", "commitTransaction"]
    assert sessions_of(commands) == [[changeset.session_id for changeset in changesets]]
    for changeset, result in zip(changesets, results, strict=True):
        await assert_stored(store, changeset, result)


async def test_while_one_commit_runs_the_next_batch_gathers(
    store: MongoStore, recorder: Recorder, failing: FailPoint
) -> None:
    first, *others = await new_changesets(store)
    async with failing(["commitTransaction"], times=1, blockConnection=True, blockTimeMS=HELD_MS):
        with recorder.recording() as commands:
            flying = asyncio.create_task(store.commit(first))
            await until_sent(recorder, "commitTransaction")
            assert not flying.done()
            waiting = [asyncio.create_task(store.commit(changeset)) for changeset in others]
            await asyncio.gather(flying, *waiting)
    assert sessions_of(commands) == [[first.session_id], [changeset.session_id for changeset in others]]


async def test_a_commit_that_hangs_does_not_hold_up_the_others(
    store: MongoStore, recorder: Recorder, failing: FailPoint
) -> None:
    first, second = await new_changesets(store, 2)
    async with failing(["commitTransaction"], times=1, blockConnection=True, blockTimeMS=3 * HELD_MS):
        with recorder.recording():
            flying = asyncio.create_task(store.commit(first))
            await until_sent(recorder, "commitTransaction")
        await assert_stored(store, second, await store.commit(second))
        assert not flying.done()
    await assert_stored(store, first, await flying)


async def test_a_changeset_that_no_call_waits_for_any_more_is_dropped_where_it_waits(
    store: MongoStore, recorder: Recorder, failing: FailPoint
) -> None:
    first, second, third = await new_changesets(store, 3)
    async with failing(["commitTransaction"], times=1, blockConnection=True, blockTimeMS=HELD_MS):
        with recorder.recording():
            flying = asyncio.create_task(store.commit(first))
            await until_sent(recorder, "commitTransaction")
        late = asyncio.create_task(store.commit(replace(second, wanted_until=time.monotonic())))
        in_time = asyncio.create_task(store.commit(replace(third, wanted_until=time.monotonic() + 60)))
        with pytest.raises(ServiceUnavailable):
            await late
    await assert_stored(store, first, await flying)
    await assert_stored(store, third, await in_time)
    await assert_not_stored(store, second)


class _Gathering(Gathering):
    """Each batch gathers until `together` is set."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.ends: list[int] = []

    def seconds(self) -> float:
        return HELD_MS / 1000

    def ended(self, entries: int) -> None:
        self.ends.append(entries)


async def test_a_batch_gathers_what_arrives_while_it_waits(new_store: NewStore, recorder: Recorder) -> None:
    gathering = _Gathering()
    store = await new_store(limited(gathering=gathering))
    first, *others = await new_changesets(store, 3)
    gathering.ends.clear()
    with recorder.recording() as commands:
        waiting = [asyncio.create_task(store.commit(first))]
        waiting += [asyncio.create_task(store.commit(changeset)) for changeset in others]
        await asyncio.gather(*waiting)
    assert sessions_of(commands) == [[first.session_id, *(changeset.session_id for changeset in others)]]
    assert gathering.ends == [3]


class _Times(monitoring.CommandListener):
    """When each update left."""

    def __init__(self) -> None:
        self.updates: list[float] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name == "update":
            self.updates.append(time.perf_counter())

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


async def test_a_lone_changeset_is_never_delayed(new_store: NewStore) -> None:
    """The quickest of twenty is sent at once: a changeset does not wait for others."""
    times = _Times()
    monitoring.register(times)
    store = await new_store()
    delays: list[float] = []
    for changeset in await new_changesets(store, 20):
        times.updates.clear()
        began = time.perf_counter()
        await committed(store.commit(changeset))
        delays.append(times.updates[0] - began)
    assert min(delays) < 0.002


async def test_a_changeset_whose_head_moved_is_left_out_and_the_rest_is_stored(
    store: MongoStore, new_store: NewStore, recorder: Recorder
) -> None:
    changesets = await new_changesets(store)
    other = await new_store()
    hot = changesets[3]
    await committed(other.commit(replace(hot, changeset_id="faster", new_turns=())))
    with recorder.recording() as commands:
        results = await together(store, *changesets)
    rest = [changeset for changeset in changesets if changeset is not hot]
    assert sessions_of(commands) == [
        [changeset.session_id for changeset in changesets],
        [changeset.session_id for changeset in rest],
    ]
    assert count_of(commands, "commitTransaction") == 1
    for changeset, result in zip(changesets, results, strict=True):
        if changeset is hot:
            assert result == Conflict()
            assert await store.turn(changeset.session_key, changeset.new_turns[0].id) is None
        else:
            await assert_stored(store, changeset, result)


async def test_what_lost_once_goes_alone_for_a_while(
    store: MongoStore, new_store: NewStore, recorder: Recorder
) -> None:
    changesets = await new_changesets(store, 3)
    other = await new_store()
    await committed(other.commit(replace(changesets[0], changeset_id="faster", new_turns=())))
    assert (await together(store, *changesets))[0] == Conflict()
    again = [await next_changeset(store, changeset.session_key) for changeset in changesets]
    with recorder.recording() as commands:
        results = await together(store, *again)
    assert all(isinstance(result, Committed) for result in results)
    assert sorted(sessions_of(commands), key=len) == [
        [again[0].session_id],
        [again[1].session_id, again[2].session_id],
    ]


async def test_what_waits_already_when_its_head_becomes_hot_goes_alone(
    new_store: NewStore, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of many changesets on one head would have a batch written twice."""
    monkeypatch.setattr(group_commit, "HOT_S", 60.0)  # a slow machine takes longer than a second for this crowd
    monkeypatch.setattr(group_commit, "PATIENCE_S", 60.0)
    store = await new_store(limited(most=2))
    hot, *others = await new_changesets(store, 13)
    crowd = [hot, *(replace(hot, changeset_id=f"twin {number}", new_turns=()) for number in range(11))]
    pairs = [changeset for pair in zip(crowd, others, strict=True) for changeset in pair]
    with recorder.recording() as commands:
        results = await together(store, *pairs)
    assert [type(result) for result in results] == [Committed] + [Committed, Conflict] * 11 + [Committed]
    shared = [sessions for sessions in sessions_of(commands) if hot.session_id in sessions and len(sessions) > 1]
    assert len(shared) < 6, "the first, the one that made it hot, and what had begun meanwhile"


async def test_a_changeset_on_a_head_with_another_owner_goes_alone(store: MongoStore, recorder: Recorder) -> None:
    changesets = await new_changesets(store, 3)
    with recorder.recording() as commands:
        await together(store, replace(changesets[0], leased=True), *changesets[1:])
    assert sorted(map(len, sessions_of(commands))) == [1, 2]


async def test_a_request_that_was_there_leaves_and_the_rest_is_stored(
    store: MongoStore, recorder: Recorder, client: Client, database_name: str
) -> None:
    """Its insert hits a duplicate key: that transaction is never committed. The error names its index."""
    keys = await new_session_keys(store)
    request = a_request(keys[2])
    await committed(store.commit(await next_changeset(store, keys[2], request=request)))
    changesets = [await next_changeset(store, key, request=a_request(key)) for key in keys]
    changesets[2] = replace(changesets[2], request=replace(request, turn_id="another"))
    with recorder.recording() as commands:
        results = await together(store, *changesets)
    rest = [changeset for changeset in changesets if changeset is not changesets[2]]
    assert sessions_of(commands) == [
        [changeset.session_id for changeset in changesets],
        [changeset.session_id for changeset in rest],
    ]
    assert count_of(commands, "commitTransaction") == 1
    assert results[2] == Duplicate(request)
    await assert_not_stored(store, changesets[2])
    for changeset, result in zip(changesets, results, strict=True):
        if changeset is not changesets[2]:
            await assert_stored(store, changeset, result)
    assert await client[database_name].requests.count_documents({}) == MANY


async def test_i4_a_foreign_fence_leaves_and_the_rest_is_stored(store: MongoStore) -> None:
    keys = await new_session_keys(store)
    changesets = [await next_changeset(store, key) for key in keys]
    _, lost = await run_turn(store, keys[5], owner="one")
    await run_turn(store, keys[5], owner="two")
    head = await head_of(store, keys[5])
    changesets[5] = a_changeset(head, an_event(), fence=lost.fence, new_turns=(a_turn(keys[5]),))
    results = await together(store, *changesets)
    assert results[5] == Fenced()
    await assert_not_stored(store, changesets[5])
    for changeset, result in zip(changesets, results, strict=True):
        if changeset is not changesets[5]:
            await assert_stored(store, changeset, result)


async def test_a_document_that_is_not_there_stops_its_own_changeset_alone(store: MongoStore) -> None:
    """Its head has not changed, so the database's answer does not identify the entry."""
    changesets = await new_changesets(store)
    missing = replace(changesets[1], calls=(a_call(a_session_key(session_id=changesets[1].session_id)),))
    results = await together(store, changesets[0], missing, *changesets[2:])
    assert results[1] == Conflict()
    await assert_not_stored(store, missing)
    for changeset, result in zip((changesets[0], *changesets[2:]), (results[0], *results[2:]), strict=True):
        await assert_stored(store, changeset, result)


async def test_one_session_is_at_most_once_in_a_batch(store: MongoStore, recorder: Recorder) -> None:
    changesets = await new_changesets(store, 3)
    twins = [
        replace(changeset, changeset_id=f"twin of {changeset.changeset_id}", new_turns=()) for changeset in changesets
    ]
    with recorder.recording() as commands:
        results = await together(store, *changesets, *twins)
    assert len(sessions_of(commands)) > 1
    for sessions in sessions_of(commands):
        assert len(set(sessions)) == len(sessions)
    assert [type(result) for result in results] == [Committed] * 3 + [Conflict] * 3


async def test_renewals_go_with_the_changesets(store: MongoStore, recorder: Recorder) -> None:
    keys = await new_session_keys(store, 3)
    owned = [(key, (await run_turn(store, key, lease=SHORT))[1].fence) for key in keys]
    for key in keys:
        await lapse(store, key)
    changeset = await next_changeset(store, await begin(store))
    with recorder.recording() as commands:
        committing = asyncio.create_task(store.commit(changeset))
        renewed = await asyncio.gather(
            *(store.renew(key, owner="one", fence=fence, lease=LONG) for key, fence in owned),
            store.renew(SessionKey(keys[0].tenant, "nowhere"), owner="one", fence=1, lease=LONG),
        )
        result = await committing
    assert renewed == [True, True, True, False]
    assert count_of(commands, "commitTransaction") == 1
    await assert_stored(store, changeset, result)
    assert all([(await head_of(store, key)).owned for key in keys])


async def test_a_sharded_cluster_gets_no_batches(store: MongoStore, recorder: Recorder) -> None:
    changesets = await new_changesets(store, 3)
    store._group_commit.grouping = False  # noqa: SLF001 - there is no such cluster here
    with recorder.recording() as commands:
        await together(store, *changesets)
    assert list(map(len, sessions_of(commands))) == [1, 1, 1]


@pytest.mark.parametrize(("answer", "sharded"), [({"msg": "isdbgrid"}, True), ({"setName": "rs0"}, False)])
async def test_a_router_is_recognized(answer: dict[str, Any], sharded: bool) -> None:
    class Database:
        async def command(self, _: str) -> dict[str, Any]:
            return answer

    connection: Any = SimpleNamespace(client=SimpleNamespace(admin=Database()))
    assert await indexes.is_sharded(connection) is sharded


async def test_a_batch_has_a_limit(new_store: NewStore, recorder: Recorder) -> None:
    store = await new_store(limited(most=3))
    changesets = await new_changesets(store)
    with recorder.recording() as commands:
        await together(store, *changesets)
    assert list(map(len, sessions_of(commands))) == [3, 3, 2]
    store = await new_store(limited(most=3, most_bytes=300))
    large = [await next_changeset(store, changeset.session_key) for changeset in changesets]
    with recorder.recording() as commands:
        await together(store, *large)
    assert max(map(len, sessions_of(commands))) < 3
